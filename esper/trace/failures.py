"""Finds the error of a failed span, and whether it began in this span or in a span below."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from esper.trace.otlp_json import NOTHING, Attributes, Span
from esper.trace.span_tree import Node

_OWN = ("exception.type", "exception.message", "exception.stacktrace", "exception.escaped")
EXCEPTION = "exception"
_FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)
_CAUSED = "\nThe above exception was the direct cause of the following exception:\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n"
_BETWEEN = re.compile(f"{_CAUSED}|{_DURING}")
_OF_AN_ACTOR = re.compile(r"\n*(\x1b\[\d+m)?ray::")
"""Matches a part of a traceback that Ray wrote for an actor. Such a part is in a note of the error above it."""
MOST_OF_CAUSE = 12
_INSTALLED = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python3[.\d]*)[/\\]|^<")
"""Matches a file of an installed package or of Python's library, on any machine, and code without a file."""
_ROOT = Path(__file__).parents[2]
_OURS = ("esper", "actors", "drills")


@dataclass(frozen=True)
class Failure:
    """The error of a failed span."""

    error: str
    """Name of its class. "": the span has no exception event and no `error.type`."""
    message: str
    fields: dict[str, Any]
    """The error's own public fields."""
    place: str
    """The innermost place of its traceback: file, line and function. "": it is not known."""
    users_place: str
    """The innermost place that is neither in esper nor in an installed package. "": there is none."""
    notes: tuple[str, ...]
    """The lines that were added to the exception, for example which part of the task raised it."""
    cause: tuple[str, ...]
    """Class and message of the error that was its direct cause, then its notes; at most `MOST_OF_CAUSE` lines. Empty:
    there is none, or it is an error of Ray, whose text is in the message."""
    began_here: bool
    """False: a span below failed with the same error, or the parent did before this span began. The error is the same
    if its class and its message are: a HALT has its reason in the conductor alone, so that both errors are shown."""


def error_class(span: Span) -> str:
    """Return the class of the error of a span, without its module. "": it is not known."""
    told = [span.attributes.get("error.type")]
    told += [event.attributes.get("exception.type") for event in span.events if event.name == EXCEPTION]
    return next((text.rpartition(".")[2] for text in told if isinstance(text, str) and text), "")


def failure_of(node: Node) -> Failure | None:
    """Return the error of a span. None: the span did not fail."""
    span = node.span
    if not span.failed:
        return None
    fields = {key: value for key, value in _exception(span).items() if key not in _OWN}
    began_here = not (_after_its_parent(node) or any(map(_same(node), node.children)))
    trace = _stacktrace(span)
    above, notes = _around_the_message(span, trace)
    place, users = places_of(trace)
    cause = cause_of(above)
    return Failure(error_class(span), _message(span), fields, place, users, notes, cause, began_here)


def cause_of(stacktrace: str) -> tuple[str, ...]:
    """Return what Python printed about the direct cause of the last error of a traceback, below its frames.

    Args:
        stacktrace: Traceback of the error, without its notes: a note may have a traceback with causes of its own.
    """
    before, found, _ = stacktrace.rpartition(_CAUSED)
    if not found or any(text in stacktrace[len(before) + len(found) :] for text in (_CAUSED, _DURING)):
        return ()
    told = (part for part in reversed(re.split(_BETWEEN, before)) if not _OF_AN_ACTOR.match(part))
    lines = next(told, "").splitlines()
    first = next(
        (place for place, line in enumerate(lines) if line and not line.startswith((" ", "Traceback ("))), None
    )
    if first is None or lines[first].startswith("ray."):
        return ()
    kind, colon, message = lines[first].partition(": ")
    return (f"{kind.rpartition('.')[2]}{colon}{message}", *lines[first + 1 : first + MOST_OF_CAUSE])


def places_of(stacktrace: str) -> tuple[str, str]:
    """Return the innermost place of a traceback, and the innermost place in the user's code, each as file, line and
    function. "": there is none.
    """
    frames = _FRAME.findall(stacktrace)
    theirs = [frame for frame in frames if not _INSTALLED.search(frame[0]) and not _is_ours(PurePath(frame[0]))]
    last, users = ("{}, line {}, in {}".format(*found[-1]) if found else "" for found in (frames, theirs))
    return last, users


def _is_ours(file: PurePath) -> bool:
    """Return whether a file is one of esper's. The traceback may be of another machine, with esper in another folder:
    the end of the path decides.
    """
    tails = [file.parts[place:] for place, part in enumerate(file.parts) if part in _OURS]
    return any(_ROOT.joinpath(*tail).is_file() for tail in tails if len(tail) > 1)


def _exception(span: Span) -> Attributes:
    """Return the attributes of the last exception event of a span."""
    return next((event.attributes for event in reversed(span.events) if event.name == EXCEPTION), NOTHING)


def _stacktrace(span: Span) -> str:
    trace = _exception(span).get("exception.stacktrace")
    return trace if isinstance(trace, str) else ""


def _around_the_message(span: Span, trace: str) -> tuple[str, tuple[str, ...]]:
    """Return the traceback of an error up to its message, and the lines after the message: its notes.

    The message may be repeated in a note. An equal message that a further error follows is that of a cause.
    """
    told, message = _exception(span).get("exception.type"), _message(span)
    if not isinstance(told, str):
        return trace, ()
    kind = told.removeprefix("builtins.").removeprefix("__main__.")
    line = f"\n{kind}: {message}\n" if message else f"\n{kind}\n"
    own = re.search(f"{re.escape(line)}(?!{_BETWEEN.pattern})", f"\n{trace}")
    return (trace[: own.start()], tuple(trace[own.end() - 1 :].splitlines())) if own is not None else (trace, ())


def _message(span: Span) -> str:
    message = _exception(span).get("exception.message")
    if isinstance(message, str):
        return message
    kind = error_class(span)
    return span.message.removeprefix(f"{kind}: ") if span.message != kind else ""


def _same(node: Node) -> Callable[[Node], bool]:
    """Return a function that returns whether another span failed with the same class and message of an error."""
    error = error_of(node.span)
    return lambda other: other.span.failed and error_of(other.span) == error


def error_of(span: Span) -> tuple[str, str]:
    """Return the class and the message of the error of a failed span. Equal pairs are the same error."""
    return error_class(span), _message(span)


def _after_its_parent(node: Node) -> bool:
    """Return whether the parent had failed with the same error before this span began."""
    parent = node.parent
    return parent is not None and parent.end_ns <= node.span.start_ns and _same(node)(parent)
