"""Imports OpenTelemetry before any other file of this room, so that a wrong variable is reported in one line.

OpenTelemetry reads OTEL_PYTHON_CONTEXT when it is imported. For an unknown value it logs a traceback and uses its
default. The import of esper must not fail for that, since most of esper writes no telemetry; a run is refused later,
by `esper.telemetry.setup.check_environment`.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module

from esper.telemetry.environment import CONTEXT, wrong_context


def _in_one_line(record: logging.LogRecord) -> bool:
    """Replace the traceback for an unknown context by one line: the variable, its value, and how to correct it."""
    record.msg, record.args, record.exc_info = str(wrong_context(os.environ[CONTEXT])), (), None
    return True


_logger = logging.getLogger("opentelemetry.context")
_logger.addFilter(_in_one_line)
try:
    import_module("opentelemetry.context")
finally:
    _logger.removeFilter(_in_one_line)
