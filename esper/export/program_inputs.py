"""Checks that inputs fit a program of `torch.export` or ONNX: only tensors may differ from batch to batch."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from esper.errors import TaskError, shortened
from esper.task import Task

PLAIN = (bool, int, float, str, type(None))
"""Types of values that a program keeps as constants."""

MEND = "give it as a tensor, let `collate` leave it out, or use --format torch"


def check_inputs(task: Task, one: Any, other: Any) -> None:  # Any: inputs of the user's model
    """Compare the inputs of two batches of different sizes.

    Raises:
        TaskError: a part of the input is neither a tensor nor a plain value in tuples, lists and dicts; or it is no
            tensor and differs between the batches, such as a list of texts with one entry per sample.
    """
    field = "task.collate" if task.collate is not None else "task.valid"
    leaves, others = _leaves(one), _leaves(other)
    for (path, leaf), (other_path, other_leaf) in zip_longest(leaves, others, fillvalue=((), None)):
        if path != other_path:
            longer, inputs = (path, one) if len(leaves) > len(others) else (other_path, other)
            part = _at(inputs, longer[:-1])
            how = f"a {type(part).__name__} whose entries differ from batch to batch"
            raise _refused(field, longer[:-1], part, f"it is {how}, and a program fixes all but tensors")
        if isinstance(leaf, Tensor):
            continue
        if not isinstance(leaf, PLAIN):
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise _refused(field, path, leaf, f"a program takes tensors in tuples, lists and dicts, and no {kind}")
        if type(leaf) is not type(other_leaf) or leaf != other_leaf:
            how = f"in another batch it is {shortened(other_leaf)}"
            raise _refused(field, path, leaf, f"{how}, and a program fixes all but tensors")


def _leaves(inputs: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the parts of an input with their paths."""
    return pytree.tree_flatten_with_path(inputs)[0]


def _at(inputs: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        inputs = key.get(inputs)
    return inputs


def _refused(field: str, path: tuple[Any, ...], value: object, why: str) -> TaskError:
    where = f"the input's part {pytree.keystr(path)}" if path else "the input"
    return TaskError(field, value, f"{where}: {why}; {MEND}")
