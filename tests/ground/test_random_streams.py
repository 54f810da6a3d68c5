"""Keyed streams: one use of randomness never meets another, and all that a process draws follows from its key."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from esper.ground.random_streams import generator, seed_on_cpu, seed_process, stream_key

PLACES = [
    (0, "step", ()),
    (1, "step", ()),
    (0, "order", ()),
    (0, "step", (0,)),
    (0, "step", (1,)),
    (0, "step", (0, 1)),
    (0, "step", (1, 0)),
    (0, "step", (10,)),
    (10, "step", ()),
    (0, "slice", ("pick", 1)),
    (0, "slice", ("gate", 1)),
    (0, "slice", ("gate1",)),
]


def drawn() -> tuple[float, float, list[float]]:
    return random.random(), float(np.random.random()), torch.rand(3).tolist()


def test_no_two_uses_share_a_stream() -> None:
    keys = [stream_key(seed, purpose, *place) for seed, purpose, place in PLACES]
    draws = [float(generator(seed, purpose, *place).random()) for seed, purpose, place in PLACES]

    assert len(set(keys)) == len(set(draws)) == len(PLACES)
    assert all(0 <= key < 2**63 for key in keys)  # what torch and Philox both take


def test_a_key_is_the_same_in_every_process_and_version() -> None:
    assert stream_key(0, "step", 7) == 7721007366654585788
    assert generator(0, "order", 0).permutation(8).tolist() == [3, 5, 2, 7, 4, 1, 0, 6]


def test_a_generator_is_its_own_and_begins_anew() -> None:
    random_numbers = generator(3, "slice", "gate", 1).random(5)
    seed_process(0, "step", 1)
    before = drawn()
    seed_process(0, "step", 1)

    assert (generator(3, "slice", "gate", 1).random(5) == random_numbers).all()
    assert drawn() == before  # making and drawing from it moved nothing else


def test_seeding_a_process_makes_python_numpy_and_torch_repeat() -> None:
    seed_process(5, "step", 3)
    first, second = drawn(), drawn()
    seed_process(5, "step", 3)

    assert (drawn(), drawn()) == (first, second)
    assert first != second


@pytest.mark.parametrize("other", [(6, "step", 3), (5, "evaluate", 3), (5, "step", 4)])
def test_another_use_draws_other_numbers_from_each_of_the_three(other: tuple[int, str, int]) -> None:
    seed_process(5, "step", 3)
    one = drawn()
    seed_process(*other)

    assert all(left != right for left, right in zip(one, drawn(), strict=True))


def test_python_s_generator_is_seeded_as_by_its_own_function() -> None:
    key = stream_key(5, "step", 3)
    random.seed(1)
    random.gauss(0, 1)  # leaves a second number for the next call
    seed_on_cpu(key)
    state = random.getstate()
    random.seed(key)

    assert state == random.getstate()


def test_numpy_s_generator_is_seeded_as_by_its_own_function() -> None:
    key = stream_key(5, "step", 3)
    np.random.seed(1)
    np.random.standard_normal()  # leaves a second number for the next call
    seed_on_cpu(key)
    state = np.random.get_state()
    np.random.seed(key & 0xFFFFFFFF)

    assert str(state) == str(np.random.get_state())


@pytest.fixture
def other_numpy():
    usual = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    yield
    np.random.set_bit_generator(usual)


@pytest.mark.usefixtures("other_numpy")
def test_another_kind_of_numpy_s_generator_is_seeded_too() -> None:
    seed_process(5, "step", 3)
    first = np.random.random()
    seed_process(5, "step", 3)

    assert np.random.random() == first
