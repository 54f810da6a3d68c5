"""The context for work that goes on after the present span has ended."""

from __future__ import annotations

from contextvars import Context, copy_context

from opentelemetry import context, trace


def background_context() -> Context:
    """Return a copy of the present context with its telemetry and role, but without its span.

    A thread or a task that outlives the present span needs this context, because an ended span accepts no events.
    """
    copied = copy_context()
    copied.run(lambda: context.attach(trace.set_span_in_context(trace.INVALID_SPAN)))
    return copied
