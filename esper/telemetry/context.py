"""Which telemetry, role and span are current, here and across processes. It writes nothing and swallows no exception.

A new thread starts with none of the three: run its target in `contextvars.copy_context()` to keep them.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AnyValue

from esper.errors import DependencyViolationError, text_of

if TYPE_CHECKING:  # setup imports metrics, which imports this file
    from esper.telemetry.setup import Telemetry


class _Scope(NamedTuple):
    telemetry: Telemetry
    role: str


_scope: ContextVar[_Scope | None] = ContextVar("esper_telemetry", default=None)
_w3c = TraceContextTextMapPropagator()


def current() -> Telemetry | None:
    """The telemetry in use here, or None."""
    scope = _scope.get()
    return scope.telemetry if scope is not None else None


def current_role() -> str:
    """The role of the innermost span that has one, else that of the telemetry in use; "" with none in use."""
    scope = _scope.get()
    return scope.role if scope is not None else ""


@contextmanager
def use(telemetry: Telemetry) -> Iterator[Telemetry]:
    """Make `telemetry` the one that spans, counts and severe events go to, until the block ends."""
    with _scoped(telemetry, telemetry.role):
        yield telemetry


@contextmanager
def span(name: str, /, role: str | None = None, **attributes: object) -> Iterator[Span]:
    """Run the block as a span, and put whatever leaves it by exception on record before that goes on, unchanged.

    With no telemetry in use, or a disabled one, the span yielded records nothing; the surrounding trace stays current.

    Args:
        name: What is done, without ids.
        role: Who does it (`esper.role`); None is the role of the surrounding span, else of the process.
        attributes: Values of any type; what OpenTelemetry cannot hold is recorded as its text.
    """
    scope = _scope.get()
    if scope is None or not scope.telemetry.enabled:
        yield INVALID_SPAN
        return
    who = scope.role if role is None else role
    told = {"esper.role": who, **{key: plain(value) for key, value in attributes.items()}}
    with (
        _scoped(scope.telemetry, who),
        scope.telemetry.tracer.start_as_current_span(
            name, attributes=told, record_exception=False, set_status_on_exception=False
        ) as opened,
    ):
        try:
            yield opened
        except GeneratorExit:  # a generator closed early by its reader is not a failure
            raise
        except BaseException as error:  # an interrupt ends the work too, and the trace must say so
            _record(opened, error)
            raise


def traceparent() -> str:
    """The current span as a W3C traceparent, for a message; "" if there is none."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return carrier["traceparent"] if carrier else ""


@contextmanager
def continue_from(traceparent: str) -> Iterator[None]:
    """Make the sender's span the parent of the spans of this block.

    Args:
        traceparent: As `traceparent()` gave it; "" says that the sender had no span and changes nothing.

    Raises:
        DependencyViolationError: the text is neither empty nor a W3C traceparent. The block did not run.
    """
    if not traceparent:
        yield
        return
    sender = trace.get_current_span(_w3c.extract({"traceparent": traceparent}))
    if not sender.get_span_context().is_valid:
        raise DependencyViolationError("trace context", "a W3C traceparent", f"got {traceparent!r}")
    with trace.use_span(sender):
        yield


def trace_id() -> str:
    """The current trace as 32 hex digits; "" if there is none."""
    here = trace.get_current_span().get_span_context()
    return trace.format_trace_id(here.trace_id) if here.is_valid else ""


def span_id() -> str:
    """The current span as 16 hex digits; "" if there is none."""
    here = trace.get_current_span().get_span_context()
    return trace.format_span_id(here.span_id) if here.is_valid else ""


def plain(value: object, depth: int = 4) -> AnyValue:
    """The value as both strict JSON and OpenTelemetry can hold it; it does not raise, whatever the value.

    Floats that are not finite, foreign types, and what lies deeper than `depth` containers become text.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)  # NaN, Infinity, -Infinity
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict) and depth:
        return {text_of(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [plain(item, depth - 1) for item in value]
    return text_of(value)


@contextmanager
def _scoped(telemetry: Telemetry, role: str) -> Iterator[None]:
    token = _scope.set(_Scope(telemetry, role))
    try:
        yield
    finally:
        _scope.reset(token)


def _record(failed: Span, error: BaseException) -> None:
    """Mark the span as failed by `error`, with the error's own public fields. Must not raise: `error` is on its way."""
    if not failed.is_recording():
        return
    kind, message = type(error), text_of(error)
    fields = {key: plain(value) for key, value in vars(error).items() if not key.startswith("_")}
    failed.set_attribute("error.type", kind.__name__)
    failed.add_event(
        "exception",
        {
            **fields,
            "exception.type": f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": message,
            "exception.stacktrace": "".join(traceback.format_exception(error)),
        },
    )
    failed.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {message}"))
