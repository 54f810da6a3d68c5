"""Gates and admission in one run on actors: told fallbacks, a mesh that is incomplete, and one that is absent."""

from __future__ import annotations

import json
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
from esper.user_code.task_reference import load_task

pytestmark = pytest.mark.slow

TASK = """
from torch import nn

from esper import Kind, blueprint, fell_back
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


@blueprint("homeless", kinds=(Kind.NC,), risk=0.9, mesh=lambda slot: ())
def homeless(spec):
    return Work()


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
        growth__blueprints={"*": ["telling", "upstairs", "homeless"]},
        growth__candidates=2,
        growth__stack=1,
        growth__false_pass=0.9,
        growth__max_tests=10,
        growth__margin=1e-9,
    )
    with pytest.raises(DependencyViolationError) as absent:
        esper.run(task, config, on=OnRay(embedded), reference=reference)
    assert absent.value.missing == "mesh_host_layers missing"

    entries = read_past(tmp_path / "run").entries
    gates = [GateReport.model_validate_json(json.dumps(e.body)) for e in entries if e.kind is RecordKind.GATE]
    failed = [(report.gate, report.reasons) for report in gates if not report.passed]
    assert list(dict.fromkeys(failed)) == [(Gate.G0, ("fallback_used",)), (Gate.G3, ("mesh_incomplete",))]
    told = [json.loads(line) for line in (telemetry_folder(tmp_path / "run") / LOG).read_text().splitlines()]
    assert list(dict.fromkeys((event["name"], event["severity"]) for event in told)) == [
        ("gate_failure", "CRITICAL"),
        ("mesh_coverage_missing", "ERROR"),
        ("gate_failure", "WARNING"),
        ("command_validation_failed", "ERROR"),
    ]
