"""A whole run in one process: what it reaches, what it repeats to the bit, and the story that its journal tells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import THREE
from span_files import ended
from torch import Tensor, nn

from esper import InProcess, resume, run
from esper.archive.journal import FIRST_GENERATION, Entry, RecordKind, read
from esper.archive.run_directory import journal_file, reports_folder, run_file, summary_file, telemetry_folder
from esper.config.joined import load_config
from esper.errors import IsolationViolation, PolicyFailed
from esper.flow import in_process
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint
from esper.kasmina.registry.lifecycle import EDGES
from esper.leyline.ports import Policy
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import IN_HOST, Stage
from esper.leyline.state import RoundState
from esper.setup.assembly import make_kasmina, make_trainer
from esper.setup.survey import survey_of
from esper.tamiyo.field_reports import load_reports
from esper.task import Task
from esper.tasks.digits import task as digits_task
from esper.testing import Bands, ScriptedPolicy, TinyHost, tiny_config, tiny_task
from esper.tolaria.trainer import Trainer
from esper.tolaria.unkept import Unkept
from esper.user_code.process_state import process_state


@dataclass(frozen=True)
class Left:
    """All that a run left behind."""

    path: Path

    @property
    def entries(self) -> list[Entry]:
        entries, errors = read(journal_file(self.path, FIRST_GENERATION))
        assert errors == []
        return entries

    def bodies(self, kind: RecordKind) -> list[dict[str, Any]]:
        return [entry.body for entry in self.entries if entry.kind is kind]

    def lines(self, pattern: str) -> list[dict[str, Any]]:
        files = sorted(telemetry_folder(self.path).glob(pattern))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def spans(self) -> list[dict[str, Any]]:
        return ended(telemetry_folder(self.path))


@dataclass(frozen=True)
class Run(Left):
    """... and what it came to."""

    result: Result
    messages: list[list[str]]
    """What the line asked of Kasmina in each round, from the first round on; across processes each is a message."""


class Watched:
    """A component's object that keeps the name of every call."""

    def __init__(self, component: Any, calls: list[str]) -> None:
        self._component, self._calls = component, calls

    def __getattr__(self, name: str) -> Any:
        self._calls.append(name)
        return getattr(self._component, name)


def carry_out(path: Path, **overrides: Any) -> Run:
    calls: list[str] = []

    class Fences(Quiet):
        def fence(self, state: RoundState, tally: Tally) -> None:
            del state, tally
            calls.append("fence")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esper.flow.in_process.make_kasmina", lambda *arguments: Watched(make_kasmina(*arguments), calls))
        result = run(tiny_task(), tiny_config(run__dir=str(path), **THREE, **overrides), progress=Fences())
    rounds = [list(group) for is_end, group in groupby(calls, "fence".__eq__) if not is_end]
    return Run(path, result, rounds[1 : result.rounds + 1])


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carry_out(tmp_path_factory.mktemp("grown") / "run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carry_out(tmp_path_factory.mktemp("alone") / "run", growth__enabled=False)


# -- what it reaches ---------------------------------------------------------------------------------------------


def test_a_grown_network_ends_far_below_its_twin_with_a_seed_that_stays(grown: Run) -> None:
    result = grown.result
    assert result.twin_test_loss is not None
    assert result.test_loss < 0.5 * result.twin_test_loss < result.start_test_loss
    assert next(seed.stage for seed in result.seeds if seed.stage in IN_HOST) == "FOSSILIZED"
    assert result.params_end == result.params_start + sum(s.parameters for s in result.seeds if s.stage in IN_HOST)


def test_a_run_without_growth_tries_nothing_and_pays_for_nothing(alone: Run) -> None:
    result = alone.result
    assert (result.seeds, result.twin_test_loss, result.twin_weights_sha256) == ((), None, None)
    assert (result.incubator_gflops, result.twin_gflops, result.params_end) == (0.0, 0.0, result.params_start)
    assert alone.bodies(RecordKind.COMMAND) == alone.bodies(RecordKind.DECISION) == []


def test_a_round_in_which_nothing_changes_asks_kasmina_twice(alone: Run) -> None:
    assert alone.messages == [["state", "view"]] * alone.result.rounds


def test_a_run_with_tournaments_sends_four_messages_a_round_on_average_and_never_more_than_seven(grown: Run) -> None:
    asked = [call for calls in grown.messages for call in calls]
    assert {"receive", "carry_out", "advance", "conclude", "compare", "reset"} < set(asked)
    assert len(grown.messages) == grown.result.rounds
    assert len(asked) <= 4 * grown.result.rounds
    assert max(len(calls) for calls in grown.messages) <= 7
    assert all(calls.count("view") == calls.count("state") == 1 for calls in grown.messages)
    assert {call for calls in grown.messages for call in calls if calls.count(call) > 1} <= {"advance"}
    assert grown.messages[-1] == ["state", "view"]  # all has been decided by then


@pytest.mark.parametrize("shard", ["test", "valid"])
def test_the_network_of_a_result_gives_its_losses_with_its_seeds_attached(grown: Run, shard: str) -> None:
    network, samples = grown.result.network, getattr(tiny_task(), shard)
    assert network is not None
    with torch.no_grad():
        inputs, targets = (torch.stack(part) for part in zip(*(samples[i] for i in range(len(samples))), strict=True))
        loss = torch.nn.functional.cross_entropy(network.eval()(inputs), targets)
    assert float(loss) == pytest.approx(getattr(grown.result, f"{shard}_loss"), rel=1e-5)


def test_compute_is_what_the_steps_cost(grown: Run, alone: Run) -> None:
    step = alone.result.trainer_gflops / alone.result.steps
    assert step * 1e9 == pytest.approx(survey_of(tiny_task(), tiny_config()).host_flops)  # test_survey has it by hand
    assert grown.result.trainer_gflops > alone.result.trainer_gflops
    twin_from = grown.bodies(RecordKind.INCUBATION_ENDED)[0]["fence"]
    assert grown.result.twin_gflops == pytest.approx(step * (320 - 20 * twin_from))
    tournaments = sum(b["flops"] for b in grown.bodies(RecordKind.INCUBATION_ENDED))
    assert tournaments < grown.result.incubator_gflops * 1e9 < 2 * tournaments  # probes and comparisons are the rest


class Sheds(TinyHost):
    """Deletes a layer of its own in the third round."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = torch.nn.ReLU()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x_BC: Tensor) -> Tensor:
        self.steps += self.training and torch.is_grad_enabled()
        if self.steps >= 50 and hasattr(self, "spare"):
            del self.spare
        return super().forward(x_BC)


def test_a_required_layer_that_the_host_deletes_on_the_way_is_missed_by_g3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unkept, "check", lambda *_: None)  # the end of the round would refuse such a host
    needy = replace(BLUEPRINTS.get("mlp"), mesh=lambda slot: (slot, "spare"))
    monkeypatch.setitem(BLUEPRINTS._blueprints, "mlp", needy)
    run(tiny_task(model=Sheds, epochs=4), tiny_config(run__dir=str(tmp_path / "run"), **THREE))
    judged = [body for body in Left(tmp_path / "run").bodies(RecordKind.GATE) if body["gate"] == "G3"]
    missing = [check["measured"] for body in judged for check in body["checks"] if check["name"] == "mesh_missing"]
    assert missing != []
    assert set(map(tuple, missing)) == {("spare",)}


REACHED: list[Trainer] = []
"""Live hosts that every seed changes in its calls."""


def reach(*_: object) -> None:
    for live in REACHED:
        live.host.head.weight.data.mul_(0.5)


def reaching_mlp(honest: Blueprint) -> Callable[[SlotSpec], nn.Module]:
    def factory(spec: SlotSpec) -> nn.Module:
        made = honest.factory(spec)
        made.register_forward_hook(reach)
        return made

    return factory


def test_a_fork_that_changes_the_live_host_ends_the_run_and_a_resume_gives_the_bits_of_a_sound_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Result
) -> None:
    def kept(*arguments: Any) -> Trainer:
        REACHED.append(made := make_trainer(*arguments))
        return made

    honest = BLUEPRINTS.get("mlp")
    monkeypatch.setitem(BLUEPRINTS._blueprints, "mlp", replace(honest, factory=reaching_mlp(honest)))
    monkeypatch.setattr(in_process, "make_trainer", kept)
    with pytest.raises(IsolationViolation) as violation:
        run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")))
    monkeypatch.setattr(in_process, "make_trainer", make_trainer)
    REACHED.clear()
    assert (violation.value.blueprint, violation.value.leaves) == ("mlp", ("head.weight of the live host",))
    result = resume(tmp_path / "run", tiny_task())
    assert (result.resumes, result.weights_sha256) == (1, undisturbed.weights_sha256)


# -- what it repeats to the bit ----------------------------------------------------------------------------------


def test_another_seed_gives_other_bits(alone: Run, tmp_path: Path) -> None:
    other = carry_out(tmp_path / "other", growth__enabled=False, run__seed=1)
    assert other.result.weights_sha256 != alone.result.weights_sha256


def test_the_twin_is_to_the_bit_what_a_run_without_growth_trains(grown: Run, alone: Run) -> None:
    assert grown.result.twin_weights_sha256 == alone.result.weights_sha256
    assert grown.result.twin_test_loss == alone.result.test_loss
    assert grown.result.weights_sha256 != alone.result.weights_sha256


def test_telemetry_changes_no_bit(alone: Run, tmp_path: Path) -> None:
    silent = carry_out(tmp_path / "silent", growth__enabled=False, telemetry__enabled=False)
    assert silent.result.weights_sha256 == alone.result.weights_sha256
    assert not telemetry_folder(silent.path).exists()


def test_the_process_gets_its_thread_count_back_also_after_a_failure() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with process_state(before + 1):
            seen.append(torch.get_num_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_run_leaves_the_thread_count_of_its_caller_alone(tmp_path: Path) -> None:
    with process_state(2):
        run(tiny_task(epochs=1), tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False))
        assert torch.get_num_threads() == 2


# -- the story that its journal tells ----------------------------------------------------------------------------


def test_the_journal_begins_with_the_identity_and_ends_with_the_digest(grown: Run) -> None:
    entries = grown.entries
    assert [e.kind for e in entries].count(RecordKind.RUN_STARTED) == 1
    assert entries[0].kind is RecordKind.RUN_STARTED
    assert entries[0].body == json.loads(run_file(grown.path).read_bytes())
    assert entries[-1].kind is RecordKind.RUN_ENDED
    assert entries[-1].body["weights_sha256"] == grown.result.weights_sha256
    counted = entries[-1].body["counters"]
    assert counted["esper.seed.transitions"] == len(grown.bodies(RecordKind.TRANSITION))
    assert counted["esper.command.admissions"] == len(grown.bodies(RecordKind.COMMAND))
    assert "esper.rollbacks" not in counted
    assert json.loads(summary_file(grown.path).read_bytes()) == grown.result.as_json()


def test_every_round_is_in_the_journal_once_and_in_order(grown: Run) -> None:
    assert [body["fence"] for body in grown.bodies(RecordKind.ROUND_ENDED)] == list(range(1, 17))
    assert [body["step"] for body in grown.bodies(RecordKind.ROUND_ENDED)] == list(range(20, 321, 20))


def test_every_transition_follows_an_edge_from_where_the_seed_stood(grown: Run) -> None:
    stages = defaultdict(lambda: Stage.DORMANT)
    for body in grown.bodies(RecordKind.TRANSITION):
        before, after = Stage(body["before"]), Stage(body["after"])
        assert before is stages[body["seed_id"]]
        assert after in EDGES[before]
        stages[body["seed_id"]] = after
    assert {seed.seed_id: seed.stage for seed in grown.result.seeds} == {k: str(v) for k, v in stages.items()}


def test_from_training_on_no_seed_passes_two_stages_at_one_fence(grown: Run) -> None:
    forward = [b for b in grown.bodies(RecordKind.TRANSITION) if b["after"] in ("BLENDING", *map(str, IN_HOST))]
    moves = [(body["seed_id"], body["fence"]) for body in forward]
    assert len(moves) == len(set(moves)) >= 8


def test_a_command_stands_before_the_gates_it_lets_judge_and_those_before_what_follows(grown: Run) -> None:
    commands: set[str] = set()
    judged: set[tuple[str, str]] = set()
    for entry in grown.entries:
        if entry.kind is RecordKind.COMMAND:
            commands.add(entry.body["command_id"])
        if entry.kind is RecordKind.GATE:
            judged.add((entry.body["seed_id"], entry.body["gate"]))
        if entry.kind is RecordKind.TRANSITION:
            assert entry.body["command_id"] in commands
            if entry.body["cause"].startswith("G"):
                assert (entry.body["seed_id"], entry.body["cause"]) in judged


def test_a_seed_in_the_host_has_passed_every_gate(grown: Run) -> None:
    gates = defaultdict(list)
    for body in grown.bodies(RecordKind.GATE):
        failed = [c for c in body["checks"] if c["at_least"] is not None and c["measured"] < c["at_least"]]
        assert failed == [] or body["gate"] == "G2"
        gates[body["seed_id"]].append(body["gate"])
    inside = [seed for seed in grown.result.seeds if seed.stage == "FOSSILIZED"]
    assert len(inside) == 2
    for seed in inside:
        assert gates[seed.seed_id] == ["G0", "G1", "G2", "G3", "G4", "G4"]


def test_each_graft_is_in_the_journal_with_the_step_and_size_it_led_to(grown: Run) -> None:
    grafted = [b["seed_id"] for b in grown.bodies(RecordKind.TRANSITION) if b["after"] == "BLENDING"]
    receipts = [b for b in grown.bodies(RecordKind.PLAN_APPLIED) if b["seed_id"] in grafted]
    sizes = [b["parameters"] for b in receipts]
    assert sizes == sorted(sizes)
    assert sizes[-1] == grown.result.params_end
    assert [b["seed_id"] for b in receipts[: len(grafted)] if b["step"] == 40] == grafted[:1]


def test_the_live_host_is_compared_with_its_twin_while_a_seed_is_watched(grown: Run) -> None:
    compared = [body["fence"] for body in grown.bodies(RecordKind.TWIN_COMPARED)]
    fossil = max(b["fence"] for b in grown.bodies(RecordKind.TRANSITION) if b["after"] == "FOSSILIZED")
    shadow = min(b["fence"] for b in grown.bodies(RecordKind.TRANSITION) if b["after"] == "SHADOWING")
    assert compared == list(range(shadow + 1, fossil + 1))


# -- telemetry and field reports ---------------------------------------------------------------------------------


def test_the_spans_of_a_round_are_one_trace_under_the_round(grown: Run) -> None:
    spans = grown.spans()
    rounds = [span for span in spans if span["name"] == "esper round"]
    assert len(rounds) == len({span["traceId"] for span in rounds}) == 17  # fence 0 has one, too
    second = next(s for s in rounds if {"key": "fence", "value": {"intValue": "2"}} in s["attributes"])
    inside = [span for span in spans if span["traceId"] == second["traceId"]]
    ids = {span["spanId"] for span in inside}
    assert {s["name"] for s in inside} >= {"tamiyo decide", "policy", "gate evaluate", "trainer apply"}
    assert [s["name"] for s in inside if "parentSpanId" not in s or s["parentSpanId"] not in ids] == ["esper round"]
    assert grown.result.trace_id == rounds[-1]["traceId"]


def test_there_is_one_severe_event_for_each_gate_that_failed_and_none_else(grown: Run) -> None:
    told = [(e["fields"]["seed_id"], e["fields"]["gate"]) for e in grown.lines("severe-events.jsonl")]
    lost = [
        (report.seed_id, "G2") for report in load_reports(reports_folder(grown.path)).reports if report.reasons != ()
    ]
    assert sorted(told) == sorted(lost)
    assert len(told) == 3
    rounds = {span["traceId"] for span in grown.spans() if span["name"] == "esper round"}
    assert {event["trace_id"] for event in grown.lines("severe-events.jsonl")} <= rounds
    made = {(span["traceId"], span["spanId"]) for span in grown.spans() if span["traceId"] in rounds}
    senders = [report.traceparent.split("-")[1:3] for report in load_reports(reports_folder(grown.path)).reports]
    assert {(trace, sender) for trace, sender in senders} <= made


def test_every_seed_that_came_to_an_end_has_its_field_report_in_the_store_and_in_the_journal(grown: Run) -> None:
    loaded = load_reports(reports_folder(grown.path))
    assert loaded.errors == ()
    assert [r.report_id for r in loaded.reports] == [b["report_id"] for b in grown.bodies(RecordKind.FIELD_REPORT)]
    fates = {report.seed_id: str(report.outcome) for report in loaded.reports}
    expected = {s.seed_id: "SUCCESS" if s.stage == "FOSSILIZED" else "NEUTRAL" for s in grown.result.seeds}
    assert fates == expected


# -- how it fails ------------------------------------------------------------------------------------------------


def failed(
    path: Path, error: type[BaseException], *, task: Task | None = None, policy: Policy | None = None
) -> tuple[Left, BaseException]:
    with pytest.raises(error) as caught:
        run(task or tiny_task(), tiny_config(run__dir=str(path)), on=InProcess(policy=policy))
    return Left(path), caught.value


def test_a_policy_that_raises_stops_the_run_with_its_error_as_the_cause(tmp_path: Path) -> None:
    broken = ValueError("no idea")
    stopped, error = failed(tmp_path / "run", PolicyFailed, policy=ScriptedPolicy(broken))
    assert error.__cause__ is broken
    last = stopped.entries[-1]
    assert last.kind is RecordKind.RUN_FAILED
    assert (last.body["error"], last.body["cause"]) == ("PolicyFailed", "ValueError: no idea")
    assert last.body["fence"] == 0  # the last fence that was passed
    spans = [span for span in stopped.spans() if span["traceId"] == last.body["trace_id"]]
    assert "esper round" in {span["name"] for span in spans}
    assert not summary_file(stopped.path).exists()


class RefusesTheRest(TinyHost):
    """Cannot be run on the second of three batches of the test shard, which no survey looks at."""

    refused = Bands(600, key=3).inputs[256]

    def forward(self, x_BC: Tensor) -> Tensor:
        if torch.equal(x_BC[0], self.refused):
            raise RuntimeError("refused")
        return super().forward(x_BC)


def test_a_failure_before_the_first_round_has_a_trace_too(tmp_path: Path) -> None:
    stopped, _ = failed(tmp_path / "run", RuntimeError, task=tiny_task(model=RefusesTheRest, test=Bands(600, key=3)))
    body = stopped.entries[-1].body
    assert (body["error"], body["message"], body["fence"]) == ("RuntimeError", "refused", 0)
    assert [s["name"] for s in stopped.spans() if s["traceId"] == body["trace_id"]] == ["esper start"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.torture)])
def test_digits_grow_under_the_default_config(tmp_path: Path, seed: int) -> None:
    config = load_config(None, {"run.dir": str(tmp_path / "run"), "run.seed": seed})
    result = run(digits_task(), config)
    assert result.twin_test_loss is not None
    assert result.test_loss < 0.9 * result.twin_test_loss
    assert any(found.stage == "FOSSILIZED" for found in result.seeds)
