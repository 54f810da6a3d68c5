"""Marks exceptions of the user's code with the call that raised them, and reports them. It never swallows an exception.

An exception that esper or Python would not treat as a failed call is replaced by `TheirCodeRaised`, with the original
as its cause: an `EsperError`, `StopIteration`, or `SystemExit` and other exceptions that are not an `Exception`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from esper.errors import EsperError, TaskError, TheirCodeRaised, notes_of, text_of
from esper.user_code.import_paths import is_installed, is_of_esper

_TASKS = Path(__file__).parents[1] / "tasks"
_LONGEST = 400
"""Largest number of characters that a message of esper repeats from the user's exception."""


class Call(str):
    """A note on an exception: the call of the user's code that raised it, and the task's field with this code."""

    field: str
    call: str

    def __new__(cls, field: str, call: str) -> Call:
        """Make the note; its text is shown in tracebacks."""
        note = super().__new__(cls, f"raised by {field}: {call}")
        note.field, note.call = field, call
        return note

    def __reduce__(self) -> tuple[type[Call], tuple[str, str]]:
        """Support pickle: an exception is pickled with its notes."""
        return Call, (self.field, self.call)


class TheirCode:
    """A context for one call of the user's code: an exception that leaves it gets a `Call` note, unless it has one.

    Raises:
        TheirCodeRaised: the call raised an exception that a caller would misread (see `means_more`).
        BaseException: any other exception of the call, unchanged except for the note.
    """

    __slots__ = ("call", "field")

    def __init__(self, field: str, call: str) -> None:
        self.field, self.call = field, call

    def __enter__(self) -> None:
        """Do nothing. A class, not a generator context, since this runs in every training step."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Mark an exception, unless an inner call has marked it or esper raised it."""
        if error is None or isinstance(error, KeyboardInterrupt) or marked(error) is not None:
            return
        call = self.call or _function(error)
        if not call:
            return
        note = Call(self.field, call)
        passes = _raised_by_us(error) if means_more(error) else _takes_note(error, note)
        if not passes:
            raised = TheirCodeRaised(self.field, call, exception_in_words(error))
            raised.add_note(note)
            raise raised from error


their_code = TheirCode  # lower case: used like a function in `with` statements
any_of_their_code = TheirCode("task", "")
"""A context for code that may call the user's code at several places; the name of the function comes from the
traceback. The context has no state, so it may be nested.
"""


def marked(error: BaseException) -> Call | None:
    """Return the note that `their_code` added to an exception. None: no call of the user's code raised it."""
    return next((note for note in notes_of(error) if isinstance(note, Call)), None)


def from_their_file(error: BaseException) -> bool:
    """Whether a call of the user's code raised the exception, and its traceback has a frame in a file of the user."""
    return marked(error) is not None and any(_is_theirs(frame) for frame in _frames(error))


def means_more(error: BaseException) -> bool:
    """Whether code that catches the exception would treat it as something other than a failed call.

    True for an `EsperError`, for the end of an iteration, and for exceptions that are not an `Exception`.
    """
    return isinstance(error, EsperError | StopIteration | StopAsyncIteration) or not isinstance(error, Exception)


@contextmanager
def refused_as_theirs(doing: str = "") -> Iterator[None]:
    """Raise an exception of the user's code as a `TaskError`. For use before a run has written anything.

    Args:
        doing: What esper did during the call that the user's own training would not do; added to the name of the call.

    Raises:
        TaskError: names the field, the call, the exception, and its file and line. The exception is its cause.
        Exception: raised by esper, a bug; it is passed on unchanged.
    """
    try:
        with any_of_their_code:
            yield
    except Exception as error:
        raise_as_theirs(error, doing)
        raise


def raise_as_theirs(error: BaseException, doing: str = "") -> None:
    """Raise an exception of the user's code as a `TaskError`; return if no call of the user's code raised it.

    Args:
        doing: As in `refused_as_theirs`.

    Raises:
        TaskError: names the field, the call, the exception, and its file and line. The exception is its cause.
    """
    note = marked(error)
    if note is None or (isinstance(error, EsperError) and not isinstance(error, TheirCodeRaised)):
        return
    call = f"{note.call}, {doing}" if doing else note.call
    if isinstance(error, TheirCodeRaised):
        raise TaskError(note.field, call, error.what) from error.__cause__
    raise TaskError(note.field, call, exception_in_words(error)) from error


def exception_in_words(error: BaseException) -> str:
    """Describe an exception of the user's code in one line: its type, its message, and the line of the user's code."""
    message = " ".join(text_of(error).split())
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    place = (
        "" if isinstance(error, SyntaxError) else _place(error)
    )  # the message of a SyntaxError has its file and line
    return f"it raised {type(error).__name__}{':' if message else ''} {message}".rstrip() + place


def _takes_note(error: BaseException, note: Call) -> bool:
    """Add a note; return whether that worked. Some exceptions refuse attributes, as frozen dataclasses do."""
    try:
        error.__traceback__ = error.__traceback__
        error.add_note(note)
    except Exception:
        return False
    return True


def _raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of the traceback is in a file of esper, even if the user's code called esper."""
    frames = _frames(error)
    return bool(frames) and is_of_esper(Path(_file(frames[-1])))


def _place(error: BaseException) -> str:
    """Return file and line of the user's innermost frame; if there is none, of the innermost frame after esper's last
    one.
    """
    frames = _frames(error)
    theirs = [frame for frame in frames if _is_theirs(frame)] or _below_ours(frames)
    return f" ({_file(theirs[-1])}, line {theirs[-1].tb_lineno})" if theirs else ""


def _function(error: BaseException) -> str:
    """Return the name of the user's first function after the last frame of esper; empty if there is none."""
    theirs = (frame for frame in _below_ours(_frames(error)) if _is_theirs(frame))
    return next((frame.tb_frame.f_code.co_qualname for frame in theirs), "")


def _frames(error: BaseException) -> list[TracebackType]:
    """Return the frames of the traceback, outermost first."""
    found, here = [], error.__traceback__
    while here is not None:
        found.append(here)
        here = here.tb_next
    return found


def _below_ours(frames: list[TracebackType]) -> list[TracebackType]:
    last = max((place for place, frame in enumerate(frames) if _is_ours(Path(_file(frame)))), default=-1)
    return frames[last + 1 :]


def _is_theirs(frame: TracebackType) -> bool:
    file = _file(frame)
    return not (_is_ours(Path(file)) or _is_of_a_library(file))


def _file(frame: TracebackType) -> str:
    return frame.tb_frame.f_code.co_filename


def _is_of_a_library(file: str) -> bool:
    return file.startswith("<") or is_installed(Path(file))  # "<string>" is not a file


def _is_ours(file: Path) -> bool:
    """Whether a file belongs to esper. Built-in tasks count as user code."""
    return is_of_esper(file) and not file.is_relative_to(_TASKS)
