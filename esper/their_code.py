"""Which call of the user's code raised, and where. It marks an exception and tells it; it never swallows one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from esper.errors import EsperError, TaskError
from esper.import_paths import is_installed, is_of_esper

_TASKS = Path(__file__).parent / "tasks"
_LONGEST = 400
"""Characters of an exception's own message that are repeated in ours."""


class Call(str):
    """A note on an exception: the call of the user's code that raised it, and the field of the task to blame."""

    field: str
    call: str

    def __new__(cls, field: str, call: str) -> Call:
        """The note as a traceback shows it."""
        note = super().__new__(cls, f"raised by {field}: {call}")
        note.field, note.call = field, call
        return note

    def __reduce__(self) -> tuple[type[Call], tuple[str, str]]:
        """For pickle: an exception travels with its notes."""
        return Call, (self.field, self.call)


class TheirCode:
    """Around one call of the user's code: an exception that passes gets a `Call` note, once, and goes on as it is."""

    __slots__ = ("call", "field")

    def __init__(self, field: str, call: str) -> None:
        self.field, self.call = field, call

    def __enter__(self) -> None:
        """Nothing is prepared: the hot path pays for two method calls."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Mark what passes, unless an inner call is marked already or the error is one of ours."""
        if isinstance(error, Exception) and not isinstance(error, EsperError) and marked(error) is None:
            error.add_note(Call(self.field, self.call))


their_code = TheirCode  # reads as what it surrounds


def marked(error: BaseException) -> Call | None:
    """The note that `their_code` left on an exception; None: no call of the user's code raised it."""
    notes = error.__notes__ if hasattr(error, "__notes__") else []
    return next((note for note in notes if isinstance(note, Call)), None)


@contextmanager
def refused_as_theirs(doing: str = "") -> Iterator[None]:
    """While nothing is written yet: an exception of the user's code is told as an error of her task.

    Args:
        doing: What the dry run did just then that a run of her own would not do; added to the name of the call.

    Raises:
        TaskError: names the field, the call, the exception, and its file and line. The exception is its cause.
        Exception: what no call of the user's code raised, as it is: a bug of ours.
    """
    try:
        yield
    except Exception as error:
        note = marked(error)
        if isinstance(error, EsperError) or note is None:
            raise
        call = f"{note.call}, {doing}" if doing else note.call
        raise TaskError(note.field, call, exception_in_words(error)) from error


def exception_in_words(error: BaseException) -> str:
    """An exception of the user's code in one line: its type, its message, and the place in her code."""
    message = " ".join(str(error).split())
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    place = "" if isinstance(error, SyntaxError) else _place(error)  # a SyntaxError says itself where it is
    return f"it raised {type(error).__name__}: {message}{place}"


def _place(error: BaseException) -> str:
    """The innermost frame that lies in no library and not in esper; else the innermost below ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [_is_ours(Path(frame.filename)) for frame in frames]
    called = frames[len(ours) - ours[::-1].index(True) :] if True in ours else list(frames)
    outside = [frame for frame, own in zip(frames, ours, strict=True) if not own]
    theirs = [frame for frame in outside if not _is_of_a_library(frame.filename)] or called
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""


def _is_of_a_library(file: str) -> bool:
    return file.startswith("<") or is_installed(Path(file))  # "<string>" has no file


def _is_ours(file: Path) -> bool:
    """A file of esper itself; built-in tasks are like a user's own."""
    return is_of_esper(file) and not file.is_relative_to(_TASKS)
