"""Marks exceptions of the user's code with the call that raised them, and reports them as errors of the user's code.

Some exceptions of the user's code would not be treated as a failed call: an `EsperError`, `StopIteration`, and
exceptions that are not an `Exception`, for example `SystemExit`. They are replaced by `TheirCodeRaised`, with the
original as its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from esper.errors import EsperError, TaskError, TheirCodeRaised, notes_of, text_of
from esper.user_code.import_paths import is_installed, is_of_esper

P = ParamSpec("P")
T = TypeVar("T")

_TASKS = Path(__file__).parents[1] / "tasks"
_LONGEST = 400
"""Largest number of characters that a message of esper repeats from the user's exception."""


class Call(str):
    """A note on an exception of the user's code. It names the call that raised the exception, and the field of the task
    to which the code belongs.
    """

    field: str
    call: str
    place: str
    """File and line in the user's code. "": not known."""
    step: int | None
    """The optimizer step that failed. None: no step had begun."""

    def __new__(cls, field: str, call: str, place: str = "", step: int | None = None) -> Call:
        """Make the note. Tracebacks show its text."""
        during = f", in step {step}" if step is not None else ""
        note = super().__new__(cls, f"raised by {field}: {call}{during}{f' ({place})' if place else ''}")
        note.field, note.call, note.place, note.step = field, call, place, step
        return note

    def __reduce__(self) -> tuple[type[Call], tuple[str, str, str, int | None]]:
        """Support pickle, because an exception is pickled with its notes."""
        return Call, (self.field, self.call, self.place, self.step)


class TheirCode:
    """A context for one call of the user's code.

    An exception that leaves the context gets a `Call` note, unless it has one.

    Raises:
        TheirCodeRaised: the call raised an exception that a caller would misread (see `means_more`).
        BaseException: any other exception of the call, unchanged, with the note added.
    """

    __slots__ = ("call", "field")

    def __init__(self, field: str, call: str) -> None:
        self.field, self.call = field, call

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Mark an exception, unless an inner context has marked it or esper raised it."""
        if error is not None:
            self._mark(error)

    def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call a function of the user's code within this context, and return its result.

        Training steps use this method, because it costs one call of a Python function, and a `with` statement costs
        two.
        """
        try:
            return function(*arguments, **named)
        except BaseException as error:
            self._mark(error)
            raise

    def _mark(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) or marked(error) is not None:
            return
        call = self.call or _function(error)
        if not call:
            return
        note = Call(self.field, call, _place(error))
        passes = _raised_by_us(error) if means_more(error) else _takes_note(error, note)
        if not passes:
            raised = TheirCodeRaised(self.field, call, exception_in_words(error))
            raised.add_note(note)
            raise raised from error


their_code = TheirCode  # in lower case, because it is used like a function
any_of_their_code = TheirCode("task", "")
"""A context for code that may call the user's code at several places. The name of the call is taken from the traceback.
The context has no state, so it may be nested.
"""


def marked(error: BaseException) -> Call | None:
    """Return the note that `their_code` added to an exception.

    None: the exception has no note, so no call of the user's code raised it.
    """
    return next((note for note in notes_of(error) if isinstance(note, Call)), None)


def tell_step(error: BaseException, step: int) -> None:
    """Add the number of the failed step to the note on an exception of the user's code, if there is one."""
    note = marked(error)
    if note is not None and note.step is None:
        notes = error.__notes__
        notes[notes.index(note)] = Call(note.field, note.call, note.place, step)


def from_their_file(error: BaseException) -> bool:
    """Return whether a call of the user's code raised the exception.

    A frame of the traceback must be in the user's file.
    """
    return marked(error) is not None and any(_is_theirs(frame) for frame in _frames(error))


def means_more(error: BaseException) -> bool:
    """Return whether code that catches the exception would not treat it as a failed call.

    True for an `EsperError`, for the end of an iteration, and for exceptions that are not an `Exception`.
    """
    return isinstance(error, EsperError | StopIteration | StopAsyncIteration) or not isinstance(error, Exception)


@contextmanager
def refused_as_theirs(doing: str = "") -> Iterator[None]:
    """Raise an exception of the user's code as a `TaskError`. Use it before a run has written anything.

    Args:
        doing: Text that is added to the name of the call. It describes work in this call that esper does, and that
            plain training would not do.

    Raises:
        TaskError: the user's code raised. The error names the field, the call, the exception, its file and its line.
        Exception: esper raised an exception, because of a bug. The exception is raised unchanged.
    """
    try:
        with any_of_their_code:
            yield
    except Exception as error:
        raise_as_theirs(error, doing)
        raise


def raise_as_theirs(error: BaseException, doing: str = "") -> None:
    """Raise an exception of the user's code as a `TaskError`. Do nothing if another program part raised it.

    Args:
        doing: See `refused_as_theirs`.

    Raises:
        TaskError: the user's code raised. The error names the field, the call, the exception, its file and its line.
    """
    note = marked(error)
    if note is None or (isinstance(error, EsperError) and not isinstance(error, TheirCodeRaised)):
        return
    call = f"{note.call}, {doing}" if doing else note.call
    if isinstance(error, TheirCodeRaised):
        raise TaskError(note.field, call, error.what) from error.__cause__
    raise TaskError(note.field, call, exception_in_words(error)) from error


def exception_in_words(error: BaseException) -> str:
    """Describe an exception of the user's code in one line: type, message, and place in the user's code."""
    message = " ".join(text_of(error).split())
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    place = (
        "" if isinstance(error, SyntaxError) else _place(error)
    )  # the message of a SyntaxError has its file and line
    return f"it raised {type(error).__name__}{':' if message else ''} {message}".rstrip() + (
        f" ({place})" if place else ""
    )


def _takes_note(error: BaseException, note: Call) -> bool:
    """Add a note, and return whether this succeeded.

    Some exceptions refuse attributes, for example frozen dataclasses.
    """
    try:
        error.__traceback__ = error.__traceback__
        error.add_note(note)
    except Exception:
        return False
    return True


def _raised_by_us(error: BaseException) -> bool:
    """Return whether the innermost frame of the traceback is in a file of esper."""
    frames = _frames(error)
    return bool(frames) and is_of_esper(Path(_file(frames[-1])))


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame in the user's code.

    If there is none, use the innermost frame after esper's last frame.
    """
    frames = _frames(error)
    theirs = [frame for frame in frames if _is_theirs(frame)] or _below_ours(frames)
    return f"{_file(theirs[-1])}, line {theirs[-1].tb_lineno}" if theirs else ""


def _function(error: BaseException) -> str:
    """Return the name of the user's first function after the last frame of esper. "": there is none."""
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
    """Return whether a file belongs to esper. Built-in tasks count as user code."""
    return is_of_esper(file) and not file.is_relative_to(_TASKS)
