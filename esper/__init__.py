"""esper: neural networks that grow while they train, in a runtime that never hides a failure.

`run` trains a `Task` under a `RunConfig`, `InProcess` or `OnRay`; `resume` continues a run from its directory; both
return a `Result`. `load` returns the grown network of a run directory.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.config.joined import RunConfig
    from esper.export.loading import load
    from esper.flow.entry import resume, run
    from esper.flow.places import InProcess, OnRay
    from esper.flow.result import Result
    from esper.kasmina.blueprints.catalogue import blueprint
    from esper.kasmina.blueprints.fallbacks import fell_back
    from esper.leyline.slots import Kind, SlotSpec
    from esper.task import Task

__all__ = [
    "InProcess",
    "Kind",
    "OnRay",
    "Result",
    "RunConfig",
    "SlotSpec",
    "Task",
    "blueprint",
    "fell_back",
    "load",
    "resume",
    "run",
]

_LATER = {
    "InProcess": "esper.flow.places",
    "Kind": "esper.leyline.slots",
    "OnRay": "esper.flow.places",
    "Result": "esper.flow.result",
    "RunConfig": "esper.config.joined",
    "SlotSpec": "esper.leyline.slots",
    "Task": "esper.task",
    "blueprint": "esper.kasmina.blueprints.catalogue",
    "fell_back": "esper.kasmina.blueprints.fallbacks",
    "load": "esper.export.loading",
    "resume": "esper.flow.entry",
    "run": "esper.flow.entry",
}
"""The module of each public name. It is imported on first use of the name."""


def __getattr__(name: str) -> Any:  # Any: whatever the module has
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'esper' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, loaded or not, and the names that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
