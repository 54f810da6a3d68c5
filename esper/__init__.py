"""esper: neural networks that grow while they train, in a runtime that never hides a failure.

`run` trains a `Task` under a `RunConfig`, `InProcess` or `OnRay`; `resume` continues a run from its directory; both
return a `Result`. `load` returns the grown network of a run directory, `export_network` writes it to a file, and
`prove` repeats a run to compare it. README has a list of all names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.config.joined import RunConfig
    from esper.export.exporting import Exported, export_network
    from esper.export.loading import load
    from esper.flow.entry import resume, run
    from esper.flow.places import InProcess, OnRay
    from esper.flow.progress import Progress
    from esper.flow.proof import Divergence, Proof, prove
    from esper.flow.result import Result
    from esper.flow.stopping import Drain
    from esper.kasmina.blueprints.catalogue import blueprint
    from esper.kasmina.blueprints.fallbacks import fell_back
    from esper.leyline.slots import Kind, SlotSpec
    from esper.task import Task

__all__ = [
    "Divergence",
    "Drain",
    "Exported",
    "InProcess",
    "Kind",
    "OnRay",
    "Progress",
    "Proof",
    "Result",
    "RunConfig",
    "SlotSpec",
    "Task",
    "blueprint",
    "export_network",
    "fell_back",
    "load",
    "prove",
    "resume",
    "run",
]

_LATER = {
    "Divergence": "esper.flow.proof",
    "Drain": "esper.flow.stopping",
    "Exported": "esper.export.exporting",
    "InProcess": "esper.flow.places",
    "Kind": "esper.leyline.slots",
    "OnRay": "esper.flow.places",
    "Progress": "esper.flow.progress",
    "Proof": "esper.flow.proof",
    "Result": "esper.flow.result",
    "RunConfig": "esper.config.joined",
    "SlotSpec": "esper.leyline.slots",
    "Task": "esper.task",
    "blueprint": "esper.kasmina.blueprints.catalogue",
    "export_network": "esper.export.exporting",
    "fell_back": "esper.kasmina.blueprints.fallbacks",
    "load": "esper.export.loading",
    "prove": "esper.flow.proof",
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
