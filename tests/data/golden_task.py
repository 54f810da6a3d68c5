"""The task of the golden run; it never changes, or no later version could go on with that run."""

from esper.testing import tiny_task

__all__ = ["tiny_task"]
