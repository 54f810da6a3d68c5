"""Installed versions of Python and of the packages that the bits of a run may depend on."""

from __future__ import annotations

import platform
from importlib import metadata

VERSIONED = ("esper-runtime", "torch", "numpy", "pydantic", "scipy", "opentelemetry-sdk")


def versions() -> dict[str, str]:
    """Name -> version, of Python and of each package of `VERSIONED`."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED}}
