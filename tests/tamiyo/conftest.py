"""What tests of Tamiyo share: states, pairs, seeds, decisions, reports, and what was said. It tests nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport, Outcome
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.stages import Stage
from esper.leyline.state import RoundState, SeedState, SlotState, TrainingState
from esper.telemetry import Telemetry, use
from esper.telemetry.events import LOG
from esper.testing import EPOCH

RUN = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    with Telemetry.start(tmp_path / "telemetry", "tamiyo") as telemetry, use(telemetry):
        yield telemetry


@pytest.fixture
def told(telemetry: Telemetry) -> Callable[[], list[str]]:
    """Names of the severe events so far."""

    def read() -> list[str]:
        log = telemetry.directory / LOG
        return [json.loads(line)["name"] for line in log.read_text().splitlines()] if log.exists() else []

    return read


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """A pair that the dry run allows."""

    def make(blueprint_id: str = "mlp", slot: str = "body", **changes: Any) -> Pair:
        fields: dict[str, Any] = {"parameters": 100, "flops": 1000, "risk": 0.2, "mesh": (slot,)}
        return Pair(slot=slot, blueprint_id=blueprint_id, **(fields | changes))

    return make


@pytest.fixture
def make_slot() -> Callable[..., SlotState]:
    """A slot and what stands in it."""

    def make(path: str = "body", occupied: int = 0, embargoed: tuple[str, ...] = ()) -> SlotState:
        spec = SlotSpec(
            path=path,
            kind=Kind.NC,
            shape=(8,),
            dtype="torch.float32",
            device="cpu",
            causal=False,
            samples_independent=True,
        )
        return SlotState(spec=spec, occupied=occupied, embargoed=embargoed)

    return make


@pytest.fixture
def make_seed() -> Callable[..., SeedState]:
    """A seed of the pair (body, mlp), fossilised."""

    def make(seed_id: str = "seed-1", **changes: Any) -> SeedState:
        fields: dict[str, Any] = {
            "slot": "body",
            "blueprint_id": "mlp",
            "ordinal": 0,
            "stage": Stage.FOSSILIZED,
            "alpha": 1.0,
            "since_fence": 3,
            "due": False,
            "command_id": "command-1",
            "replica_of": None,
            "required_mesh": ("body",),
            "parameters": 100,
            "gain": 0.05,
            "z": 9.0,
        }
        return SeedState(seed_id=seed_id, **(fields | changes))

    return make


@pytest.fixture
def make_state(make_pair: Callable[..., Pair], make_slot: Callable[..., SlotState]) -> Callable[..., RoundState]:
    """A run at fence 5 of 40 with one open slot and two blueprints for it; `training__x` changes what was trained."""

    def make(**changes: Any) -> RoundState:
        training: dict[str, Any] = {
            "fence": 5,
            "step": 100,
            "total_steps": 800,
            "train_loss": 1.0,
            "losses": (1.1, 0.9),
            "gradient_norm": 0.5,
            "best_train_loss": 1.05,
            "parameters": 500,
            "host_parameters": 500,
        }
        training |= {key.removeprefix("training__"): v for key, v in changes.items() if key.startswith("training__")}
        fields: dict[str, Any] = {
            "run_id": RUN,
            "generation": 2,
            "fence": 5,
            "last_fence": 40,
            "training": TrainingState(**training),
            "slots": (make_slot(),),
            "seeds": (),
            "options": (make_pair("mlp"), make_pair("norm", risk=0.1)),
            "incubating": False,
            "added_parameters": 0,
            "parameter_budget": 1000,
            "tests_used": 0,
            "tests_allowed": 400,
            "isolation_violations": 0,
        }
        return RoundState(**(fields | {k: v for k, v in changes.items() if not k.startswith("training__")}))

    return make


@pytest.fixture
def make_decision() -> Callable[..., Decision]:
    """A decision to try some pairs together."""

    def make(*pairs: Pair, **changes: Any) -> Decision:
        fields: dict[str, Any] = {"decision_id": "decision-1", "fence": 5, "policy": "scripted"}
        return Decision(policy_version="scripted-1", pairs=pairs, **(fields | changes))

    return make


@pytest.fixture
def make_report() -> Callable[..., FieldReport]:
    """What came of the pair (body, mlp) between fences 2 and 3."""

    def make(name: int | str = 1, **changes: Any) -> FieldReport:
        fields: dict[str, Any] = {
            "report_id": f"report-{name}",
            "command_id": "command-1",
            "run_id": RUN,
            "generation": 2,
            "seed_id": f"seed-{name}",
            "blueprint_id": "mlp",
            "slot": "body",
            "outcome": Outcome.NEUTRAL,
            "reasons": ("outperformed",),
            "gain": None,
            "z": None,
            "pick_gain": 0.001,
            "window_fences": (2, 3),
            "issued_at": EPOCH,
            "policy_version": "scripted-1",
        }
        return FieldReport(**(fields | changes))

    return make
