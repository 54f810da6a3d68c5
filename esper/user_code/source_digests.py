"""Digests of the source files of a task. No file is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from esper.user_code.task_reference import Reference


def file_digest(reference: Reference) -> str | None:
    """Return the SHA-256, in hex, of the file that defines a task. None: there is no file."""
    return hashlib.sha256(reference.file.read_bytes()).hexdigest() if reference.file is not None else None


def source_digests(reference: Reference) -> dict[str, str]:
    """Return the SHA-256, in hex, of each loaded module in the folder of a task, by its path in the folder.

    The module `__main__`, data files, installed modules and modules of esper are left out.
    """
    if reference.folder is None:
        return {}
    files = {file for name, file in reference.modules().items() if name != "__main__"}
    return {file.relative_to(reference.folder).as_posix(): _sha256(file) for file in sorted(files)}


def changed_source(reference: Reference, digests: Mapping[str, str]) -> Path | None:
    """Return the first file of `digests` that is missing or has changed. None: all files are unchanged."""
    if reference.folder is None:
        return None
    files = ((reference.folder / place, digest) for place, digest in digests.items())
    return next((file for file, digest in files if not file.is_file() or _sha256(file) != digest), None)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
