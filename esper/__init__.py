"""esper: neural networks that grow while they train, by a runtime that never hides a failure."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.export.loading import load
    from esper.kasmina.blueprints.catalogue import blueprint
    from esper.leyline.slots import Kind, SlotSpec
    from esper.task import Task

__all__ = ["Kind", "SlotSpec", "Task", "blueprint", "load"]

_LATER = {
    "Kind": "esper.leyline.slots",
    "SlotSpec": "esper.leyline.slots",
    "Task": "esper.task",
    "blueprint": "esper.kasmina.blueprints.catalogue",
    "load": "esper.export.loading",
}
"""Public name -> module that has it, imported when the name is asked for."""


def __getattr__(name: str) -> Any:  # Any: whatever the module has
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
