"""A registry in a real actor refuses incomplete blends and meshes, and culls for a fallback mark; and so do whole runs.

Whole runs on actors that cull a seed are in test_gates_on_actors.py.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

import esper
from actors.actor_process import await_ready, spawn
from actors.component_handles import kasmina_handle
from actors.embedded_ray import EmbeddedRay
from actors.hosted_components import kasmina
from actors.remote import Remote
from actors.shell import ActorSpec
from actors.task_transport import SentSurvey
from esper import OnRay
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import DependencyViolationError
from esper.ground.clock import SystemClock
from esper.ground.exit_codes import code_of
from esper.leyline.commands import BlendSpec, Candidate, Command, Operation, sign
from esper.leyline.decisions import Decision, Pair
from esper.leyline.ports import Registrar
from esper.leyline.reports import FieldReport, Gate
from esper.leyline.state import RoundState
from esper.setup.assembly import RunKey
from esper.setup.survey import survey_of
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.telemetry.events import LOG
from esper.testing import tiny_config, tiny_task
from esper.user_code.task_reference import Reference

pytestmark = pytest.mark.slow
KEY = RunKey("6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10", 1, b"a key of a test's own, 32 bytes.")
V = (0.5,) * 8

REFUSED: dict[str, tuple[dict[str, Any] | None, tuple[float, ...]]] = {
    "channels missing": ({"mode": "CHANNEL"}, ()),
    "channels of another length": ({"mode": "CHANNEL", "channels": V[:7]}, ()),
    "channels outside [0, 1]": ({"mode": "CHANNEL", "channels": (*V[:7], math.nan)}, ()),
    "confidence_logits missing": ({"mode": "CONFIDENCE"}, (1.0,)),
    "confidence_logits not finite": ({"mode": "CONFIDENCE"}, (1.0, math.inf)),
    "confidence_logits given, not used by GERMINATE": ({"mode": "CONVEX"}, (1.0, 2.0)),
    "blend mode not known": ({"mode": "CROSSFADE"}, ()),
    "alpha_target outside [0, 1]": ({"mode": "CONVEX", "alpha_target": math.nan}, ()),
    "blend spec missing": (None, ()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("telemetry")


@pytest.fixture(scope="module")
def registrar(embedded: EmbeddedRay, folder: Path) -> Iterator[Registrar]:
    del embedded
    sent = SentSurvey.of(survey_of(tiny_task(), tiny_config()), Reference())
    spec = ActorSpec(
        role="kasmina",
        name="kasmina",
        run_id=KEY.run_id,
        generation=1,
        cpus=0.0,
        gpus=0.0,
        threads=1,
        telemetry_folder=folder,
        build=kasmina,
        arguments=(sent, KEY),
    )
    began_s, actor = time.monotonic(), spawn(spec)
    yield kasmina_handle(Remote(spec, actor, await_ready(spec, actor, began_s, 200.0), patience_s=100.0))
    ray.kill(actor)


@pytest.fixture
def command() -> Callable[..., Command]:
    def make(name: str, blend: BlendSpec | None, logits: tuple[float, ...], **changes: Any) -> Command:
        made = Command(
            command_id=name,
            run_id=KEY.run_id,
            generation=1,
            issued_at=SystemClock().now(),
            issued_by="tamiyo",
            operation=Operation.GERMINATE,
            candidates=(Candidate(slot="body", blueprint_id="mlp", seed_id="seed-1"),),
            blend=blend,
            confidence_logits=logits,
            mesh_host_layers=("body",),
            feature_coverage=1.0,
            policy_version="scripted-1",
            nonce=f"nonce of {name}",
        ).model_copy(update=changes)
        return made.model_copy(update={"signature": sign(made, KEY.secret)})

    return make


def test_each_incomplete_blend_is_refused_in_the_actor_and_changes_nothing_there(
    registrar: Registrar, command: Callable[..., Command], folder: Path
) -> None:
    before = registrar.state()
    for missing, (fields, logits) in REFUSED.items():
        blend = BlendSpec(ramp_steps=30, **fields) if fields is not None else None
        with pytest.raises(DependencyViolationError) as caught:
            registrar.receive(command(missing, blend, logits), 1)
        assert caught.value.missing == missing
        assert registrar.state() == before
    told = [json.loads(line) for log in folder.rglob(LOG) for line in log.read_text().splitlines()]
    assert [event["fields"]["missing"] for event in told] == list(REFUSED)
    assert {event["name"] for event in told} == {"command_validation_failed"}
    with pytest.raises(DependencyViolationError) as caught:
        registrar.receive(
            command("without a mesh", BlendSpec(mode="CONVEX", ramp_steps=30), (), mesh_host_layers=()), 1
        )
    assert caught.value.missing == "mesh_host_layers missing"
    assert registrar.state() == before
    plans = registrar.receive(command("sound", BlendSpec(mode="CHANNEL", ramp_steps=30, channels=V), ()), 1).plans
    assert [plan.blend.channels for plan in plans] == [V]


def test_a_fallback_mark_in_a_command_stops_its_candidates_at_g0_in_the_actor(
    registrar: Registrar, command: Callable[..., Command], folder: Path
) -> None:
    marked = command(
        "marked",
        BlendSpec(mode="CONVEX", ramp_steps=30),
        (),
        candidates=(Candidate(slot="body", blueprint_id="mlp", seed_id="seed-2"),),
        fallback_marks=("rule of thumb",),
    )
    registrar.receive(marked, 1)
    answer = registrar.carry_out("marked", 1, ()).answer
    assert [(report.gate, report.reasons) for report in answer.gates] == [(Gate.G0, ("fallback_requested",))]
    assert (answer.order, answer.transitions) == (None, ())
    told = [json.loads(line) for log in folder.rglob(LOG) for line in log.read_text().splitlines()]
    assert [event["name"] for event in told[-2:]] == ["tamiyo_fallback_requested", "gate_failure"]
    assert {event["severity"] for event in told[-2:]} == {"CRITICAL"}


# -- whole runs --------------------------------------------------------------------------------------------------


class Incomplete(HeuristicPolicy):
    """Tries what its parent tries, with a blend that lacks something."""

    version = "incomplete-1"

    def __init__(self, blend: dict[str, Any], logits: tuple[float, ...]) -> None:
        super().__init__(8, 2, 30)
        self.blend, self.figures = BlendSpec(ramp_steps=30, **blend), logits

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        found = super().decide(state, eligible, past)
        return found.model_copy(update={"blend": self.blend, "logits": self.figures}) if found.pairs else found


INCOMPLETE: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "channels missing": ({"mode": "CHANNEL"}, ()),
    "confidence_logits missing (one given": ({"mode": "CONFIDENCE"}, (1.0,)),
    "channels of another length": ({"mode": "CHANNEL", "channels": V[:7]}, ()),
    "confidence_logits missing (none given": ({"mode": "CONFIDENCE"}, ()),
    "a figure that is not finite": ({"mode": "CONFIDENCE"}, (1.0, math.inf)),
}
DONE = {RecordKind.TRANSITION, RecordKind.INCUBATION_BEGUN, RecordKind.PLAN_APPLIED}
"""What follows a command that is not refused."""


@pytest.mark.parametrize(
    "kinds", [list(INCOMPLETE)[:2], pytest.param(list(INCOMPLETE)[2:], marks=pytest.mark.torture)], ids=["few", "rest"]
)
def test_a_policy_s_incomplete_blend_ends_a_whole_run_and_each_resume_of_it_with_exit_3(
    embedded: EmbeddedRay, tmp_path: Path, kinds: list[str]
) -> None:
    path = tmp_path / "run"
    for number, missing in enumerate(kinds):
        on, config = OnRay(embedded, Incomplete(*INCOMPLETE[missing])), tiny_config(run__dir=str(path))
        begin_or_go_on = partial(esper.resume, path, on=on) if number else partial(esper.run, config=config, on=on)
        with pytest.raises(DependencyViolationError, match=re.escape(missing)) as refused:
            begin_or_go_on(task=tiny_task())
        assert code_of(refused.value) == 3
        entries = read_past(path).entries
        assert (entries[-1].kind, entries[-1].body["error"]) == (RecordKind.RUN_FAILED, "DependencyViolationError")
        assert missing in entries[-1].body["message"]
        assert not DONE & {entry.kind for entry in entries}
    result = esper.resume(path, tiny_task(), on=OnRay(embedded, Incomplete({"mode": "CHANNEL", "channels": V}, ())))
    assert {entry.kind for entry in read_past(path).entries} >= DONE
    assert result.seeds
