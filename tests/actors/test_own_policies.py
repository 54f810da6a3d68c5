"""A policy of the user's own, in the actors that decide: the spare and a resume get it, too."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stopping import stop

import esper
from actors.embedded_ray import EmbeddedRay
from actors.policy_transport import SentPolicy
from esper import InProcess, OnRay
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import ConfigError
from esper.faults import Fault, FaultSpec
from esper.leyline.commands import BlendSpec
from esper.leyline.decisions import Decision, Pair, RateScale
from esper.leyline.reports import FieldReport
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.policy_check import policy_in_words
from esper.testing import telling, tiny_config, tiny_task

CHANNEL = BlendSpec(
    mode="CHANNEL", ramp_steps=30, schedule="cosine", channels=(0.5, 1.0, 1.0, 0.75, 1.0, 1.0, 0.25, 1.0)
)


class Own(HeuristicPolicy):
    """Goes back once, from fence 9 to the last checkpoint, slows every seed in the host, and blends by channel."""

    name, version = "own", "own-1"

    def __init__(self) -> None:
        super().__init__(8, 2, 30)

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        found = super().decide(state, eligible, past)
        if state.fence == 9 and not state.rollbacks:
            return found.model_copy(update={"pairs": (), "hold": None, "go_back_to": state.checkpoints[-1]})
        live = [seed.seed_id for seed in state.seeds if seed.stage in IN_HOST]
        own: dict[str, Any] = {"rates": tuple(RateScale(seed_id=one, scale=0.5) for one in live)}
        return found.model_copy(update=own | ({"blend": CHANNEL} if found.pairs else {}))


class Unsendable(Own):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Unmakable(Own):
    def __reduce__(self) -> Any:
        return int, ("no number",)


class Another(Own):
    def __reduce__(self) -> Any:
        return dict, ()


@pytest.mark.parametrize(
    ("policy", "field", "value", "mend"),
    [
        (Unsendable(), "policy", "own", "cannot be sent"),
        (Unmakable(), "policy", "own", "cannot be made again"),
        (Another(), "policy", "dict", "name"),
        (Own, "policy", "Own", "give an object"),
        (object(), "policy", "object", "name"),
    ],
)
def test_a_policy_that_cannot_be_sent_is_refused_before_anything_is_written(
    tmp_path: Path, policy: Any, field: str, value: str, mend: str
) -> None:
    with pytest.raises(ConfigError, check=telling(mend, field=field, value=value)):
        esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), on=OnRay(policy=policy))
    assert os.listdir(tmp_path) == []


def test_a_policy_is_made_again_from_its_bytes() -> None:
    sent = SentPolicy.of(Own())
    made = sent.load()
    assert (made.name, made.version, type(made)) == ("own", "own-1", Own)
    assert made is not sent.load()


@pytest.mark.torture
def test_the_spare_and_a_resume_have_the_same_policy_and_the_run_has_the_bits_of_one_process(
    embedded: EmbeddedRay, tmp_path: Path
) -> None:
    whole = esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "whole")), on=InProcess(policy=Own()))
    here = OnRay(embedded, Own())
    config = tiny_config(run__dir=str(tmp_path / "run"))
    kill = FaultSpec(point="tamiyo.decide", fault=Fault.KILL, role="tamiyo", round=4)
    stop(11, tiny_task(), config.model_copy(update={"faults": (kill,)}), on=here)
    with pytest.raises(ConfigError, check=telling("own-1", field="policy", value=policy_in_words(None))):
        esper.resume(tmp_path / "run", tiny_task(), on=OnRay(embedded))
    again = esper.resume(tmp_path / "run", tiny_task(), on=here)
    assert (again.weights_sha256, again.rollbacks, again.restarts) == (whole.weights_sha256, 1, 1)
    commands = [entry.body for entry in read_past(tmp_path / "run").entries if entry.kind is RecordKind.COMMAND]
    assert {command["policy_version"] for command in commands} == {"own-1"}
    assert "SCALE_RATE" in {command["operation"] for command in commands}
    assert {command["blend"]["mode"] for command in commands if command["blend"]} == {"CHANNEL"}
