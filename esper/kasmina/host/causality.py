"""Finds the slots at which a seed must not read later positions, because the host does not read them either."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from esper.ground.nested import tensors
from esper.kasmina.host.perturbation import Change, is_content, moved, perturbing

POSITIONS = 5
"""Largest number of positions of an input that are changed, one at a time."""


@dataclass(frozen=True)
class Seen:
    """The outputs of one forward."""

    slots: Mapping[str, Tensor]
    """Path of a slot -> its output."""
    results: Sequence[Tensor]
    """The tensors in the output of the whole network, such as logits [B, T, V]."""


Run = Callable[[Change], Seen]


def causal_slots(run: Run, batch_input: Any, batch: int, before: Seen, tolerance: float) -> set[str]:  # Any: see `run`
    """Return the slots [B, T, C] that are causal along at least one input: a change of this input at a position changes
    no earlier position of the slot, but changes the slot.

    One input is enough. A decoder with cross attention reads its whole source at each position, but its targets only up
    to the position. A seed that reads later positions of the decoder would read later targets, which are the answers.

    The positions of a slot can be compared with those of an input only if both have the same length. A slot of another
    length, such as one after a token that the model puts before the others, is causal if the input changes it, and if
    the result of the network is causal along this input and has its length.

    Args:
        run: Applies a change to each tensor of the input, and runs one forward in evaluation mode.
        batch_input: The input that `run` changes: nested tensors.
        batch: Number of samples in the input.
        before: The outputs without a change.
        tolerance: Changes up to this size count as rounding, relative to the largest entry of an output.
    """
    slots = {path for path, output in before.slots.items() if output.dim() == 3}
    lengths = {before.slots[path].shape[1] for path in slots}
    lengths |= {one.shape[1] for one in before.results if one.dim() > 1} if slots else set()
    found = set[str]()
    for length in sorted(lengths):
        inputs = tensors(batch_input)
        places = [place for place, tensor in enumerate(inputs) if is_content(tensor, (batch, length))]
        for group in [places, *([place] for place in places)] if len(places) > 1 else [places]:
            if group and found != slots:
                found |= _Along(run, group, (batch, length), before, tolerance).causal() & slots
    return found


class _Along:
    """The effect of some tensors of the input, which have the same length, on slots and results.

    Args:
        places: The places of the tensors in the order of `tensors`. They are changed together.
        leading: Number of samples, and length.
    """

    def __init__(
        self, run: Run, places: Sequence[int], leading: tuple[int, int], before: Seen, tolerance: float
    ) -> None:
        self._before, self._leading, self._tolerance = before, leading, tolerance
        self._moved, self._leaking = set[str | int](), set[str | int]()
        length = leading[1]
        steps = {1, *(length * part // (POSITIONS - 1) for part in range(1, POSITIONS - 1)), length - 1}
        for t in sorted(steps & set(range(1, length))):
            change = perturbing((slice(None), slice(t, t + 1)), leading)
            self._compare(t, run(_only(places, change)))

    def _compare(self, t: int, after: Seen) -> None:
        """Add the slots and results that a change at position t has moved."""
        results = zip(self._before.results, after.results, strict=False)
        pairs: dict[str | int, tuple[Tensor, Tensor]] = dict(enumerate(results))
        pairs |= {path: (one, after.slots[path]) for path, one in self._before.slots.items() if path in after.slots}
        for key, (one, other) in pairs.items():
            if one.shape != other.shape:
                self._leaking.add(key)
                continue
            changed = moved(one, other, self._tolerance)
            if changed.any():
                self._moved.add(key)
            if self._has_length(one) and changed[:, :t].any():
                self._leaking.add(key)

    def _has_length(self, output: Tensor) -> bool:
        return tuple(output.shape[:2]) == self._leading

    def causal(self) -> set[str]:
        """Return the causal slots."""
        ours = {place for place, one in enumerate(self._before.results) if self._has_length(one)}
        network = bool(ours & self._moved) and not ours & self._leaking
        reached = self._moved - self._leaking
        return {
            path
            for path, output in self._before.slots.items()
            if path in reached and (network or self._has_length(output))
        }


def _only(places: Sequence[int], change: Change) -> Change:
    """Return a function that changes only the tensors at some places. It is for the tensors of one input, in order."""
    order = count()
    return lambda tensor: change(tensor) if next(order) in places else tensor
