"""What a run was and came to, as it is written down: identity, tally, result, failure."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from esper.errors import PolicyFailed
from esper.leyline.stages import Stage
from esper.leyline.state import SeedState
from esper.prospect import Prospect, survey
from esper.references import Reference
from esper.summary import Tally, failure, fate, identify, load_identity
from esper.testing import EPOCH, tiny_config, tiny_task


def prospect() -> Prospect:
    return survey(tiny_task(), tiny_config())


def test_an_identity_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    identity = identify(prospect(), "r", 1, Reference("m:t", Path(__file__)), EPOCH)
    identity.save(tmp_path)
    assert load_identity(tmp_path) == identity
    assert identity.task_file_sha256 == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert identity.argv == tuple(sys.argv)
    assert {"python", "torch"} <= identity.versions.keys()


def test_a_task_built_in_place_has_neither_name_nor_digest() -> None:
    identity = identify(prospect(), "r", 1, Reference(), EPOCH)
    assert (identity.task, identity.task_file_sha256) == ("", None)


def test_a_failure_says_its_class_its_message_and_what_caused_it() -> None:
    error = PolicyFailed("p", 3)
    error.__cause__ = ValueError("no idea")
    told = failure(error)
    assert told["error"] == "PolicyFailed"
    assert "p failed at fence 3" in told["message"]
    assert told["cause"] == "ValueError: no idea"
    assert failure(KeyError("x"))["cause"] == ""
    json.dumps(told)


def test_speed_counts_the_time_between_fences_alone_and_is_absent_before_the_first_round() -> None:
    tally = Tally()
    assert tally.steps_per_s is None
    with tally.fence(), tally.waiting():
        pass
    assert tally.steps_per_s is None
    with tally.training(20, 7):
        pass
    with tally.training(20, 9):
        pass
    assert (tally.steps, tally.trainer_flops) == (40, 320)
    assert tally.steps_per_s == 40 / tally.training_s
    assert tally.fence_wait_s <= tally.fences_s


def test_a_round_that_failed_counts_no_steps() -> None:
    tally = Tally()

    def fail() -> None:
        with tally.training(20, 7):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tally.steps, tally.trainer_flops) == (0, 0)


def test_what_was_never_judged_is_absent_from_a_fate() -> None:
    seed = SeedState(
        seed_id="s",
        slot="body",
        blueprint_id="mlp",
        ordinal=None,
        stage=Stage.DORMANT,
        alpha=None,
        since_fence=2,
        due=False,
        command_id="c",
        replica_of=None,
        required_mesh=(),
        parameters=7,
        gain=None,
        z=None,
    )
    found = fate(seed)
    assert (found.blueprint, found.stage, found.gain, found.z, found.parameters) == ("mlp", "DORMANT", None, None, 7)
