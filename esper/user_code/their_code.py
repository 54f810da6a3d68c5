"""Which call of the user's code raised, and where. It marks an exception and tells it; it never swallows one.

What would mean something else to esper or to Python than that a call failed is not passed on as it is: an error of
esper's own class, `SystemExit` and its like, `StopIteration`. It becomes `TheirCodeRaised`, with the original as cause.
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
    """Around one call of the user's code: an exception that passes gets a `Call` note, once.

    Raises:
        TheirCodeRaised: the call raised what no caller may take at its word; see `means_more`.
        BaseException: whatever else the call raised, unchanged but for the note.
    """

    __slots__ = ("call", "field")

    def __init__(self, field: str, call: str) -> None:
        self.field, self.call = field, call

    def __enter__(self) -> None:
        """Nothing is prepared: the hot path pays for two method calls."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Mark what passes, unless an inner call is marked already or esper itself raised it."""
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


their_code = TheirCode  # reads as what it surrounds
any_of_their_code = TheirCode("task", "")
"""Around what may call the user's code in ways that are not known: the traceback tells which function.

It may be entered again while it is entered."""


def marked(error: BaseException) -> Call | None:
    """The note that `their_code` left on an exception; None: no call of the user's code raised it."""
    return next((note for note in notes_of(error) if isinstance(note, Call)), None)


def from_their_file(error: BaseException) -> bool:
    """A call of the user's code raised it, and a function of hers was on the way, not the library's alone."""
    return marked(error) is not None and any(_is_theirs(frame) for frame in _frames(error))


def means_more(error: BaseException) -> bool:
    """To whoever catches it an exception means more than a failed call.

    That is an error of esper's own class, what ends an iteration, and what is no `Exception`.
    """
    return isinstance(error, EsperError | StopIteration | StopAsyncIteration) or not isinstance(error, Exception)


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
        with any_of_their_code:
            yield
    except Exception as error:
        raise_as_theirs(error, doing)
        raise


def raise_as_theirs(error: BaseException, doing: str = "") -> None:
    """Raise the error of the task that an exception stands for; return if no call of the user's code raised it.

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
    """An exception of the user's code in one line: its type, its message, and the place in her code."""
    message = " ".join(text_of(error).split())
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    place = "" if isinstance(error, SyntaxError) else _place(error)  # a SyntaxError says itself where it is
    return f"it raised {type(error).__name__}{':' if message else ''} {message}".rstrip() + place


def _takes_note(error: BaseException, note: Call) -> bool:
    """The note was left. A class may refuse what Python sets on what passes, as a frozen dataclass does."""
    try:
        error.__traceback__ = error.__traceback__
        error.add_note(note)
    except Exception:
        return False
    return True


def _raised_by_us(error: BaseException) -> bool:
    """The innermost frame of its traceback is of esper's, also below the user's code."""
    frames = _frames(error)
    return bool(frames) and is_of_esper(Path(_file(frames[-1])))


def _place(error: BaseException) -> str:
    """The innermost frame that lies in no library and not in esper; else the innermost below ours."""
    frames = _frames(error)
    theirs = [frame for frame in frames if _is_theirs(frame)] or _below_ours(frames)
    return f" ({_file(theirs[-1])}, line {theirs[-1].tb_lineno})" if theirs else ""


def _function(error: BaseException) -> str:
    """The function of the user's code that was called first, below all frames of ours; "" if none was."""
    theirs = (frame for frame in _below_ours(_frames(error)) if _is_theirs(frame))
    return next((frame.tb_frame.f_code.co_qualname for frame in theirs), "")


def _frames(error: BaseException) -> list[TracebackType]:
    """Of its traceback, outermost first."""
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
    return file.startswith("<") or is_installed(Path(file))  # "<string>" has no file


def _is_ours(file: Path) -> bool:
    """A file of esper itself; built-in tasks are like a user's own."""
    return is_of_esper(file) and not file.is_relative_to(_TASKS)
