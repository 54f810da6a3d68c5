"""Writes a checkpoint to one file with a checksum, and loads it only if the checksum is correct.

Loading is always weights-only: no code in a file can run. A file is opened once, so the loaded bytes are the verified
bytes, even if another file gets the name meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from esper.durable.files import DISK, Disk, make_folders, sync_folder
from esper.durable.streams import Written, open_verified, write_stream
from esper.errors import (
    CheckpointCorrupt,
    ConfigError,
    RestoreImpossible,
    StoreCorrupt,
    StoreWriteFailed,
    TaskError,
    causes,
    in_a_line,
)
from esper.ground.tensors import state_crc32c
from esper.leyline.checkpoint_record import QUARANTINE, CheckpointWritten
from esper.telemetry.events import Severity, severe
from esper.tolaria.snapshot_codec import from_plain, incubation_of, topology_digest
from esper.tolaria.trees import tensors_of_state
from esper.user_code.their_code import from_their_file

FORMAT = 1
_KINDS = {
    "format": int,
    "run_id": str,
    "fence": int,
    "step": int,
    "generation": int,
    "trainer": dict,
    "rooms": dict,
    "nursery": dict,
}


def save(path: Path, content: Mapping[str, Any], *, disk: Disk = DISK) -> Written:  # Any: plain values
    """Write plain values to a new file and make it durable. The file name must be new.

    Raises:
        StoreWriteFailed: the file could not be made durable; or a file with the name exists, and is not changed.
    """
    return write_stream(path, lambda stream: _save_unsummed(dict(content), stream), disk=disk)


def _save_unsummed(content: dict[str, Any], stream: BinaryIO) -> None:
    """Write torch's format without torch's checksums.

    Torch's reader ignores them, and they take a fifth of the time.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, stream)
    finally:
        torch.serialization.set_crc32_options(before)


def load(path: Path, length: int, crc: int, algorithm: str, *, disk: Disk = DISK) -> dict[str, Any]:
    """Load a file after verifying length and checksum.

    Its tensors are memory-mapped on the CPU, and read when they are used. torch can only map a path. The path of the
    descriptor under /proc opens the verified file itself. Without a map, the whole model would be copied once more than
    needed.

    Raises:
        CheckpointCorrupt: the file is damaged, missing or not a checkpoint. The error has the path and the reason.
        MemoryError: the system cannot map the file; see `mapped`.
    """
    try:
        with open_verified(path, length, crc, algorithm, disk=disk) as file:
            return _checked(mapped(file))
    except MemoryError:
        raise  # an error of the machine; the file may be intact
    except StoreCorrupt as error:
        raise CheckpointCorrupt(str(path), error.reason) from error
    except Exception as error:  # torch raises many classes of errors for unreadable files
        raise CheckpointCorrupt(str(path), f"does not load: {in_a_line(error)}") from error


def mapped(file: BinaryIO) -> Any:  # Any: the content of the file
    """Load a memory-mapped file. Raises: MemoryError: the system has no address space to map the file, or no /proc."""
    try:
        return torch.load(f"/proc/self/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise MemoryError(f"{error} (a verified checkpoint could not be opened)") from error
    except RuntimeError as error:
        if "unable to mmap" not in str(error):
            raise
        raise MemoryError(in_a_line(error)) from error


def _checked(content: Any) -> dict[str, Any]:  # Any: the content of the file
    """Return the values of a file.

    Raises:
        StoreCorrupt: the values are not a checkpoint of this format, or contradict each other.
    """
    if type(content) is not dict or "format" not in content:
        raise StoreCorrupt("checkpoint", "is not a checkpoint")
    if content["format"] != FORMAT:
        raise StoreCorrupt("checkpoint", f"is of format {content['format']!r}; this program reads {FORMAT}")
    wrong = [name for name, kind in _KINDS.items() if name not in content or type(content[name]) is not kind]
    if wrong:
        raise StoreCorrupt("checkpoint", f"lacks {', '.join(wrong)}")
    for tensor in tensors_of_state(content):  # a tensor may claim more bytes than its file has
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise StoreCorrupt("checkpoint", f"has a tensor on device {tensor.device} of layout {tensor.layout}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise StoreCorrupt("checkpoint", f"has fewer bytes than a tensor of {tuple(tensor.shape)} needs")
    host = from_plain(content["trainer"])  # this checks the values; callers make the snapshot again
    incubation_of(content["nursery"])
    _check_equal("trainer", {"fence": host.fence, "step": host.step}, content)
    if not all(type(name) is type(state) is str for name, state in content["rooms"].items()):
        raise StoreCorrupt("checkpoint", "the state of a component is not text")
    return content


def _check_equal(part: str, found: Mapping[str, object], wanted: Mapping[str, Any]) -> None:  # Any: plain values
    """Compare values in a part of a checkpoint with the values outside of the part.

    Raises:
        StoreCorrupt: a value differs between the two.
    """
    for name, value in found.items():
        if value != wanted[name]:
            raise StoreCorrupt("checkpoint", f"{part} is of {name} {value}, not {wanted[name]}")


# -- the checkpoints of a run ------------------------------------------------------------------------------------


def load_written(
    folder: Path, written: CheckpointWritten, *, run_id: str | None = None, disk: Disk = DISK
) -> dict[str, Any]:
    """Load the checkpoint that a record of the journal names.

    Args:
        run_id: Id of the checkpoint's run. Another run is an error. None: any run.

    Raises:
        CheckpointCorrupt: the file is damaged, or its content differs from the record.
        MemoryError: see `load`.
    """
    path = folder / written.file
    content = load(path, written.length, written.crc, written.algorithm, disk=disk)
    record = {"fence": written.fence, "step": written.step, "generation": written.generation}
    try:
        host = from_plain(content["trainer"])
        inner = {"topology_digest": topology_digest(host.topology), "weights_crc32c": state_crc32c(host.tensors)}
        _check_equal("its record", record, content)
        _check_equal("its network", inner, vars(written))
        if run_id is not None:
            _check_equal("this run", {"run_id": run_id}, content)
    except StoreCorrupt as error:
        raise CheckpointCorrupt(str(path), error.reason) from error
    return content


def verify_all(folder: Path, written: Sequence[CheckpointWritten]) -> list[dict[str, Any]]:
    """Return {file, fence, ok, reason} for each record. `ok` is True if its checkpoint loads. Changes no file."""
    return [_verdict(folder, one) for one in written]


def _verdict(folder: Path, written: CheckpointWritten) -> dict[str, Any]:
    found: dict[str, Any] = {"file": written.file, "fence": written.fence, "ok": True, "reason": None}
    try:
        load_written(folder, written)
    except CheckpointCorrupt as error:
        found |= {"ok": False, "reason": error.reason}
    return found


MACHINES = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM})
"""Error numbers that do not mean that the file is damaged: the file may be readable later, or for another user."""


Content = dict[str, Any]
"""The values of one checkpoint; see `esper.tolaria.background_save.checkpoint_of`."""


def accept(written: CheckpointWritten, content: Content) -> None:
    """Accept every checkpoint. This is the default trial."""


def restore_latest(
    folder: Path,
    commits: Sequence[CheckpointWritten],
    *,
    run_id: str | None = None,
    trial: Callable[[CheckpointWritten, Content], None] = accept,
) -> tuple[CheckpointWritten, Content]:
    """Return the last checkpoint that loads and passes the trial.

    Each rejected later checkpoint is reported as a severe event. A damaged file is moved to `quarantine/`, unless the
    disk could not read it.

    A file that does not load is damaged. A failed trial alone does not prove damage, because the user's code, a
    library, a setting or the machine may be the cause. After a failed trial, the file counts as damaged only if an
    earlier checkpoint passes its trial and a second trial of the file fails. The earlier checkpoint must be after step
    0, because at step 0 no optimizer has a state.

    Args:
        commits: Records of the committed checkpoints, oldest first.
        run_id: Id of the run of the checkpoints. None: any run.
        trial: Function that raises if the run cannot continue from the values of a checkpoint. It must not change the
            file.

    Raises:
        RestoreImpossible: no checkpoint loads, or no checkpoint after step 0 passes the trial. Files that load are not
            moved.
        CheckpointCorrupt: the system refused to open or read a file for a reason in `MACHINES`. The file is not moved.
        MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: the machine failed while a file was mapped or
            tried. An error with one of these classes among its causes is raised as well.
        StoreWriteFailed: a damaged file cannot be moved.
        Exception: the error of the user's code, if no checkpoint after step 0 passes the trial.
    """
    refused: list[str] = []
    doubted: list[_Tried] = []
    for written in reversed(commits):
        try:
            tried = _Tried(trial, folder, written, load_written(folder, written, run_id=run_id))
        except CheckpointCorrupt as error:
            if _trouble(error) in MACHINES:
                raise
            refused.append(_reject(folder, written, error))
            continue
        if not tried.passes():
            doubted.append(tried)
        elif doubted and written.step == 0:
            break
        else:
            return _first_that_passes(doubted, tried)
    if doubted:
        raise _all_failed(folder, doubted)
    why = f"no checkpoint loads: {'; '.join(refused)}" if refused else "no checkpoint was ever committed"
    raise RestoreImpossible(str(folder), why)


class _Tried:
    """A checkpoint that loads, and the error of its last trial."""

    def __init__(
        self,
        trial: Callable[[CheckpointWritten, Content], None],
        folder: Path,
        written: CheckpointWritten,
        found: Content,
    ) -> None:
        self._trial, self.folder, self.written, self.content = trial, folder, written, found
        self.error: CheckpointCorrupt | None = None

    def passes(self) -> bool:
        """Run the trial, and return whether it passed. If it failed, set `error`.

        Raises:
            CheckpointCorrupt, Exception: the machine failed; see `restore_latest`.
        """
        try:
            self._trial(self.written, self.content)
        except Exception as error:
            if any(map(_is_of_the_machine, causes(error))):
                raise
            file = str(self.folder / self.written.file)
            self.error = CheckpointCorrupt(file, f"cannot be restored: {in_a_line(error)}")
            self.error.__cause__ = error
            if _trouble(self.error) in MACHINES:
                raise self.error from error
            return False
        return True


def _first_that_passes(doubted: Sequence[_Tried], passed: _Tried) -> tuple[CheckpointWritten, Content]:
    """Run the trials of later checkpoints again, after an earlier checkpoint passed.

    Reject each checkpoint that fails again.

    Returns:
        The newest checkpoint that passes now.
    """
    for one in doubted:
        if one.passes():
            return one.written, one.content
        assert one.error is not None, "it does not pass"
        _reject(one.folder, one.written, one.error)
    return passed.written, passed.content


def _all_failed(folder: Path, doubted: Sequence[_Tried]) -> Exception:
    """Return the error for the case that all checkpoints after step 0 fail the trial.

    A user's error takes precedence.
    """
    errors = [one.error for one in doubted if one.error is not None]
    theirs = next((found for error in errors if (found := _user_error(error)) is not None), None)
    if theirs is not None:
        return theirs
    told = "; ".join(f"{one.written.file} {one.error.reason}" for one in doubted if one.error is not None)
    why = f"no checkpoint loads: {told}. These files were not moved; if they are the cause, move them away"
    impossible = RestoreImpossible(str(folder), why)
    impossible.__cause__ = errors[0]
    return impossible


def _is_of_the_machine(error: BaseException) -> bool:
    """Return whether memory or an accelerator failed. The values may then be intact."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch has no class for this error


def _user_error(error: CheckpointCorrupt) -> Exception | None:
    """Return the error of the user's code or settings that made a trial fail.

    None: no cause is an error of the user.
    """
    found = [one for one in causes(error) if isinstance(one, ConfigError | TaskError) or from_their_file(one)]
    return found[-1] if found and isinstance(found[-1], Exception) else None


def _reject(folder: Path, written: CheckpointWritten, error: CheckpointCorrupt) -> str:
    """Report a damaged checkpoint, and move it to quarantine. If the disk cannot read the file, it is not moved.

    Returns:
        File name and reason, for the message.
    """
    file = folder / written.file
    moves = _trouble(error) is None or not file.is_file()
    moved_to = _place_in_quarantine(file) if moves and _is_there(file) else None
    told = {"file": written.file, "fence": written.fence, "reason": error.reason}
    told["moved_to"] = str(moved_to.relative_to(folder.parent)) if moved_to is not None else None
    severe("checkpoint_rejected", Severity.ERROR, **told)
    if moved_to is not None:
        _move(file, moved_to)
    return f"{written.file} {error.reason}"


def _trouble(error: CheckpointCorrupt) -> int | None:
    """Return the error number of a failed read. None: no read failed, or the file is missing."""
    system = next((one for one in causes(error) if isinstance(one, OSError)), None)
    return system.errno if system is not None and not isinstance(system, FileNotFoundError) else None


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _place_in_quarantine(path: Path) -> Path:
    """Return the place of a file in `quarantine/`, under a name that is free there.

    Raises:
        StoreWriteFailed: the folder cannot be read.
    """
    folder = path.parent / QUARANTINE
    try:
        taken = sum(1 for other in folder.iterdir() if other.name.startswith(path.name)) if folder.is_dir() else 0
    except OSError as error:
        raise StoreWriteFailed(str(path), "moving it to quarantine") from error
    return folder / (f"{path.name}.{taken}" if taken else path.name)


def _move(path: Path, moved_to: Path) -> None:
    """Move a file.

    Raises:
        StoreWriteFailed: the file was not moved, or the move is not durable.
    """
    try:
        make_folders(moved_to.parent)
        path.rename(moved_to)
    except OSError as error:
        raise StoreWriteFailed(str(path), "moving it to quarantine") from error
    sync_folder(moved_to.parent)
    sync_folder(path.parent)
