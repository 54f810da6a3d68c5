"""Gates, admission and a user's policy in one run on actors: told fallbacks, a command with a fallback mark, changed
rates, a return to a fence, a mesh that is incomplete, and one that is absent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import esper
from actors.embedded_ray import EmbeddedRay
from esper import OnRay
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.archive.run_directory import telemetry_folder
from esper.errors import DependencyViolationError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.leyline.reports import Gate, GateReport
from esper.telemetry.events import LOG
from esper.testing import tiny_config
from esper.user_code.task_reference import TASK_FILE, load_task

pytestmark = pytest.mark.slow

TASK = """
from torch import nn

from esper import Kind, blueprint, fell_back
from esper.leyline.commands import sign
from esper.leyline.decisions import RateScale
from esper.leyline.stages import IN_HOST
from esper.tamiyo.command_builder import CommandBuilder
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.testing import tiny_task


class Work(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        nn.init.zeros_(self[2].weight)
        nn.init.zeros_(self[2].bias)


class Telling(Work):
    def forward(self, h):
        fell_back(self, "the fast kernel is missing")
        return super().forward(h)


@blueprint("telling", kinds=(Kind.NC,), risk=0.1)
def telling(spec):
    return Telling()


@blueprint("upstairs", kinds=(Kind.NC,), risk=0.1, mesh=lambda slot: (slot, "attic"))
def upstairs(spec):
    return Work()


@blueprint("marked", kinds=(Kind.NC,), risk=0.5)
def marked(spec):
    return Work()


@blueprint("homeless", kinds=(Kind.NC,), risk=0.9, mesh=lambda slot: ())
def homeless(spec):
    return Work()


GERMINATE = CommandBuilder.germinate


def with_a_mark(builder, state, decision):
    command = GERMINATE(builder, state, decision)
    if decision.pairs[0].blueprint_id == "marked":
        command = command.model_copy(update={"fallback_marks": ("rule of thumb",)})
    return command.model_copy(update={"signature": sign(command, builder.key)})


class Meddling(HeuristicPolicy):
    # Tries the blueprints in an order of its own; goes back once; slows each seed in the host at every fence.
    version = "meddling-1"

    def decide(self, state, eligible, past):
        CommandBuilder.germinate = with_a_mark  # in its own process; no decision can ask for a mark
        tried = {report.blueprint_id for report in past}
        names = {"homeless"} if "marked" in tried else {"marked"} if tried > {"telling"} else {"telling", "upstairs"}
        chosen = super().decide(state, [pair for pair in eligible if pair.blueprint_id in names], past)
        live = [seed.seed_id for seed in state.seeds if seed.stage in IN_HOST]
        if live and not state.rollbacks:
            return chosen.model_copy(update={"pairs": (), "hold": None, "go_back_to": state.checkpoints[-1]})
        return chosen.model_copy(update={"rates": tuple(RateScale(seed_id=one, scale=0.5) for one in live)})


def task():
    return tiny_task()
"""


def test_what_no_gate_may_pass_is_culled_and_a_mesh_that_is_absent_ends_the_run(
    embedded: EmbeddedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLUEPRINTS, "_blueprints", dict(BLUEPRINTS._blueprints))  # other tests have their own
    (tmp_path / "mine.py").write_text(TASK)
    task, reference = load_task(f"{tmp_path}/mine.py:task")
    config = tiny_config(
        run__dir=str(tmp_path / "run"),
        growth__blueprints={"*": ["telling", "upstairs", "marked", "homeless"]},
        growth__candidates=2,
        growth__stack=1,
        growth__false_pass=0.9,
        growth__max_tests=10,
        growth__margin=1e-9,
    )
    policy = sys.modules[f"{TASK_FILE}mine"].Meddling(2, 1, 30)
    with pytest.raises(DependencyViolationError) as absent:
        esper.run(task, config, on=OnRay(embedded, policy), reference=reference)
    assert absent.value.missing == "mesh_host_layers missing"

    entries = read_past(tmp_path / "run").entries
    gates = [GateReport.model_validate_json(json.dumps(e.body)) for e in entries if e.kind is RecordKind.GATE]
    failed = [(report.gate, report.reasons) for report in gates if not report.passed]
    assert list(dict.fromkeys(failed)) == [
        (Gate.G0, ("fallback_used",)),
        (Gate.G3, ("mesh_incomplete",)),
        (Gate.G0, ("fallback_requested",)),
    ]
    operations = [entry.body["operation"] for entry in entries if entry.kind is RecordKind.COMMAND]
    assert operations.count("SCALE_RATE") >= 1
    assert [entry.body["tier"] for entry in entries if entry.kind is RecordKind.ROLLED_BACK] == ["fast"]
    assert {entry.body["policy_version"] for entry in entries if entry.kind is RecordKind.COMMAND} == {"meddling-1"}
    told = [json.loads(line) for line in (telemetry_folder(tmp_path / "run") / LOG).read_text().splitlines()]
    assert list(dict.fromkeys((event["name"], event["severity"]) for event in told)) == [
        ("gate_failure", "CRITICAL"),
        ("rollback_fast", "ERROR"),
        ("mesh_coverage_missing", "ERROR"),
        ("gate_failure", "WARNING"),
        ("tamiyo_fallback_requested", "CRITICAL"),
        ("command_validation_failed", "ERROR"),
    ]
