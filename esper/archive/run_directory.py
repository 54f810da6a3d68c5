"""RUN/: who may write there, and where each file lies. It names and claims; what the files say is for others."""

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

DEFAULT_PARENT = Path("runs")
LEASE = "lease"
JOURNAL = re.compile(r"journal-\d+\.log")
LITTER = re.compile(r"\.(run\.json|summary\.json|journal-\d+\.log)\.[0-9a-f]+\.tmp")
"""What is left of a file's writer that was killed."""
WRITTEN = re.compile(
    r"lease|run\.json|summary\.json|report\.html|journal-\d+\.log|faults-\d+\.jsonl"
    r"|checkpoints|telemetry|field_reports|emergency"
)
"""Names of what a run writes, or writes into."""
FOLDERS = frozenset({"checkpoints", "telemetry", "field_reports", "emergency"})
"""Those of them that are folders; the others are files."""
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What may have a name in a folder, by the type in its mode."""


@contextmanager
def refusing(field: str, path: Path) -> Iterator[None]:
    """Around the use of a directory that somebody named.

    Raises:
        RunDirectoryError: the system refuses it.
    """
    try:
        yield
    except OSError as error:
        at = f" ({error.filename})" if error.filename not in (None, str(path)) else ""
        raise RunDirectoryError(field, shown(path), f"cannot be used: {error.strerror}{at}") from error


class RunDirectory(Closing):
    """A new run's directory, claimed for this process until `close`."""

    def __init__(self, path: Path, lease: DirectoryLease) -> None:
        self.path, self._lease = path, lease

    @classmethod
    def create(cls, path: Path | None, now: datetime) -> RunDirectory:
        """Claim an absent or empty directory; by default a new one under `runs/`.

        Raises:
            RunDirectoryError: it is in use, not empty, no directory, or not writable. Nothing in it was changed.
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
                _refuse_filled(path)  # before a file of ours is put into somebody's directory
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
        """Claim the directory of a run that is to go on.

        Raises:
            RunDirectoryError: it holds no run, is in use by the process that is named, or is not writable.
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
        """Give the directory back."""
        self._lease.release()


def _refuse_name(field: str, path: Path) -> None:
    """Raises: RunDirectoryError: the result, which is JSON, could not name the directory."""
    if not is_utf8(str(path)):
        raise RunDirectoryError(field, shown(path), "its name is not UTF-8; choose or give it another")


def _refuse_links(field: str, path: Path) -> None:
    """Raises: RunDirectoryError: a run would write through a symbolic link, into what is not its own."""
    for entry in path.iterdir():
        if WRITTEN.fullmatch(entry.name) and entry.is_symlink():
            mend = f"{entry.name} is a symbolic link to {os.readlink(entry)}; put the file or folder itself there"
            raise RunDirectoryError(field, shown(path), mend)


def misplaced(path: Path) -> dict[str, str]:
    """Names of a run's own files and folders that belong to something else, such as a pipe, and what that is.

    Symbolic links are followed, since a run may be read through them.

    Raises:
        OSError: the system refuses to look.
    """
    found = {}
    for entry in sorted(path.iterdir()):
        if WRITTEN.fullmatch(entry.name):
            wanted, there = "a folder" if entry.name in FOLDERS else "a file", _kind_of(entry)
            if there not in (None, wanted):
                found[entry.name] = f"is {there} and has to be {wanted}; move it away and put back what the run wrote"
    return found


def _kind_of(path: Path) -> str | None:
    """What lies there, in words, behind symbolic links; None where nothing does."""
    if path.exists():
        return KINDS[stat.S_IFMT(path.stat().st_mode)]
    return f"a symbolic link to {os.readlink(path)}, which leads nowhere," if path.is_symlink() else None


def refuse_misplaced(path: Path) -> None:
    """Raises: RunDirectoryError: something else has the name of a file or folder of the run; see `misplaced`."""
    with refusing("RUN", path):
        found = misplaced(path) if path.is_dir() else {}
    for name, what in found.items():
        raise RunDirectoryError("RUN", shown(path), f"{name} {what}")


def make(path: Path) -> None:
    """Make a folder, durably, if it is not there. Raises: OSError: the system refused."""
    try:
        make_folders(path)
    except StoreWriteFailed as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _sweep(path: Path) -> None:
    """Remove what writers of `run.json` left that were killed; the directory is claimed."""
    for file in path.iterdir():
        if LITTER.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _refuse_filled(path: Path) -> None:
    if any(entry.name != LEASE and not LITTER.fullmatch(entry.name) for entry in path.iterdir()):
        raise RunDirectoryError("run.dir", shown(path), "not empty; choose an absent or empty directory")


def no_run(path: Path) -> RunDirectoryError:
    """What to raise where there is no `run.json`."""
    if path.is_dir() and journals(path):
        mend = "run.json is missing, a run's journals are here: put it back from a copy (`esper snapshot` makes them)"
        return RunDirectoryError("RUN", shown(path), mend)
    return RunDirectoryError("RUN", shown(path), "no run is here (there is no run.json)")


def run_file(path: Path) -> Path:
    """`run.json`: what was run."""
    return path / "run.json"


def summary_file(path: Path) -> Path:
    """`summary.json`: what came of it."""
    return path / "summary.json"


def journal_file(path: Path, generation: int) -> Path:
    """The journal of one generation."""
    return path / f"journal-{generation}.log"


def journals(path: Path) -> dict[int, Path]:
    """The journals that are there, by generation, oldest first."""
    return dict(sorted((generation_of(file), file) for file in path.iterdir() if JOURNAL.fullmatch(file.name)))


def generation_of(journal: Path) -> int:
    """The generation that a journal's name says."""
    return int(journal.stem.rpartition("-")[2])


def checkpoints_folder(path: Path) -> Path:
    """Checkpoints, and what became of those that could not be read."""
    return path / "checkpoints"


def telemetry_folder(path: Path) -> Path:
    """Spans and severe events."""
    return path / "telemetry"


def reports_folder(path: Path) -> Path:
    """Field reports."""
    return path / "field_reports"


def faults_file(path: Path, generation: int) -> Path:
    """What was broken on purpose since the run was begun or resumed in a generation; only where faults were armed."""
    return path / f"faults-{generation}.jsonl"
