"""States, pairs, seeds, decisions and reports as Tamiyo sees them, and Tamiyo itself, for tests of several folders."""

from __future__ import annotations

from typing import Any

from growing import RUN, slot

from esper.leyline.decisions import Decision, Pair
from esper.leyline.ports import Policy
from esper.leyline.reports import FieldReport, Outcome
from esper.leyline.stages import Stage
from esper.leyline.state import RoundState, SeedState, SlotState, TrainingState
from esper.tamiyo.command_builder import CommandBuilder
from esper.tamiyo.eligibility import GrowthWindow
from esper.tamiyo.risk import ForkCosts
from esper.tamiyo.service import Tamiyo
from esper.tamiyo.settings import RiskConfig
from esper.testing import EPOCH, FakeClock

WINDOW = GrowthWindow(
    first_fence=1,
    round_steps=25,
    fences_beside_ramp=4,
    shortest_ramp=75,
    stack=3,
    seed_parameters=10**9,
    seed_flops=10**12,
)


def make_tamiyo(policy: Policy, clock: FakeClock, service: type[Tamiyo] = Tamiyo) -> Tamiyo:
    """A service that signs with `b"key"` and gives its policy 5 s."""
    builder = CommandBuilder(b"key", clock, ramp_steps=75)
    return service(policy, builder, WINDOW, RiskConfig(), costs=ForkCosts(10_000, 10_000), deadline_s=5.0, clock=clock)


def make_pair(blueprint_id: str = "mlp", slot: str = "body", **changes: Any) -> Pair:
    """A pair that the dry run allows."""
    fields: dict[str, Any] = {"parameters": 100, "flops": 1000, "risk": 0.2, "mesh": (slot,)}
    return Pair(slot=slot, blueprint_id=blueprint_id, **(fields | changes))


def make_slot(path: str = "body", occupied: int = 0, embargoed: tuple[str, ...] = ()) -> SlotState:
    """A slot and what stands in it."""
    return SlotState(spec=slot(path), occupied=occupied, embargoed=embargoed)


def make_seed(seed_id: str = "seed-1", **changes: Any) -> SeedState:
    """A seed of the pair (body, mlp), fossilised."""
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


def make_state(**changes: Any) -> RoundState:
    """A run at fence 5 of 40 with one open slot and two blueprints for it; `training__x` changes what was trained."""
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


def make_decision(*pairs: Pair, **changes: Any) -> Decision:
    """A decision to try some pairs together."""
    fields: dict[str, Any] = {"decision_id": "decision-1", "fence": 5, "policy": "scripted"}
    return Decision(policy_version="scripted-1", pairs=pairs, **(fields | changes))


def make_report(name: int | str = 1, **changes: Any) -> FieldReport:
    """What came of the pair (body, mlp) between fences 2 and 3."""
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
