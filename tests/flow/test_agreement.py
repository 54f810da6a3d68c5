"""Each value of a checkpoint that a run has twice: altered in one place, it is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import THREE
from pydantic import ValidationError
from stopping import stop
from torch import Tensor, nn

from esper import resume
from esper.archive.history import Past, read_past
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import checkpoints_folder
from esper.errors import DependencyViolationError, IsolationViolation, StoreCorrupt
from esper.flow.agreement import check_agreement
from esper.flow.checkpoints import FenceState
from esper.flow.places import InProcess
from esper.flow.position import LineState
from esper.flow.retold import OF_COMMANDS, OF_JOURNAL, ONCE
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.registry.registry_state import read_state
from esper.kasmina.registry.seed_record import SeedRecord
from esper.kasmina.registry.shared_vectors import unpacked
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.commands import BlendSpec
from esper.leyline.decisions import Decision, Pair, RateScale
from esper.leyline.evidence import PairedLosses
from esper.leyline.reports import FieldReport, GraftPlan
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState
from esper.setup.assembly import RunKey, make_trainer
from esper.setup.survey import survey_of
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.policy_state import TamiyoState
from esper.testing import tiny_config, tiny_task
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.snapshot_codec import from_plain, incubation_of
from esper.tolaria.trainer import Trainer

V = (0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0)
FENCE = 9


class Channelled(HeuristicPolicy):
    """The heuristic with a blend by channel, which slows the seeds in the host."""

    version = "channelled-1"

    def __init__(self) -> None:
        super().__init__(8, 2, 30)

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        found = super().decide(state, eligible, past)
        live = [seed.seed_id for seed in state.seeds if seed.stage in IN_HOST]
        own: dict[str, Any] = {"rates": tuple(RateScale(seed_id=one, scale=0.5) for one in live)}
        if found.pairs:
            own["blend"] = BlendSpec(mode="CHANNEL", ramp_steps=30, channels=V)
        return found.model_copy(update=own)


@dataclass(frozen=True)
class Kept:
    """The checkpoint of a run at `FENCE`, and the run's journal."""

    written: CheckpointWritten
    content: dict[str, Any]
    past: Past

    @cached_property
    def host(self) -> HostSnapshot:
        return from_plain(self.content["trainer"])

    @property
    def rooms(self) -> dict[str, Any]:
        return {name: json.loads(unpacked(text)) for name, text in self.content["rooms"].items()}

    def check(self, host: HostSnapshot | None = None, past: Past | None = None, **rooms: Any) -> None:
        """Compare the parts, some of them replaced."""
        told = {**self.content["rooms"], **{name: json.dumps(value) for name, value in rooms.items()}}
        saved = FenceState(self.written.fence, host or self.host, told, incubation_of(self.content["nursery"]))
        identity = self.past.identity
        slots = json.loads(self.content["rooms"]["kasmina"])["roster"]["ordinals"]
        registry = read_state(told["kasmina"], run_id=identity.run_id, generation=identity.generation, slots=slots)
        tamiyo = TamiyoState.model_validate_json(told["tamiyo"])
        check_agreement(self.written, saved, LineState.of(saved), registry, tamiyo, past or self.past)


class Fixed(nn.Module):
    """A seed with a parameter that has no gradient."""

    def __init__(self, work: nn.Module) -> None:
        super().__init__()
        self.work, self.scale = work, nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.work(h * self.scale)


@pytest.fixture(scope="module", autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Each seed of the blueprint mlp has a parameter without a gradient."""
    mlp = BLUEPRINTS.get("mlp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLUEPRINTS._blueprints, "mlp", replace(mlp, factory=lambda spec: Fixed(mlp.factory(spec))))
        yield


@pytest.fixture(scope="module")
def kept(fixed_seeds: None, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    del fixed_seeds
    path = tmp_path_factory.mktemp("agreement") / "run"
    stop(FENCE, tiny_task(), tiny_config(run__dir=str(path), **THREE), on=InProcess(policy=Channelled()))
    past = read_past(path)
    written = past.commits[-1]
    return Kept(written, torch.load(checkpoints_folder(path) / written.file, weights_only=True), past)


def test_the_parts_of_a_checkpoint_that_a_run_wrote_agree(kept: Kept) -> None:
    kept.check()
    seeds = kept.rooms["kasmina"]["roster"]["seeds"]
    assert any(seed["twin_zs"] for seed in seeds)
    assert {seed["embargo_until"] > 0 for seed in seeds} == {True, False}
    assert any(seed["graft"] and seed["graft"]["blend"]["channels"] == list(V) for seed in seeds)
    assert any(seed["rate_scale"] == 0.5 for seed in seeds)
    assert any(seed["blueprint_id"] == "mlp" and seed["graft"] for seed in seeds)
    receipts = [receipt for _, receipt in kept.host.receipts.values()]
    own = sum(p.numel() for p in tiny_task().model().parameters())
    inside = {plan.seed_id for plan in kept.host.topology}
    assert receipts[-1].parameters - own == sum(seed["parameters"] for seed in seeds if seed["seed_id"] in inside)


# -- every value of a state ------------------------------------------------------------------------------------------

Place = tuple[str | int, ...]

UNSEEN = {*ONCE, "policy"}
"""Fields that a run has once. Tamiyo itself refuses the state of another policy."""


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, (*place, key))
    else:
        yield place


def of_each_kind(state: Any) -> list[Place]:
    """One place of each field, the last one of a list."""
    return list(
        {tuple("*" if isinstance(key, int) else key for key in place): place for place in leaves(state)}.values()
    )


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value or ''}x" if isinstance(value, str) else ["x"] if isinstance(value, list) else "x"


def altered(state: Any, place: Place) -> Any:
    changed = json.loads(json.dumps(state))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = other(inner[place[-1]])
    return changed


@pytest.mark.parametrize("room", ["kasmina", "tamiyo"])
def test_no_value_of_a_state_can_be_altered_unseen(kept: Kept, room: str) -> None:
    unseen = []
    for place in of_each_kind(kept.rooms[room]):
        try:
            kept.check(**{room: altered(kept.rooms[room], place)})
        except (ValidationError, StoreCorrupt, ValueError):
            continue
        if place[-1] not in UNSEEN:
            unseen.append(place)
    assert unseen == [], "\n".join(map(str, unseen))


def test_each_field_of_a_seeds_record_has_a_second_place_or_a_reason() -> None:
    assert {*OF_COMMANDS, *OF_JOURNAL, *ONCE} == {*SeedRecord.model_fields}
    assert sum(map(len, (OF_COMMANDS, OF_JOURNAL, ONCE))) == len(SeedRecord.model_fields)


def test_the_error_names_both_values(kept: Kept) -> None:
    state = kept.rooms["kasmina"]
    seed = next(seed for seed in state["roster"]["seeds"] if seed["twin_zs"])
    z, seed["twin_zs"][0] = seed["twin_zs"][0], 9.5
    with pytest.raises(StoreCorrupt, match=rf"twin_zs of seed {seed['seed_id']}: '\[9\.5.*, expected '\[{z}"):
        kept.check(kasmina=state)


def test_what_an_audit_found_and_the_best_round_are_those_of_the_journal(kept: Kept) -> None:
    assert kept.host.best_round is not None
    leaking = {plan.seed_id: ("body.weight",) for plan in kept.host.topology}
    with pytest.raises(StoreCorrupt, match=r"leaks: .*body.weight.*, expected {}"):
        kept.check(replace(kept.host, leaks=leaking))
    with pytest.raises(StoreCorrupt, match=r"best_round: -1.0, expected "):
        kept.check(replace(kept.host, best_round=-1.0))

    def saying(entry: Entry) -> Entry:
        return replace(entry, body={**entry.body, "leaks": leaking}) if entry.kind is RecordKind.ROUND_ENDED else entry

    past = replace(kept.past, entries=tuple(map(saying, kept.past.entries)))
    kept.check(replace(kept.host, leaks=leaking), past)
    with pytest.raises(StoreCorrupt, match=r"leaks: {}, expected .*body.weight"):
        kept.check(past=past)


def test_a_count_of_the_line_is_that_of_the_journal(kept: Kept) -> None:
    line = kept.rooms["line"]
    line["tally"]["incubator_steps"] += 1
    with pytest.raises(StoreCorrupt, match=r"incubator_steps: \d+, expected \d+"):
        kept.check(line=line)


def test_gains_of_placebos_are_those_of_the_journal_or_those_that_an_older_version_recorded(kept: Kept) -> None:
    ended = [one for one in kept.past.entries if one.kind is RecordKind.INCUBATION_ENDED]
    gate = ended[0].body["forks"][0]["pick"] | {"shard": "gate"}
    diverged = {"kind": "frozen", "slot": "body", "picks": [], "gate": None}
    sound = diverged | {"gate": gate}

    def saying(entry: Entry) -> Entry:
        return replace(entry, body={**entry.body, "placebos": [sound, diverged]}) if entry is ended[-1] else entry

    past = replace(kept.past, entries=tuple(map(saying, kept.past.entries)))
    gain = PairedLosses(**gate).relative_gain
    for gains in ([gain, math.inf], [gain]):  # an older version left out the gain of a placebo that diverged
        kept.check(past=past, kasmina={**kept.rooms["kasmina"], "placebo_gains": gains})
    for gains in ([], [math.inf], [gain, gain], [gain + 1.0, math.inf]):
        with pytest.raises(StoreCorrupt, match=r"placebo_gains: .*, expected "):
            kept.check(past=past, kasmina={**kept.rooms["kasmina"], "placebo_gains": gains})


@pytest.mark.parametrize(("name", "entry"), [("alpha", 0), ("channels", 3)])
def test_alpha_and_vector_of_a_seed_are_those_of_its_plan(kept: Kept, name: str, entry: int) -> None:
    survey = survey_of(tiny_task(), tiny_config())
    trainer = make_trainer(survey, RunKey(kept.past.identity.run_id, 2, b"key"))
    trainer.become(kept.host)
    (at, *_) = [one for one in kept.host.tensors if one.endswith(f".{name}")]
    tensors = {**kept.host.tensors, at: kept.host.tensors[at].clone()}
    value = float(tensors[at].flatten()[entry])
    tensors[at].view(-1)[entry] = 0.125
    with pytest.raises(DependencyViolationError, match=rf"{name} differs .*entry {entry} is 0.125, .*seed {value}"):
        trainer.become(replace(kept.host, tensors=tensors))


def test_a_seed_that_was_not_attached_does_not_hinder_a_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused: list[str] = []
    change = Trainer._change

    def sharing(trainer: Trainer, plan: Any, weights: Any) -> None:
        if isinstance(plan, GraftPlan) and not refused:
            refused.append(plan.seed_id)
            raise IsolationViolation(plan.seed_id, ["body.weight"], plan.blueprint_id, plan.slot)
        change(trainer, plan, weights)

    monkeypatch.setattr(Trainer, "_change", sharing)
    path = tmp_path / "run"
    stop(5, tiny_task(), tiny_config(run__dir=str(path)))
    monkeypatch.undo()
    assert refused
    resume(path, tiny_task())
    assert not (checkpoints_folder(path) / "quarantine").exists()
