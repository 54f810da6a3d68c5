"""A copy of a run to keep: what it was told, its journals and its checkpoints, verified. The run itself is not touched.

The copy is a run directory: it can be looked at, gone on with and proved like the run it was taken of.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from esper.durable.files import sync_folder
from esper.errors import CheckpointCorrupt, RunDirectoryError, StoreWriteFailed
from esper.history import Past, read_past
from esper.leyline.checkpoints import CheckpointWritten
from esper.run_directory import checkpoints_folder, journals, reports_folder, run_file, summary_file
from esper.tolaria.checkpoint import verify_all


def default_place(run_dir: Path) -> Path:
    """Beside the run, named after it and its last checkpoint."""
    commits = read_past(run_dir).commits
    if not commits:
        raise RunDirectoryError("RUN", str(run_dir), "it has no checkpoint yet; there is nothing to keep")
    return run_dir.with_name(f"{run_dir.name}-fence-{commits[-1].fence}")


def take(run_dir: Path, place: Path) -> tuple[CheckpointWritten, ...]:
    """Copy a run to a new directory and verify the copy; it may be going on meanwhile.

    Returns:
        The checkpoints that were copied, oldest first.

    Raises:
        RunDirectoryError: there is no run, it has no checkpoint yet, or the place is taken. Nothing was written.
        CheckpointCorrupt: a checkpoint is damaged, of the run or of the copy; the copy was removed.
        StoreWriteFailed: the copy could not be written; it was removed.
    """
    if not read_past(run_dir).commits:
        raise RunDirectoryError("RUN", str(run_dir), "it has no checkpoint yet; there is nothing to keep")
    if place.exists():
        raise RunDirectoryError("TO", str(place), "it is there already; choose another")
    draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        past = _copy(run_dir, draft)
        _verify(draft, past)
        draft.rename(place)
        sync_folder(place.parent)
    except OSError as error:
        raise StoreWriteFailed(str(place), "copying a run") from error
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return past.commits


def _copy(run_dir: Path, draft: Path) -> Past:
    """Copy the journals first: what they commit is copied next, or was dropped since and is not asked for."""
    checkpoints_folder(draft).mkdir(parents=True)
    for told in (run_file, summary_file):
        if told(run_dir).exists():
            _copy_file(told(run_dir), told(draft))
    for file in journals(run_dir).values():
        _copy_file(file, draft / file.name)
    if reports_folder(run_dir).is_dir():
        reports_folder(draft).mkdir()
        for file in reports_folder(run_dir).iterdir():
            _copy_file(file, reports_folder(draft) / file.name)
    for file in checkpoints_folder(run_dir).glob("fence-*.pt"):
        try:
            _copy_file(file, checkpoints_folder(draft) / file.name)
        except FileNotFoundError:  # a newer one took its place while we looked
            continue
    return read_past(draft)


def _copy_file(source: Path, copy: Path) -> None:
    shutil.copyfile(source, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(copy.parent)


def _verify(draft: Path, past: Past) -> None:
    for found in verify_all(checkpoints_folder(draft), past.commits):
        if not found["ok"]:
            raise CheckpointCorrupt(found["file"], f"its copy does not load: {found['reason']}")
