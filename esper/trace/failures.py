"""Finds the error of a failed span, and whether it began in this span or in a span below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from esper.trace.otlp_json import Span
from esper.trace.span_tree import Node

_OWN = ("exception.type", "exception.message", "exception.stacktrace", "exception.escaped")
EXCEPTION = "exception"


@dataclass(frozen=True)
class Failure:
    """The error of a failed span."""

    error: str
    """Name of its class. "": the span has no exception event and no `error.type`."""
    message: str
    fields: dict[str, Any]
    """The error's own public fields."""
    began_here: bool
    """False: a span below failed with the same error, or the parent did before this span began."""


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
    event = next((event for event in reversed(span.events) if event.name == EXCEPTION), None)
    attributes = event.attributes if event is not None else {}
    message = attributes.get("exception.message")
    kind = error_class(span)
    told = message if isinstance(message, str) else span.message.removeprefix(f"{kind}: ")
    fields = {key: value for key, value in attributes.items() if key not in _OWN}
    return Failure(kind, told, fields, not (_after_its_parent(node) or any(map(_same(node), node.children))))


def _same(node: Node) -> Callable[[Node], bool]:
    """Return a function that returns whether another span failed with the same class of error."""
    return lambda other: other.span.failed and error_class(other.span) == error_class(node.span)


def _after_its_parent(node: Node) -> bool:
    """Return whether the parent had failed with the same class of error before this span began."""
    parent = node.parent
    return parent is not None and parent.end_ns <= node.span.start_ns and _same(node)(parent)
