"""esper: neural networks that grow while they train, by a runtime that never hides a failure."""

from esper.task import Task

__all__ = ["Task"]
