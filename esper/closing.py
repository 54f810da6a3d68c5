"""Keeps the first failure the one that is told: what fails after it, in closing or telling, becomes a note on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from esper.errors import text_of


@contextmanager
def noted_on(first: BaseException | None, doing: str) -> Iterator[None]:
    """Around what is done because `first` was raised: a failure in it becomes a note on `first` and ends there.

    Args:
        first: None if nothing has failed: then a failure passes through.
        doing: What is done, for the note: "closing the journal".
    """
    try:
        yield
    except Exception as second:
        if first is None:
            raise
        if second is not first:
            first.add_note(f"a second failure, while {doing}: {type(second).__name__}: {text_of(second)}")


@contextmanager
def at_the_end(close: Callable[[], None], doing: str) -> Iterator[None]:
    """Call `close` when the block ends, in whatever way; after a failure of the block as `noted_on` does."""
    try:
        yield
    except BaseException as error:
        with noted_on(error, doing):
            close()
        raise
    close()


class Closing:
    """Base of whatever has a `close`: a context manager whose end does not replace the error that ended it."""

    def close(self) -> None:
        """Release what is held. May be called twice."""
        raise AssertionError("a class that is closed says how")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noted_on(error, f"closing {type(self).__name__}"):
            self.close()
