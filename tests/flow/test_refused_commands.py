"""A run whose command is refused ends with exit code 3: one event, one count, and nothing else is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from esper import resume
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import journal_file, telemetry_folder
from esper.cli.main import exit_code
from esper.flow.result import Result
from esper.ground.tensors import state_digest
from esper.leyline.commands import Command, CommandKind, Operation
from esper.telemetry.events import LOG
from esper.testing import tiny_config, tiny_task

TASK = "from esper.testing import tiny_task\ndef task(): return tiny_task()\n"
GERMINATE, ADVANCE, GERMINATE_AGAIN, FOSSILIZE = 0, 1, 2, 10
"""Number of a command of the tiny run, in the order in which Tamiyo sends them: at fences 1, 2, 2 and 7."""
Change = Callable[[Command, Command], dict[str, Any]]
"""(command, the first command of the run) -> the fields that are changed."""


@dataclass(frozen=True)
class Case:
    """One command that is changed on its way, and how it is refused."""

    error: str
    says: str
    change: Change | dict[str, Any]
    at: int = GERMINATE
    signed: bool = True
    """Whether the changed command is signed again, as only Tamiyo can."""

    @property
    def event(self) -> tuple[str, str]:
        """Name and severity of its event."""
        if self.error == "DependencyViolationError":
            return "command_validation_failed", "ERROR"
        return "command_rejected", "ERROR" if self.error == "StageConflict" else "CRITICAL"


def candidate(**changes: Any) -> Change:
    return lambda command, _: {"candidates": (command.candidates[0].model_copy(update=changes),)}


def rejected(says: str, change: Change | dict[str, Any], at: int = GERMINATE, *, signed: bool = True) -> Case:
    return Case("CommandRejected", says, change, at, signed)


def conflict(says: str, change: Change | dict[str, Any], at: int = GERMINATE) -> Case:
    return Case("StageConflict", says, change, at)


def incomplete(says: str, change: Change | dict[str, Any], at: int = GERMINATE) -> Case:
    return Case("DependencyViolationError", says, change, at)


MESH = tuple(f"layer-{number}" for number in range(129))
BARE = {"candidates": (), "blend": None, "mesh_host_layers": (), "replica_of": None}
"""Fields of GERMINATE that another operation does not use."""
SCALE: dict[str, Any] = {**BARE, "kind": CommandKind.OPTIMIZER, "operation": Operation.SCALE_RATE}
BACK: dict[str, Any] = {**BARE, "kind": CommandKind.ROLLBACK, "operation": Operation.GO_BACK}


def of_first(name: str) -> Change:
    return lambda _, first: {name: getattr(first, name)}


def issued(seconds: float) -> Change:
    return lambda command, _: {"issued_at": command.issued_at + timedelta(seconds=seconds)}


def germinated_again(_: Command, first: Command) -> dict[str, Any]:
    return {"candidates": first.candidates[:1], "replica_of": None}


def scale_first(**changes: Any) -> Change:
    return lambda _, first: {**SCALE, "seed_id": first.candidates[0].seed_id, **changes}


FEW = {
    "signature": rejected("signature_invalid", {"feature_coverage": 0.123}, signed=False),
    "stage": conflict("FOSSILIZE from TRAINING", {"operation": Operation.FOSSILIZE, "blend": None}, ADVANCE),
    "mesh absent": incomplete("mesh_host_layers missing", {"mesh_host_layers": ()}),
}
MORE = {
    "no signature": rejected("signature_missing", {"signature": ""}, signed=False),
    "another's signature": rejected("signature_invalid", {"signature": "0" * 64}, signed=False),
    "a known nonce": rejected("nonce_replayed", of_first("nonce"), ADVANCE),
    "a known id": rejected("nonce_replayed", of_first("command_id"), ADVANCE),
    "stale": rejected("stale", issued(-61)),
    "future": rejected("future", issued(3600)),
    "wrong run": rejected("wrong_run", {"run_id": "00000000-0000-0000-0000-000000000000"}),
    "old generation": rejected("old_generation", {"generation": 0}),
    "later generation": rejected("old_generation", {"generation": 2}),
    "a seed that exists": conflict("exists already", germinated_again, GERMINATE_AGAIN),
    "a fossil advanced": conflict("ADVANCE from PROBATIONARY", {"operation": Operation.ADVANCE}, FOSSILIZE),
    "back to no checkpoint": conflict("go_back_to = 1", {**BACK, "to_fence": 1}),
    "back without a fence": incomplete("to_fence missing", BACK),
    "rate of no seed": incomplete("seed not known", {**SCALE, "seed_id": "nobody", "rate_scale": 0.5}),
    "rate absent": incomplete("rate_scale missing", scale_first(), GERMINATE_AGAIN),
    "rate too high": incomplete("rate_scale outside", scale_first(rate_scale=17.0), GERMINATE_AGAIN),
    "command id": incomplete("command id missing", {"command_id": ""}),
    "run id": incomplete("run id missing", {"run_id": ""}),
    "nonce": incomplete("nonce missing", {"nonce": ""}),
    "issuer": incomplete("issuer missing", {"issued_by": ""}),
    "policy version": incomplete("policy version missing", {"policy_version": ""}),
    "kind": incomplete("kind of another operation", {"kind": CommandKind.OPTIMIZER}),
    "candidates": incomplete("candidates missing", {"candidates": ()}),
    "seed id": incomplete("seed id missing", candidate(seed_id="")),
    "blueprint id": incomplete("blueprint id missing", candidate(blueprint_id="")),
    "slot id": incomplete("slot id missing", candidate(slot="")),
    "slot": incomplete("slot not known", candidate(slot="nowhere")),
    "replica of nobody": incomplete(
        "the seed to repeat is not known",
        lambda command, _: {"replica_of": "nobody", "candidates": command.candidates[:1]},
    ),
    "seed": incomplete("seed id missing", {"seed_id": ""}, ADVANCE),
    "seed not known": incomplete("seed not known", {"seed_id": "nobody"}, ADVANCE),
    "mesh with an empty name": incomplete("mesh_host_layers has an empty name", {"mesh_host_layers": ("body", " ")}),
    "mesh repeated": incomplete("mesh_host_layers repeats a layer", {"mesh_host_layers": ("body", "body")}),
    "mesh too long": incomplete("mesh_host_layers too long", {"mesh_host_layers": MESH}),
    "mesh absent later": incomplete("mesh_host_layers missing", {"mesh_host_layers": ()}, ADVANCE),
    "a field too many": incomplete("rate_scale given, not used by GERMINATE", {"rate_scale": 1.0}),
    "marks on a cull": incomplete(
        "fallback_marks given, not used by CULL",
        {"operation": Operation.CULL, "blend": None, "fallback_marks": ("rule of thumb",)},
        ADVANCE,
    ),
}


@dataclass
class Meddled:
    """A run in this process whose command number `case.at` is changed between Tamiyo and Kasmina."""

    case: Case
    wrapped: Any = None
    seen: list[tuple[Any, Any]] = field(default_factory=list)
    """All that may not change, before and after each call of Kasmina."""

    def change(self, command: Command, sent: Sequence[Command]) -> Mapping[str, Any]:
        if len(sent) != self.case.at:
            return {}
        change = self.case.change
        return change if isinstance(change, dict) else change(command, sent[0] if sent else command)

    def watch(self, ask: Any, *arguments: Any) -> Any:
        before = self._all()
        try:
            return ask(*arguments)
        finally:
            self.seen.append((before, self._all()))

    def _all(self) -> tuple[str, dict[str, Any], int]:
        """Return the registry, the host with all its optimizers as digests, and the count of refusals."""
        kasmina, trainer = self.wrapped.made["kasmina"], self.wrapped.made["trainer"]
        host = vars(trainer.snapshot().mapped(lambda tensor: state_digest({"": tensor})))
        return kasmina.state(), host, self.wrapped.total("esper.command.rejections")


@pytest.fixture
def meddle(wrap_components: Callable[..., Any]) -> Callable[[Case, pytest.MonkeyPatch], Meddled]:
    """Make the next runs, as long as the monkeypatch lasts, those of a case."""

    def begin(case: Case, patch: pytest.MonkeyPatch) -> Meddled:
        run = Meddled(case)
        watched = {f"kasmina.{name}": run.watch for name in ("receive", "advance", "permit")}
        run.wrapped = wrap_components(patch, watched, run.change, signed=case.signed)
        return run

    return begin


def words(tmp_path: Path) -> list[str]:
    (tmp_path / "t.py").write_text(TASK)
    growing = tiny_config().growth.model_dump(exclude_unset=True)
    sets = [word for name, value in growing.items() for word in ("--set", f"growth.{name}={json.dumps(value)}")]
    return ["run", f"{tmp_path}/t.py:task", "--run-dir", str(tmp_path / "run"), "--in-process", "--json", *sets]


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in FEW.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in MORE.items()),
    ],
)
def test_a_refused_command_ends_the_run_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    meddle: Callable[[Case, pytest.MonkeyPatch], Meddled],
    case: Case,
) -> None:
    run = meddle(case, monkeypatch)
    code = exit_code(words(tmp_path))

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, told["error"]) == (3, case.error)
    assert case.says in told["message"]
    (registry, host, refusals), after = run.seen[-1]
    assert after == (registry, host, refusals + 1)
    assert refusals == 0

    log = (telemetry_folder(tmp_path / "run") / LOG).read_text().splitlines()
    events = [json.loads(line) for line in log if '"command_' in line]
    assert [(event["name"], event["severity"]) for event in events] == [case.event]
    assert events[0]["fields"]["command_id"] == run.wrapped.sent[-1].command_id

    entries, damages = read(journal_file(tmp_path / "run", 1))
    commands = [place for place, entry in enumerate(entries) if entry.kind is RecordKind.COMMAND]
    assert [Command.model_validate_json(json.dumps(entries[place].body)) for place in commands] == run.wrapped.sent
    assert len(run.wrapped.sent) == case.at + 1
    assert {entry.kind for entry in entries[commands[-1] + 1 :]} <= {
        RecordKind.CHECKPOINT_COMMITTED,
        RecordKind.RUN_FAILED,
    }
    assert entries[-1].kind is RecordKind.RUN_FAILED
    assert damages == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage", "a fossil advanced"])
def test_a_run_that_ended_so_is_resumed_to_the_bits_of_an_undisturbed_one(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    meddle: Callable[[Case, pytest.MonkeyPatch], Meddled],
    undisturbed: Result,
    name: str,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        meddle({**FEW, **MORE}[name], patched)
        assert exit_code(words(tmp_path)) == 3
    capsys.readouterr()
    assert resume(tmp_path / "run", tiny_task()).weights_sha256 == undisturbed.weights_sha256
