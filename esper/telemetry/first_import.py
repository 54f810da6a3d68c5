"""Imports OpenTelemetry before the other files of this package do, so that a wrong variable is reported in one line.

OpenTelemetry reads OTEL_PYTHON_CONTEXT when it is imported. If the value is unknown, OpenTelemetry logs a traceback and
uses a default. The import of esper must not fail because of the value, because most parts of esper write no telemetry.
Later, `esper.telemetry.setup.check_environment` refuses a run.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module

from esper.telemetry.environment_checks import CONTEXT, wrong_context


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
