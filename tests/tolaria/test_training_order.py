"""The order of the training samples: it follows from run seed and step alone, whichever steps were asked for before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from esper.ground.random_streams import generator, stream_key
from esper.tolaria.training_order import SAMPLES_AHEAD, STEPS_AHEAD, TrainingOrder

SAMPLES = np.arange(100, 130)


def expected(step: int, epoch: int, batch: int) -> list[int]:
    """Return the samples of a step, cut from the sequence of permutations written out."""
    laps = (generator(3, "order", lap).permutation(SAMPLES).tolist() for lap in itertools.count())
    sequence = itertools.chain.from_iterable(laps)
    start = step // (epoch // batch) * epoch + step % (epoch // batch) * batch
    return list(itertools.islice(sequence, start, start + batch))


@pytest.mark.parametrize(("epoch", "batch"), [(30, 7), (30, 1), (16, 5), (30, 30)])
def test_draws_do_not_depend_on_the_steps_asked_for_before(epoch: int, batch: int) -> None:
    order, steps = TrainingOrder(3, SAMPLES, epoch, batch), [*range(90), 2, 70, 3, 0, 89]

    for step in steps:
        assert order.draw(step) == (stream_key(3, "step", step), expected(step, epoch, batch)), step


@pytest.mark.parametrize("batch", [1, 1_000, 5_000])
def test_the_draws_of_many_steps_are_held_in_bounds(batch: int) -> None:
    order = TrainingOrder(0, np.arange(10_000), 10_000, batch)
    order.draw(0)

    assert 1 <= len(order._ahead) <= STEPS_AHEAD
    assert len(order._ahead) * batch <= max(batch, SAMPLES_AHEAD)


def test_the_samples_of_a_later_lap_are_not_shuffled_before_their_step() -> None:
    order = TrainingOrder(0, SAMPLES, 30, 10)
    order.draw(0)

    assert list(order._permutations) == [0]
