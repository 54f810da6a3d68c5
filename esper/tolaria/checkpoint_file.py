"""One checkpoint as one file: made durable with its checksum, and loaded only after that holds. No retention here.

What is loaded is weights-only, always: no code in a file can run. A file is opened once; what was verified is what is
read, even if the name was given to another file meanwhile.
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
from esper.tolaria.snapshot_codec import from_plain, nursery_of, topology_digest
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
    """Make a new file of plain values durable. The name must never have been used before.

    Raises:
        StoreWriteFailed: it could not be made durable, or the name is taken; an older file is untouched.
    """
    return write_stream(path, lambda stream: _save_unsummed(dict(content), stream), disk=disk)


def _save_unsummed(content: dict[str, Any], stream: BinaryIO) -> None:
    """torch's format without its own checksums, which its reader never looks at and which take a fifth of the time."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, stream)
    finally:
        torch.serialization.set_crc32_options(before)


def load(path: Path, length: int, crc: int, algorithm: str, *, disk: Disk = DISK) -> dict[str, Any]:
    """Load a file that is still to the bit what was written. Its tensors are mapped, on the CPU, and read when used.

    torch maps a path only; under /proc it opens the very file that was verified. Reading it into memory instead would
    copy the whole model once more, for tensors that are copied into live ones anyway.

    Raises:
        CheckpointCorrupt: whatever is wrong with it, with the file's path and the reason.
    """
    try:
        with open_verified(path, length, crc, algorithm, disk=disk) as file:
            return _checked(_mapped(file))
    except MemoryError:
        raise  # the machine's trouble; the file may be sound
    except StoreCorrupt as error:
        raise CheckpointCorrupt(str(path), error.reason) from error
    except Exception as error:  # torch raises a dozen kinds for a file that it cannot read
        raise CheckpointCorrupt(str(path), f"does not load: {in_a_line(error)}") from error


def _mapped(file: BinaryIO) -> Any:  # Any: whatever was in the file
    """Raises: MemoryError: the system has no room to map it, or no /proc to open it by."""
    try:
        return torch.load(f"/proc/self/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise MemoryError(f"{error} (a verified checkpoint could not be opened)") from error
    except RuntimeError as error:
        if "unable to mmap" not in str(error):
            raise
        raise MemoryError(in_a_line(error)) from error


def _checked(content: Any) -> dict[str, Any]:  # Any: whatever was in the file
    """Raises: StoreCorrupt: the values are not a checkpoint's of this format, or contradict each other."""
    if type(content) is not dict or "format" not in content:
        raise StoreCorrupt("checkpoint", "holds something other than a checkpoint")
    if content["format"] != FORMAT:
        raise StoreCorrupt("checkpoint", f"is of format {content['format']!r}; this program reads {FORMAT}")
    wrong = [name for name, kind in _KINDS.items() if name not in content or type(content[name]) is not kind]
    if wrong:
        raise StoreCorrupt("checkpoint", f"lacks {', '.join(wrong)}")
    for tensor in tensors_of_state(content):  # before memory is asked for: it may claim to be larger than its file
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise StoreCorrupt("checkpoint", f"holds a tensor on device {tensor.device} of layout {tensor.layout}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise StoreCorrupt("checkpoint", f"holds fewer bytes than a tensor of {tuple(tensor.shape)} needs")
    host = from_plain(content["trainer"])  # built again by the caller that restores; here it shows that it can be
    nursery_of(content["nursery"])
    _same("trainer", {"fence": host.fence, "step": host.step}, content)
    if not all(type(name) is type(state) is str for name, state in content["rooms"].items()):
        raise StoreCorrupt("checkpoint", "the state of a room is not text")
    return content


def _same(part: str, found: Mapping[str, object], wanted: Mapping[str, Any]) -> None:  # Any: plain values
    """Raises: StoreCorrupt: a part of a checkpoint says something else than what stands around it."""
    for name, value in found.items():
        if value != wanted[name]:
            raise StoreCorrupt("checkpoint", f"{part} is of {name} {value}, not {wanted[name]}")


# -- the checkpoints of a run ------------------------------------------------------------------------------------


def load_written(
    folder: Path, written: CheckpointWritten, *, run_id: str | None = None, disk: Disk = DISK
) -> dict[str, Any]:
    """Load the checkpoint that a record of the journal names.

    Args:
        run_id: Of the run that it must be of; None: of any.

    Raises:
        CheckpointCorrupt: it is not what was written, or it is another one than the record says.
    """
    path = folder / written.file
    content = load(path, written.length, written.crc, written.algorithm, disk=disk)
    record = {"fence": written.fence, "step": written.step, "generation": written.generation}
    try:
        host = from_plain(content["trainer"])
        inner = {"topology_digest": topology_digest(host.topology), "weights_crc32c": state_crc32c(host.tensors)}
        _same("its record", record, content)
        _same("its network", inner, vars(written))
        if run_id is not None:
            _same("this run", {"run_id": run_id}, content)
    except StoreCorrupt as error:
        raise CheckpointCorrupt(str(path), error.reason) from error
    return content


def verify_all(folder: Path, written: Sequence[CheckpointWritten]) -> list[dict[str, Any]]:
    """For each record {file, fence, ok, reason}: whether its checkpoint loads, else why not. Nothing is changed."""
    return [_verdict(folder, one) for one in written]


def _verdict(folder: Path, written: CheckpointWritten) -> dict[str, Any]:
    found: dict[str, Any] = {"file": written.file, "fence": written.fence, "ok": True, "reason": None}
    try:
        load_written(folder, written)
    except CheckpointCorrupt as error:
        found |= {"ok": False, "reason": error.reason}
    return found


MACHINES = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM})
"""Troubles that say nothing of a file: later, or as somebody else, it may be readable."""


Content = dict[str, Any]
"""The values of one checkpoint; see `esper.tolaria.background_save.checkpoint_of`."""


def accept(written: CheckpointWritten, content: Content) -> None:
    """The trial that every checkpoint passes."""


def restore_latest(
    folder: Path,
    commits: Sequence[CheckpointWritten],
    *,
    run_id: str | None = None,
    trial: Callable[[CheckpointWritten, Content], None] = accept,
) -> tuple[CheckpointWritten, Content]:
    """The last checkpoint that loads and passes the trial. Those after it are said as severe events, and those that are
    damaged are moved to `quarantine/`; a file that the disk cannot read any more stays where it is.

    A file that does not load is damaged. A failed trial alone is no proof of that: the user's code, a library, a
    setting or the machine may be at fault. The file counts as damaged only if an earlier checkpoint passes and the
    trial of this one then fails again. One of step 0 does not count as earlier: no optimizer has a state there.

    Args:
        commits: What the journal committed, oldest first.
        run_id: Of the run that they must be of; None: of any.
        trial: Raises if the run cannot go on from these values. It changes nothing.

    Raises:
        RestoreImpossible: none loads, or none after step 0 passes the trial; the latter are not moved.
        CheckpointCorrupt: the system could not read one for want of files or of permission; it may be readable later.
        MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: the machine failed while one was mapped or tried;
            or an error that one of these caused.
        StoreWriteFailed: a file that does not load cannot be moved away.
        Exception: what the user's code raised, where no checkpoint after step 0 passes the trial.
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
        raise _unproved(folder, doubted)
    why = f"no checkpoint loads: {'; '.join(refused)}" if refused else "no checkpoint was ever committed"
    raise RestoreImpossible(str(folder), why)


class _Tried:
    """One checkpoint that loads, and how its last trial ended."""

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
        """Whether the trial passes now; if not, `error` says why.

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
    """Try the later ones again, now that an earlier one passed; those that fail again are put aside.

    Returns:
        The newest that passes: the failure of its first trial was not its own.
    """
    for one in doubted:
        if one.passes():
            return one.written, one.content
        assert one.error is not None, "it does not pass"
        _reject(one.folder, one.written, one.error)
    return passed.written, passed.content


def _unproved(folder: Path, doubted: Sequence[_Tried]) -> Exception:
    """What to raise where all checkpoints after step 0 fail the trial: the user's own error, if there is one."""
    errors = [one.error for one in doubted if one.error is not None]
    theirs = next((found for error in errors if (found := _theirs(error)) is not None), None)
    if theirs is not None:
        return theirs
    told = "; ".join(f"{one.written.file} {one.error.reason}" for one in doubted if one.error is not None)
    why = f"no checkpoint loads: {told}. These files were left where they are; if they are at fault, move them away"
    impossible = RestoreImpossible(str(folder), why)
    impossible.__cause__ = errors[0]
    return impossible


def _is_of_the_machine(error: BaseException) -> bool:
    """Memory or an accelerator failed: the values that were tried may be sound."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch has no class for it


def _theirs(error: CheckpointCorrupt) -> Exception | None:
    """The error of the user's code or of her settings that a trial failed with; None: the values are to blame."""
    found = [one for one in causes(error) if isinstance(one, ConfigError | TaskError) or from_their_file(one)]
    return found[-1] if found and isinstance(found[-1], Exception) else None


def _reject(folder: Path, written: CheckpointWritten, error: CheckpointCorrupt) -> str:
    """Say that a checkpoint is damaged, and move it away unless the disk cannot read it: a move might fail as well.

    Returns:
        The file and the reason.
    """
    severe("checkpoint_rejected", Severity.ERROR, file=written.file, fence=written.fence, reason=error.reason)
    if _trouble(error) is None or not (folder / written.file).is_file():
        _quarantine(folder / written.file)
    return f"{written.file} {error.reason}"


def _trouble(error: CheckpointCorrupt) -> int | None:
    """What the system said when it could not read the file; None: it could, or there is none."""
    system = next((one for one in causes(error) if isinstance(one, OSError)), None)
    return system.errno if system is not None and not isinstance(system, FileNotFoundError) else None


def _quarantine(path: Path) -> None:
    """Move a file out of the way, to a name that is not taken there; one that is missing stays missing.

    Raises:
        StoreWriteFailed: it is where it was, or the move may be lost by a crash.
    """
    if not (path.exists() or path.is_symlink()):
        return
    folder = path.parent / QUARANTINE
    try:
        make_folders(folder)
        taken = sum(1 for other in folder.iterdir() if other.name.startswith(path.name))
        path.rename(folder / (f"{path.name}.{taken}" if taken else path.name))
    except OSError as error:
        raise StoreWriteFailed(str(path), "moving it to quarantine") from error
    sync_folder(folder)
    sync_folder(path.parent)
