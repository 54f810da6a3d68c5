"""A failure and a seed's fate, as they are written down."""

from __future__ import annotations

import json

from esper.archive.summary import failure, fate
from esper.errors import PolicyFailed
from esper.leyline.stages import Stage
from esper.leyline.state import SeedState


def test_a_failure_says_its_class_its_message_and_what_caused_it() -> None:
    error = PolicyFailed("p", 3)
    error.__cause__ = ValueError("no idea")
    told = failure(error)
    assert told["error"] == "PolicyFailed"
    assert "p failed at fence 3" in told["message"]
    assert told["cause"] == "ValueError: no idea"
    assert failure(KeyError("x"))["cause"] == ""
    json.dumps(told)


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
