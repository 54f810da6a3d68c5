"""esper: neural networks that grow while they train, by a runtime that never hides a failure."""

from typing import TYPE_CHECKING, Any

from esper.task import Task

if TYPE_CHECKING:
    from esper.loading import load

__all__ = ["Task", "load"]


def __getattr__(name: str) -> Any:  # Any: whatever the module has; what is heavy is imported when it is asked for
    if name == "load":
        from esper.loading import load

        return load
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
