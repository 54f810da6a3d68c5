"""The current telemetry, role and span. A role is the name of the component that does the work, for example "kasmina".

A new thread has no current telemetry, role or span. To pass them on, run the function of the thread in
`contextvars.copy_context()`.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, Status, StatusCode
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
    """Return the current telemetry. None: no telemetry is in use."""
    scope = _scope.get()
    return scope.telemetry if scope is not None else None


def current_role() -> str:
    """Return the role of the innermost span with a role, else the role of the telemetry. "": there is no telemetry."""
    scope = _scope.get()
    return scope.role if scope is not None else ""


@contextmanager
def use(telemetry: Telemetry) -> Iterator[Telemetry]:
    """Send spans, counts and severe events to `telemetry` until the block ends."""
    with _scoped(telemetry, telemetry.role):
        yield telemetry


@contextmanager
def span(
    name: str,
    /,
    role: str | None = None,
    *,
    links_to: Iterable[str] = (),
    new_trace: bool = False,
    **attributes: object,
) -> Iterator[Span]:
    """Run the block as a span. An exception of the block is recorded on the span and raised unchanged.

    If telemetry is absent or disabled, the yielded span records nothing, and the surrounding trace stays current.

    Args:
        name: Name of the operation, without ids.
        role: Role of the span, its attribute `esper.role`. None: the current role.
        links_to: Traceparents of messages that were stored, and are handled now. The span is linked to the senders'
            spans. Texts that are no traceparents, and spans of the current trace, are left out.
        new_trace: True: the span has no parent, and begins a trace.
        attributes: Values of any type. Types that OpenTelemetry does not support are recorded as text.
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
            name,
            context=Context() if new_trace else None,
            attributes=told,
            links=_links(links_to),
            record_exception=False,
            set_status_on_exception=False,
        ) as opened,
    ):
        try:
            yield opened
        except GeneratorExit:  # a reader may close a generator early; this is not a failure
            raise
        except BaseException as error:  # also after interrupts, because the trace must show how the work ended
            _record(opened, error)
            raise


def _links(senders: Iterable[str]) -> list[Link]:
    here = trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)
    others = [sender for sender in senders if here not in sender]  # most senders are in this trace; parsing takes time
    found = [trace.get_current_span(_w3c.extract({"traceparent": sender})).get_span_context() for sender in others]
    return [Link(sender) for sender in found if sender.is_valid]


def traceparent() -> str:
    """Return the current span as a W3C traceparent, to be sent in a message. "": there is no span."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return carrier["traceparent"] if carrier else ""


@contextmanager
def continue_from(traceparent: str) -> Iterator[None]:
    """Make the sender's span the parent of the spans of this block.

    Args:
        traceparent: The text from `traceparent()`. "": the sender had no span, and the present parent is used.

    Raises: DependencyViolationError: the text is not empty, and is not a W3C traceparent. The block did not run.
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
    """Return the id of the current trace, 32 hex digits. "": there is no trace."""
    here = trace.get_current_span().get_span_context()
    return trace.format_trace_id(here.trace_id) if here.is_valid else ""


def span_id() -> str:
    """Return the id of the current span, 16 hex digits. "": there is no span."""
    here = trace.get_current_span().get_span_context()
    return trace.format_span_id(here.span_id) if here.is_valid else ""


def plain(value: object, depth: int = 4) -> AnyValue:
    """Convert a value to types that both strict JSON and OpenTelemetry support. The conversion never raises an error.

    Floats that are not finite, other types, and values nested deeper than `depth` containers become text.
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
    """Mark the span as failed by `error`, with the error's public fields.

    It must not raise, because another error would hide `error`.
    """
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
    failed.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {message}" if message else kind.__name__))
