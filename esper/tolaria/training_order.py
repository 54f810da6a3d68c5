"""The training samples of each optimizer step, and the key of its random streams.

Both depend only on the run seed and the step. They are computed for many steps at once. A computation for one step at a
time would take ten times as long, because the training between two steps removes this code from the processor's caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from esper.ground.random_streams import generator, stream_key

STEPS_AHEAD, SAMPLES_AHEAD = 64, 4_096
"""Largest number of steps that are computed at once, and largest number of samples in these steps."""

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Draw(NamedTuple):
    """The samples of one optimizer step."""

    key: int
    """Key of the random streams of the step; see `stream_key`."""
    indices: list[int]
    """Indices of the samples in the data set. The list is shared, so a caller must copy it before a change."""


class TrainingOrder:
    """An endless sequence of keyed permutations of the training samples, cut into epochs and batches.

    Each epoch uses the next `epoch_samples` samples of the sequence, in full batches. It does not use the samples of an
    incomplete last batch.
    """

    def __init__(self, run_seed: int, indices: Indices, epoch_samples: int, batch_size: int) -> None:
        self._run_seed, self._indices = run_seed, indices
        self._epoch_samples, self._batch_size = epoch_samples, batch_size
        self.steps_per_epoch = epoch_samples // batch_size
        """Number of full batches in an epoch."""
        self._ahead: dict[int, Draw] = {}
        self._permutations: dict[int, Indices] = {}
        """Lap (number of a permutation) -> permutation. At most two permutations are stored, because a batch may need
        two."""

    def draw(self, step: int) -> Draw:
        """Return the samples and the key of an optimizer step. The caller may request steps in any order."""
        if step not in self._ahead:
            self._ahead = self._draws_from(step)
        return self._ahead[step]

    def _draws_from(self, first: int) -> dict[int, Draw]:
        """Return the draws of step `first` and of some steps after it.

        None of these steps needs a permutation beyond the last one that step `first` needs. So the next permutation is
        computed only when a step needs it. The run may end before this step.
        """
        most = max(1, min(STEPS_AHEAD, SAMPLES_AHEAD // self._batch_size))
        lap = self._last_lap(first)
        return {
            step: Draw(stream_key(self._run_seed, "step", step), self._samples_from(self._start(step)))
            for step in range(first, first + most)
            if self._last_lap(step) == lap
        }

    def _start(self, step: int) -> int:
        """Return the position of a step's first sample in the sequence."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch * self._epoch_samples + place * self._batch_size

    def _last_lap(self, step: int) -> int:
        """Return the lap of a step's last sample."""
        return (self._start(step) + self._batch_size - 1) // len(self._indices)

    def _samples_from(self, position: int) -> list[int]:
        found: list[int] = []
        while len(found) < self._batch_size:
            lap, place = divmod(position + len(found), len(self._indices))
            found += self._permutation(lap)[place : place + self._batch_size - len(found)].tolist()
        return found

    def _permutation(self, lap: int) -> Indices:
        if lap not in self._permutations:
            made = generator(self._run_seed, "order", lap).permutation(self._indices)
            self._permutations = {k: v for k, v in self._permutations.items() if k == lap - 1} | {lap: made}
        return self._permutations[lap]
