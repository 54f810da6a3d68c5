"""The emergency word of a run on Ray, in a file that every process of the run maps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from actors.temporary_folders import SHARED_MEMORY, TEMPORARY, make_place
from esper.emergency.word import EmergencyWord
from esper.ground.closing import at_the_end


@contextmanager
def emergency_word() -> Iterator[EmergencyWord]:
    """Create the emergency word of one run, in shared memory if the system has shared memory. Remove the word at the
    end of the block.
    """
    folder = make_place("word", SHARED_MEMORY if SHARED_MEMORY.is_dir() else TEMPORARY)
    path = folder / "word"
    with at_the_end(lambda: shutil.rmtree(folder), "removing the emergency word"), EmergencyWord.create(path) as word:
        yield word
