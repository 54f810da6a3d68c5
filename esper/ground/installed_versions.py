"""Installed versions of Python and of packages on which the bits of a run may depend."""

from __future__ import annotations

import platform
from importlib import metadata

VERSIONED = ("esper-runtime", "torch", "numpy", "pydantic", "scipy", "opentelemetry-sdk")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package of `VERSIONED`, by name."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED}}
