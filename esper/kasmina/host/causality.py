"""Finds the slots at which a seed must not read later positions, because the host does not read them either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from esper.ground.nested import tensors
from esper.kasmina.host.perturbation import Change, is_content, moved, perturbing

LATEST = 2
"""Only the latest tested positions that change a slot decide whether it is causal, because a network may read a prefix
whole."""
PARTS = 4
"""Positions are changed at each of these parts of the length, at the second position and at the last, one at a time."""


@dataclass(frozen=True)
class Seen:
    """The outputs of one forward."""

    slots: Mapping[str, Tensor]
    """Path of a slot that has positions -> its output [B, T, ...]."""
    results: Sequence[Tensor]
    """The floating tensors in the output of the whole network, such as logits [B, T, V] or [B, V, T]."""


Run = Callable[[Change], Seen]
Sources = Mapping[int, int]
"""Place of a tensor in the input -> its dimension that has the positions."""


def causal_slots(
    run: Run,
    batch_input: Any,  # Any: see `run`
    batch: int,
    tolerance: float,
    *,
    same_length: bool = False,
    reaches_later: bool = False,
) -> set[str]:
    """Return the slots that are causal: if the input changes at a position, no earlier position of the slot changes.

    A network may read a prefix whole, and predict only what follows. So the `LATEST` of the tested positions that
    change a slot decide.

    It is enough that the slot is causal along one tensor of the input. A decoder with cross attention reads its whole
    source at each position, but its targets only up to the position. A seed that reads later positions of the decoder
    would read later targets, which are the answers. But a tensor that reaches only its own position tells nothing about
    time, so along one of several tensors a change must reach a later position, too: in the slot or in the result.

    The positions of a slot can be compared with those of a tensor only if both have the same length. A slot of another
    length, such as one after a token that the model puts before the others, is causal if the tensor changes it, and if
    the result of the network has the tensor's length, is causal along it, and is changed at later positions.

    Args:
        run: Applies a change to each tensor of the input, and runs one forward in evaluation mode.
        batch_input: The input that `run` changes: nested tensors.
        batch: Number of samples in the input.
        tolerance: Changes up to this size count as rounding, relative to the largest entry of an output.
        same_length: True: only slots that are as long as a tensor of the input, and so show their causality themselves.
        reaches_later: True: a change must reach a later position along all tensors together, too.
    """
    before, found = run(lambda tensor: tensor), set[str]()
    lengths = {output.shape[1] for output in before.slots.values()}
    lengths |= {size for one in before.results for size in one.shape[1:]} if before.slots else set()
    sources_of = {length: _sources(batch_input, batch, length) for length in sorted(lengths)}
    unlike = {path for path, output in before.slots.items() if not sources_of[output.shape[1]]}
    for length, sources in sources_of.items():
        together = dict(sorted(sources, reverse=True))  # of two dimensions of a tensor the first
        alone = [{place: axis} for place, axis in sources] if len(sources) > 1 else []
        for group in (together, *alone):
            undecided = before.slots.keys() - found
            if group and undecided:
                seen = _Along(run, group, (batch, length), before, tolerance, undecided)
                causal = seen.causal(set() if same_length else unlike, reaches_later or group is not together)
                found |= causal & undecided
    return found


def _sources(batch_input: Any, batch: int, length: int) -> list[tuple[int, int]]:  # Any: see `causal_slots`
    """Return place and dimension of the positions, of each tensor of numbers [B, T, ...] or [B, C, T].

    If there is none, boolean tensors are content, such as the notes of a piano roll, and not masks.
    """
    inputs = list(enumerate(tensors(batch_input)))
    turned = [(place, tensor.transpose(1, 2)) for place, tensor in inputs if tensor.dim() == 3]
    ways = [(place, 1, tensor) for place, tensor in inputs] + [(place, 2, tensor) for place, tensor in turned]
    for booleans in (False, True):
        content = [way for way in ways if is_content(way[2], (batch, length), booleans=booleans)]
        if content:
            return [(place, axis) for place, axis, _ in content]
    return []


class _Along:
    """The effect of changes of some tensors of the input on slots and results. All are changed together.

    Args:
        leading: Number of samples, and length of the tensors.
        undecided: The slots of interest.
    """

    def __init__(
        self,
        run: Run,
        sources: Sources,
        leading: tuple[int, int],
        before: Seen,
        tolerance: float,
        undecided: set[str],
    ) -> None:
        self._before, self._leading, self._tolerance = _by_key(before, leading[1]), leading, tolerance
        self._moved, self._leaking, self._later = Counter[str | int](), set[str | int](), set[str | int]()
        length = leading[1]
        steps = {1, *(length * part // PARTS for part in range(1, PARTS)), length - 1}
        for t in sorted(steps & set(range(1, length)), reverse=True):
            self._compare(t, _by_key(run(_changing(sources, t, leading)), length))
            if undecided <= self._leaking:
                break

    def _compare(self, t: int, after: Mapping[str | int, Tensor]) -> None:
        """Add the slots and results that a change at position t has moved."""
        for key, one in self._before.items():
            if key not in after or one.shape != after[key].shape:
                self._leaking.add(key)
                continue
            changed = moved(one, after[key], self._tolerance)
            self._moved[key] += bool(changed.any())
            if self._has_length(one) and changed[:, :t].any() and self._moved[key] <= LATEST:
                self._leaking.add(key)
            if self._has_length(one) and changed[:, t + 1 :].any():
                self._later.add(key)

    def _has_length(self, output: Tensor) -> bool:
        return tuple(output.shape[:2]) == self._leading

    def causal(self, unlike: set[str], reaches_later: bool) -> set[str]:
        """Return the causal slots.

        Args:
            unlike: Slots whose length is that of no tensor of the input. They are judged by the result of the network.
            reaches_later: Whether a change must reach a later position of the slot or of the result.
        """
        results = {key for key, one in self._before.items() if isinstance(key, int) and self._has_length(one)}
        network = bool(results & self._later) and not results & self._leaking
        reached = {key for key, times in self._moved.items() if times}
        own = self._later if reaches_later else reached
        slots = {key: one for key, one in self._before.items() if isinstance(key, str)}
        direct = {key for key, one in slots.items() if self._has_length(one) and (key in own or network)}
        return (direct | (unlike if network else set())) & (reached - self._leaking)


def _by_key(seen: Seen, length: int) -> dict[str | int, Tensor]:
    """Return the outputs of the slots by path, and the results by number. Results [B, V, T] are turned to [B, T, V].
    Their entries that are not finite are 0, because a model may exclude words by -inf.
    """
    found = dict[str | int, Tensor](seen.slots.items())
    for number, result in enumerate(seen.results):
        finite = result.nan_to_num(0.0, 0.0, 0.0)
        last = result.dim() == 3 and result.shape[1] != length and result.shape[2] == length
        found[number] = finite.transpose(1, 2) if last else finite
    return found


def _changing(sources: Sources, t: int, leading: tuple[int, int]) -> Change:
    """Return a function that changes position t of some tensors. It is for the tensors of one input, in order."""
    order, change = count(), perturbing((slice(None), slice(t, t + 1)), leading, booleans=True)

    def at(tensor: Tensor) -> Tensor:
        if (place := next(order)) in sources:
            change(tensor.movedim(sources[place], 1))
        return tensor

    return at
