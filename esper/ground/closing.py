"""Reports the first failure. If closing or reporting then fails, too, the later failure becomes a note on the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from esper.errors import text_of


@contextmanager
def noted_on(first: BaseException | None, doing: str) -> Iterator[None]:
    """Return a context for the handling of `first`. An exception in the block becomes a note on `first` and is not
    raised.

    Args:
        first: The first failure. None: nothing has failed, so an exception in the block is raised.
        doing: The action in words for the note, such as "closing the journal".
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
    """Return a context that calls `close` at its end. If the block raised, a failure of `close` becomes a note on its
    exception."""
    try:
        yield
    except BaseException as error:
        with noted_on(error, doing):
            close()
        raise
    close()


class Closing:
    """A context manager that calls `close` at its end. A failure of `close` does not replace the block's exception."""

    def close(self) -> None:
        """Release all resources. May be called twice."""
        raise AssertionError("a subclass must define `close`")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noted_on(error, f"closing {type(self).__name__}"):
            self.close()
