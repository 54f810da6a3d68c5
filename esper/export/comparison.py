"""Compares the outputs of an export with those of the network, for the same inputs and the same random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from esper.errors import TaskError
from esper.export.loading import Loaded
from esper.export.programs import Play
from esper.ground.random_streams import changed_streams, streams
from esper.ground.temporary_rng import temporary_rng
from esper.tolaria.host_building import call_model
from esper.user_code.their_code import refused_as_theirs

THEIR_OWN = "let the forward depend only on weights, buffers, its input and the global random generators"

Explain = Callable[[tuple[str, ...]], str]
"""Names of the global generators from which a forward draws -> the reason why an export of this format draws other
numbers. "": it draws the same numbers."""


def check_outputs(
    loaded: Loaded, batches: list[Any], play: Play, tolerance: float = 0.0, explain: Explain | None = None
) -> None:
    """Compare an export with the network of a run.

    Both get the same inputs, and before each forward the global generators are seeded with the same key. So a network
    that draws random numbers in evaluation, such as a variational autoencoder, is compared for the same numbers. A
    trace has key 0 and no comparison has it: a drawn number that became a constant of the program is found.

    Args:
        batches: Inputs of the network.
        tolerance: Largest allowed difference of an output, divided by its largest absolute value. 0: the same bits.
        explain: None: the export is the same Python code as the network.

    Raises:
        TaskError: the outputs differ for one of the batches, or the export cannot draw the network's random numbers.
    """
    for key, inputs in enumerate(batches, start=1):
        with refused_as_theirs(), torch.no_grad():
            with temporary_rng(key):
                before = streams()
                expected = pytree.tree_leaves(call_model(loaded.task, loaded.network, inputs))
                drawn = changed_streams(before, streams())
            with temporary_rng(key):
                found = pytree.tree_leaves(play(inputs))
        worst = max([0.0, *map(_difference, expected, found)]) if len(found) == len(expected) else float("inf")
        why = explain(drawn) if drawn and explain is not None else ""
        if why or not worst <= tolerance:
            off = f"off by {worst:.1e} of the largest, {tolerance:.0e} is allowed"
            mend = why or (THEIR_OWN if explain is None else f"{THEIR_OWN}, or use --format torch")
            raise TaskError(
                "task.model", type(loaded.network).__name__, f"the export gives other outputs ({off}): {mend}"
            )


def _difference(expected: Any, found: Any) -> float:  # Any: leaves of whatever the user's model gives
    """Return the largest difference between two outputs, divided by the largest absolute value, or by 1 if that is
    larger. The result is 0 only if the outputs are equal."""
    if not isinstance(expected, Tensor):
        return 0.0 if expected == found else float("inf")
    found = torch.as_tensor(found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if torch.equal(expected, found) or not expected.numel():
        return 0.0
    scale = expected.abs().max().double().clamp(min=1.0)
    return float((expected.double() - found.double()).abs().max() / scale)
