"""Backs up a run. It copies run.json, journals, summary, field reports, checkpoints and the queue of emergency signals,
and verifies the copy.

Telemetry and the record of fired faults are not copied. The run is not changed.

The copy is a run directory, which can be inspected, resumed and proved like the original.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from esper.archive.history import check_sound, read_past
from esper.archive.run_directory import (
    checkpoints_folder,
    emergency_folder,
    journals,
    make,
    refusing,
    reports_folder,
    run_file,
    summary_file,
)
from esper.durable.files import DISK, make_folders, remove_folder, sync_folder
from esper.durable.segments import segments
from esper.emergency.reading import QUEUE
from esper.emergency.requests import INBOX, MOST_BYTES
from esper.errors import CheckpointCorrupt, RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.ground.closing import at_the_end
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.tolaria.checkpoint_file import verify_all


def default_place(run_dir: Path) -> Path:
    """Return the default path of a copy. It is in the parent folder of the run. Its name consists of the names of the
    run and of the last checkpoint.
    """
    return run_dir.with_name(f"{run_dir.name}-fence-{_commits(run_dir)[-1].fence}")


def take(run_dir: Path, to: Path) -> tuple[CheckpointWritten, ...]:
    """Copy a run to a new directory and verify the copy. The run may be in progress.

    Returns:
        The checkpoints that were copied, the oldest first. These files and the name of the directory are durable.

    Raises:
        RunDirectoryError: there is no run, the run has no checkpoint, or `to` exists. Nothing was written.
        StoreCorrupt: a journal is damaged. Nothing was written.
        CheckpointCorrupt: a checkpoint of the run or of the copy is damaged. The copy was removed.
        StoreWriteFailed: the copy could not be written. It was removed.
    """
    _commits(run_dir)
    with refusing("to", to):
        if to.resolve().is_relative_to(run_dir.resolve()):
            raise RunDirectoryError("to", str(to), f"it is inside the run {run_dir}; choose a directory outside")
        if to.exists():
            raise RunDirectoryError("to", str(to), "it exists already; choose another")
        _make_parent(to.parent)
    draft = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        with at_the_end(lambda: remove_folder(draft), "removing the unfinished copy"):
            make_folders(checkpoints_folder(draft))
            _copy(run_dir, draft)
            commits = _commits(draft)
            _verify(draft, commits)
            draft.rename(to)
            sync_folder(to.parent)
    except OSError as error:
        raise StoreWriteFailed(str(to), "copying a run") from error
    return commits


def _make_parent(folder: Path) -> None:
    """Raises: OSError: the system refuses to make it."""
    make(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _commits(run_dir: Path) -> tuple[CheckpointWritten, ...]:
    past = read_past(run_dir)
    check_sound(run_dir, past)
    if not past.commits:
        raise RunDirectoryError("RUN", str(run_dir), "it has no checkpoint yet; there is nothing to copy")
    return past.commits


def _copy(run_dir: Path, draft: Path) -> None:
    """Copy the journals, then the checkpoints that they list.

    If a listed checkpoint is missing, the run has dropped it during the copy, and the journals are copied again.
    """
    newest = None
    while True:
        _copy_words(run_dir, draft)
        commits = read_past(draft).commits
        missing = [written for written in commits if not _copied(written, run_dir, draft)]
        if not missing:
            return
        if commits[-1] == newest:
            raise CheckpointCorrupt(missing[-1].file, "is missing, and the run has committed no newer checkpoint since")
        newest = commits[-1]


def _copy_words(run_dir: Path, draft: Path) -> None:
    """Copy everything except the checkpoints. The journals are copied first. A run writes its summary before RUN_ENDED,
    so a copied RUN_ENDED always has its summary.
    """
    _copy_file(run_file(run_dir), run_file(draft))
    for file in journals(run_dir).values():
        _copy_file(file, draft / file.name)
    if summary_file(run_dir).exists():
        _copy_file(summary_file(run_dir), summary_file(draft))
    if reports_folder(run_dir).is_dir():
        make_folders(reports_folder(draft))
        for file in reports_folder(run_dir).iterdir():
            _copy_file(file, reports_folder(draft) / file.name)
    _copy_inbox(emergency_folder(run_dir) / INBOX, emergency_folder(draft) / INBOX)
    queue = emergency_folder(run_dir) / QUEUE
    if queue.is_dir():
        make_folders(emergency_folder(draft) / QUEUE)
        for file in segments(queue):
            with suppress(FileNotFoundError):  # the run has compacted the log: a newer segment has its signals
                _copy_file(file, emergency_folder(draft) / QUEUE / file.name)


def _copy_inbox(inbox: Path, copy: Path) -> None:
    """Copy the requests that wait. The queue is copied after the requests. So if the run takes a request during the
    copy, the copy of the queue has it.
    """
    if not inbox.is_dir():
        return
    make_folders(copy)
    for file in inbox.iterdir():
        with suppress(FileNotFoundError):  # the run has taken it
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES and not file.name.startswith("."):
                _copy_file(file, copy / file.name)


def _copied(written: CheckpointWritten, run_dir: Path, draft: Path) -> bool:
    """Copy a checkpoint. Do nothing if the run has dropped it."""
    try:
        _copy_file(checkpoints_folder(run_dir) / written.file, checkpoints_folder(draft) / written.file)
    except FileNotFoundError:
        return False
    return True


def _copy_file(source: Path, copy: Path) -> None:
    """Raises: FileNotFoundError: the source was removed. StoreCorrupt: it cannot be read. OSError: the copy failed."""
    try:
        descriptor = DISK.open(source, os.O_RDONLY)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StoreCorrupt(str(source), f"cannot be read: {error.strerror}") from error
    with DISK.reader(descriptor, owned=True) as whole, copy.open("wb") as file:
        shutil.copyfileobj(whole, file, 2**20)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(copy.parent)


def _verify(draft: Path, commits: tuple[CheckpointWritten, ...]) -> None:
    for found in verify_all(checkpoints_folder(draft), commits):
        if not found["ok"]:
            raise CheckpointCorrupt(found["file"], f"its copy does not load: {found['reason']}")
