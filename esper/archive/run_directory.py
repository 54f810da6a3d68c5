"""The run directory: the path of each file, and the lease that gives one process the right to write. It reads no
content."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from esper.durable.files import DirectoryLease, make_folders
from esper.errors import RunDirectoryError, StoreWriteFailed
from esper.ground.closing import Closing, noted_on
from esper.ground.workplace import fixed, shown
from esper.leyline.base import is_utf8
from esper.leyline.checkpoint_record import QUARANTINE

DEFAULT_PARENT = Path("runs")
LEASE = "lease"
JOURNAL = re.compile(r"journal-\d+\.log")
LITTER = re.compile(r"\.(run\.json|summary\.json|journal-\d+\.log)\.[0-9a-f]+\.tmp")
"""Name patterns of temporary files that a killed writer may leave."""
WRITTEN = re.compile(
    r"lease|run\.json|summary\.json|report\.html|journal-\d+\.log|faults-\d+\.jsonl"
    r"|checkpoints|telemetry|field_reports|emergency"
)
"""Names of the files and folders of a run. `report.html` is not written yet."""
FOLDERS = frozenset({"checkpoints", "telemetry", "field_reports", "emergency"})
"""The folders among these names. Every other name is the name of a file."""
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""The words for each type of file."""


@contextmanager
def refusing(field: str, path: Path) -> Iterator[None]:
    """Return a context that turns errors of the system about the user's directory into RunDirectoryError.

    Raises:
        RunDirectoryError: the system refuses the access.
    """
    try:
        yield
    except OSError as error:
        at = f" ({error.filename})" if error.filename not in (None, str(path)) else ""
        raise RunDirectoryError(field, shown(path), f"cannot be used: {error.strerror}{at}") from error


class RunDirectory(Closing):
    """The directory of a new or resumed run, claimed for this process until `close`."""

    def __init__(self, path: Path, lease: DirectoryLease) -> None:
        self.path, self._lease = path, lease

    @classmethod
    def create(cls, path: Path | None, now: datetime) -> RunDirectory:
        """Claim an absent or empty directory. By default it is a new directory under `runs/`.

        Raises:
            RunDirectoryError: the directory is in use, not empty, not a directory, or not writable. Nothing in it was
                changed.
        """
        if path is None:
            path = DEFAULT_PARENT / f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
        path = fixed(path)
        _refuse_name("run.dir", path)
        try:
            make(path)
            if not os.access(path, os.W_OK | os.X_OK):
                raise RunDirectoryError("run.dir", shown(path), "not writable; choose another")
            _refuse_links("run.dir", path)
            lease = DirectoryLease(path)
            if not (path / LEASE).exists():
                _refuse_filled(path)  # checked before esper writes a file into the user's directory
            lease.acquire()
            try:
                _refuse_filled(path)
                _sweep(path)
            except BaseException as error:
                with noted_on(error, "giving the lease back"):
                    lease.release()
                raise
        except (FileExistsError, NotADirectoryError) as error:
            raise RunDirectoryError("run.dir", shown(path), "not a directory; choose another") from error
        except OSError as error:
            mend = f"cannot be used: {error.strerror}; choose another"
            raise RunDirectoryError("run.dir", shown(path), mend) from error
        return cls(path, lease)

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """Claim the directory of a run that is resumed.

        Raises:
            RunDirectoryError: the directory has no run, is not writable, or is in use. The message names the process
                that uses it.
        """
        path = fixed(path)
        _refuse_name("RUN", path)
        with refusing("RUN", path):
            if not run_file(path).is_file():
                raise no_run(path)
            _refuse_links("RUN", path)
            lease = DirectoryLease(path)
            lease.acquire()
            try:
                _sweep(path)
            except BaseException as error:
                with noted_on(error, "giving the lease back"):
                    lease.release()
                raise
        return cls(path, lease)

    def close(self) -> None:
        """Release the directory."""
        self._lease.release()


def _refuse_name(field: str, path: Path) -> None:
    """Raises: RunDirectoryError: the path is not UTF-8, so JSON cannot contain it."""
    if not is_utf8(str(path)):
        raise RunDirectoryError(field, shown(path), "its name is not UTF-8; rename it, or choose another")


def _refuse_links(field: str, path: Path) -> None:
    """Raises: RunDirectoryError: a file or folder of the run is a symbolic link."""
    for entry in path.iterdir():
        if WRITTEN.fullmatch(entry.name) and entry.is_symlink():
            mend = f"{entry.name} is a symbolic link to {os.readlink(entry)}; put the file or folder itself there"
            raise RunDirectoryError(field, shown(path), mend)


def misplaced(path: Path) -> dict[str, str]:
    """Return the files and folders of a run that have a wrong type, such as a pipe in place of a file, with a
    description of each.

    Symbolic links are followed, because a run may be read through them.

    Raises:
        OSError: the system refuses to look.
    """
    found = {}
    for entry in sorted(path.iterdir()):
        if WRITTEN.fullmatch(entry.name):
            wanted, there = "a folder" if entry.name in FOLDERS else "a file", _kind_of(entry)
            if there not in (None, wanted):
                found[entry.name] = f"is {there} and has to be {wanted}; move it away and put back the run's own"
    return found


def _kind_of(path: Path) -> str | None:
    """Return the type of the file at a path in words. Symbolic links are followed. Return None if nothing exists at the
    path.
    """
    if path.exists():
        return KINDS[stat.S_IFMT(path.stat().st_mode)]
    return f"a symbolic link to {os.readlink(path)}, which leads nowhere," if path.is_symlink() else None


def refuse_misplaced(path: Path) -> None:
    """Raises: RunDirectoryError: a file or folder of the run has a wrong type; see `misplaced`."""
    with refusing("RUN", path):
        found = misplaced(path) if path.is_dir() else {}
    for name, what in found.items():
        raise RunDirectoryError("RUN", shown(path), f"{name} {what}")


def make(path: Path) -> None:
    """Make a folder, durably, if it does not exist. Raises: OSError: the system refused."""
    try:
        make_folders(path)
    except StoreWriteFailed as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _sweep(path: Path) -> None:
    """Remove the temporary files that killed writers left (see `LITTER`). The caller must have the lease."""
    for file in path.iterdir():
        if LITTER.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _refuse_filled(path: Path) -> None:
    if any(entry.name != LEASE and not LITTER.fullmatch(entry.name) for entry in path.iterdir()):
        raise RunDirectoryError("run.dir", shown(path), "not empty; choose an absent or empty directory")


def no_run(path: Path) -> RunDirectoryError:
    """Return the error for a directory without `run.json`."""
    if path.is_dir() and journals(path):
        mend = "run.json is missing, a run's journals are here: put it back from a copy (`esper snapshot` makes them)"
        return RunDirectoryError("RUN", shown(path), mend)
    return RunDirectoryError("RUN", shown(path), "no run is here (there is no run.json)")


def run_file(path: Path) -> Path:
    """Return the path of `run.json`, the identity of the run."""
    return path / "run.json"


def summary_file(path: Path) -> Path:
    """Return the path of `summary.json`, the result of the run."""
    return path / "summary.json"


def journal_file(path: Path, generation: int) -> Path:
    """Return the path of the journal of one generation."""
    return path / f"journal-{generation}.log"


def journals(path: Path) -> dict[int, Path]:
    """Return the existing journals by generation, the oldest first."""
    return dict(sorted((generation_of(file), file) for file in path.iterdir() if JOURNAL.fullmatch(file.name)))


def generation_of(journal: Path) -> int:
    """Return the generation that the file name of a journal contains."""
    return int(journal.stem.rpartition("-")[2])


def checkpoints_folder(path: Path) -> Path:
    """Return the folder of the checkpoints. Its subfolder `quarantine` is for damaged checkpoints."""
    return path / "checkpoints"


def quarantined(path: Path) -> list[str]:
    """Return the file names of the checkpoints that were moved to quarantine because they did not load."""
    folder = checkpoints_folder(path) / QUARANTINE
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def telemetry_folder(path: Path) -> Path:
    """Return the folder of spans and severe events."""
    return path / "telemetry"


def metrics_file(path: Path) -> Path:
    """Return the path of the file with the address of the run's endpoint for Prometheus. It exists while the endpoint
    is up."""
    return telemetry_folder(path) / "prometheus.json"


def reports_folder(path: Path) -> Path:
    """Return the folder of the field reports."""
    return path / "field_reports"


def emergency_folder(path: Path) -> Path:
    """Return the folder of the emergency signals: the queue, and the inbox for requests from outside."""
    return path / "emergency"


def faults_file(path: Path, generation: int) -> Path:
    """Return the path of the record of faults that fired in a generation. The file exists only if faults were armed."""
    return path / f"faults-{generation}.jsonl"
