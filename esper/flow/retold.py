"""Derives the fields of Kasmina's records of seeds from the admitted commands and from the journal.

A checkpoint has these fields, too. `agreement.py` compares both.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel

from esper.archive.journal import Entry, RecordKind
from esper.kasmina.registry.registry_state import RegistryState
from esper.kasmina.registry.seed_record import Graft, SeedRecord
from esper.kasmina.registry.selection import gains_of
from esper.leyline.commands import Candidate, Command, Operation
from esper.leyline.incubation import Answer, ForkResult, IncubationOrder, IncubationResult
from esper.leyline.reports import (
    AdoptPlan,
    ConfidencePlan,
    FieldReport,
    GateReport,
    GraftPlan,
    HostPlan,
    RatePlan,
    RemovePlan,
    Transition,
)
from esper.leyline.stages import IN_HOST, LIVE, Stage
from esper.tolaria.snapshot import HostSnapshot

M = TypeVar("M", bound=BaseModel)
COMPARED_WITH_TWIN = (Stage.SHADOWING, Stage.PROBATIONARY)
ADDED = "added_parameters"
"""Name of the check of gate G0 that measures the parameters of all seeds in the host and of the candidate."""


@dataclass(frozen=True)
class Story:
    """The sources of the derived fields."""

    registry: RegistryState
    """Only its commands and their answers are sources."""
    host: HostSnapshot
    """Only its receipts are a source."""
    entries: Sequence[Entry]
    """The journal up to the checkpoint. Empty: the journal cannot be used, and no field of `OF_JOURNAL` is derived."""

    def bodies(self, kind: RecordKind) -> list[dict[str, Any]]:
        """Return the bodies of the journal's records of one kind, in order."""
        return [entry.body for entry in self.entries if entry.kind is kind]

    @cached_property
    def answers(self) -> dict[str, Answer]:
        """The answer of each command that was carried out, by command id."""
        commands = self.registry.commands
        return {one.command.command_id: one.answer.as_given() for one in commands if one.answer is not None}

    @cached_property
    def given(self) -> tuple[HostPlan, ...]:
        """The plans that Kasmina gave to the live host, in order."""
        return tuple(plan for answer in self.answers.values() for plan in answer.plans)

    @cached_property
    def plans(self) -> tuple[HostPlan, ...]:
        """The plans that the live host applied, in order.

        A seed that would have shared memory with the host was not attached. It was culled without a plan to remove it.
        """
        removed = {plan.seed_id for plan in self.given if isinstance(plan, RemovePlan)}
        inside = {seed.seed_id for seed in self.registry.roster.seeds if seed.stage in IN_HOST}
        return tuple(plan for plan in self.given if plan.seed_id in removed | inside)

    @cached_property
    def commands(self) -> dict[str, Command]:
        """The admitted commands, by id."""
        return {one.command.command_id: one.command for one in self.registry.commands}

    @cached_property
    def germinated(self) -> dict[str, Command]:
        """Seed id -> the command that named the seed, in the order of the commands."""
        done = (command for key, command in self.commands.items() if key in self.answers)
        return {candidate.seed_id: command for command in done for candidate in command.candidates}

    @cached_property
    def grafted(self) -> dict[str, GraftPlan]:
        """Seed id -> the plan with which the seed entered the live host, and later changes of its confidence. The plan
        has the id of the command with which the seed entered."""
        found: dict[str, GraftPlan] = {}
        for plan in self.given:
            if isinstance(plan, GraftPlan):
                found[plan.seed_id] = plan
            elif isinstance(plan, AdoptPlan):
                found[plan.seed_id] = plan.graft.model_copy(update={"command_id": plan.command_id})
            elif isinstance(plan, ConfidencePlan) and plan.seed_id in found:
                found[plan.seed_id] = plan.amended(found[plan.seed_id])
        return found

    @cached_property
    def flops(self) -> dict[str, int]:
        """Seed id -> FLOPs per step, for a seed of a tournament by the order. Other seeds have one record only."""
        orders = [answer.order for answer in self.answers.values() if answer.order is not None]
        pairs = (pair for order in orders for pair in zip(order.plans, order.seed_flops, strict=False))
        alone = {seed.seed_id: seed.flops for seed in self.registry.roster.seeds}
        return {**alone, **{plan.seed_id: flops for plan, flops in pairs}}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Seed id -> parameters of the seed, by the report of gate G0. A seed without this measurement has one record
        only.
        """
        present: set[str] = set()
        own = {seed.seed_id: seed.parameters for seed in self.registry.roster.seeds}
        found = dict(own)
        for answer in self.answers.values():
            for report in answer.gates:
                for check in report.checks:
                    if check.name == ADDED and isinstance(check.measured, int):
                        found[report.seed_id] = check.measured - sum(own[seed_id] for seed_id in present)
            for plan in answer.plans:
                present = present - {plan.seed_id} if isinstance(plan, RemovePlan) else present | {plan.seed_id}
            present &= {plan.seed_id for plan in self.plans}
        return found

    @cached_property
    def began(self) -> dict[str, Any]:
        """The body of the record of the last start or resume. The journal must have one."""
        starts = (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)
        return [entry.body for entry in self.entries if entry.kind in starts][-1]

    @cached_property
    def _steps(self) -> dict[str, list[dict[str, Any]]]:
        found = defaultdict[str, list[dict[str, Any]]](list)
        for body in self.bodies(RecordKind.TRANSITION):
            found[body["seed_id"]].append(body)
        return found

    def steps(self, seed_id: str) -> list[dict[str, Any]]:
        """Return the journal's transitions of a seed."""
        return self._steps[seed_id]

    @cached_property
    def zs(self) -> dict[str, tuple[float, ...]]:
        """Seed id -> z of each comparison with the twin that counts for the seed.

        The fence after a removal does not count; see `Roster.compared`.
        """
        stages: dict[str, str] = {}
        found = defaultdict[str, tuple[float, ...]](tuple)
        removed: int | None = None
        for entry in self.entries:
            body = entry.body
            if entry.kind is RecordKind.TRANSITION:
                stages[body["seed_id"]] = body["after"]
                removed = body["fence"] if _removes(body) else removed
            elif entry.kind is RecordKind.TWIN_COMPARED and body["fence"] - 1 != removed:
                for seed_id in (one for one, stage in stages.items() if stage in COMPARED_WITH_TWIN):
                    found[seed_id] = (*found[seed_id], body["z"])
        return found

    @cached_property
    def removed_at(self) -> int | None:
        """The fence of the last removal of a seed from the live host. None: no seed was removed."""
        steps = self.bodies(RecordKind.TRANSITION)
        return next((body["fence"] for body in reversed(steps) if _removes(body)), None)

    @cached_property
    def results(self) -> dict[str, ForkResult]:
        """Seed id -> result of the seed's fork."""
        ended = self.bodies(RecordKind.INCUBATION_ENDED)
        return {fork["seed_id"]: _read(ForkResult, fork) for body in ended for fork in body["forks"]}

    @property
    def placebo_gains(self) -> list[tuple[bool, tuple[float, ...]]]:
        """Each result of a tournament with placebos, in the order of the journal: whether it is a repeated look, and
        the gains of the placebos."""
        begun = self.bodies(RecordKind.INCUBATION_BEGUN)
        again = {body["order_id"] for body in begun if body.get("goes_on_from") is not None}
        ended = self.bodies(RecordKind.INCUBATION_ENDED)
        results = ((body["order_id"] in again, gains_of(_read(IncubationResult, body))) for body in ended)
        return [(look, gains) for look, gains in results if gains]

    def embargo_until(self, seed_id: str) -> int:
        """Return the fence at which the embargo of a seed ends. 0: the seed was not culled."""
        for body in self.steps(seed_id):
            if body["after"] == Stage.CULLED:
                rounds: int = self.began["config"]["growth"]["embargo_rounds"]
                return int(body["fence"]) + (rounds if _removes(body) else 0)
        return 0


def plain(value: Any) -> Any:  # Any: messages, JSON values, and nestings of them
    """Return a value as JSON text, so that a message equals its record in the journal, and nan equals nan."""
    return json.dumps(value, sort_keys=True, default=_as_json)


def _as_json(value: object) -> Any:  # Any: a JSON value
    return json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else str(value)


def _removes(body: Mapping[str, Any]) -> bool:
    return body["after"] == Stage.CULLED and body["before"] in LIVE


def _germinated_fence(story: Story, seed: SeedRecord) -> int:
    gates = story.answers[story.germinated[seed.seed_id].command_id].gates
    return next(report.fence for report in gates if report.seed_id == seed.seed_id)


def _candidate(story: Story, seed: SeedRecord) -> Candidate:
    """Return the candidate of a seed, as its command named it."""
    return next(one for one in story.germinated[seed.seed_id].candidates if one.seed_id == seed.seed_id)


def _mesh(story: Story, seed: SeedRecord) -> tuple[str, ...]:
    plan = story.grafted.get(seed.seed_id)
    command = story.commands[plan.command_id] if plan is not None else story.germinated[seed.seed_id]
    return command.mesh_host_layers


def _graft(story: Story, seed: SeedRecord) -> Graft | None:
    plan = story.grafted.get(seed.seed_id)
    if plan is None:
        return None
    return Graft(ordinal=plan.ordinal, start_step=plan.start_step, blend=plan.blend, confidence=plan.confidence)


def _rate(story: Story, seed: SeedRecord) -> float:
    rates = [plan.rate_scale for plan in story.plans if isinstance(plan, RatePlan) and plan.seed_id == seed.seed_id]
    return rates[-1] if rates else 1.0


def _judged_again_at(story: Story, seed: SeedRecord) -> int | None:
    """Return the fence at which the fork of a refused seed is judged again, by the last order that lets it train on."""
    orders = [answer.order for answer in story.answers.values() if answer.order is not None]
    later = [one for one in orders if one.goes_on_from is not None and seed.seed_id in {p.seed_id for p in one.plans}]
    return later[-1].due_fence if later else None


Derived = Callable[[Story, SeedRecord], Any]  # Any: a field of the record

OF_COMMANDS: Mapping[str, Derived] = {
    "seed_id": lambda story, seed: _candidate(story, seed).seed_id,
    "slot": lambda story, seed: _candidate(story, seed).slot,
    "blueprint_id": lambda story, seed: _candidate(story, seed).blueprint_id,
    "copies": lambda story, seed: _candidate(story, seed).copies,
    "command_id": lambda story, seed: story.germinated[seed.seed_id].command_id,
    "policy_version": lambda story, seed: story.germinated[seed.seed_id].policy_version,
    "replica_of": lambda story, seed: story.germinated[seed.seed_id].replica_of,
    "commanded": lambda story, seed: story.germinated[seed.seed_id].blend,
    "required_mesh": _mesh,
    "germinated_fence": _germinated_fence,
    "graft": _graft,
    "rate_scale": _rate,
    "judged_again_at": _judged_again_at,
    "flops": lambda story, seed: story.flops[seed.seed_id],
    "parameters": lambda story, seed: story.parameters[seed.seed_id],
}
"""Field of a seed's record -> the same value, from the admitted commands and Kasmina's answers to them."""

OF_JOURNAL: Mapping[str, Derived] = {
    "stage": lambda story, seed: next((one["after"] for one in reversed(story.steps(seed.seed_id))), Stage.DORMANT),
    "since_fence": lambda story, seed: next(
        (one["fence"] for one in reversed(story.steps(seed.seed_id))), _germinated_fence(story, seed)
    ),
    "result": lambda story, seed: story.results.get(seed.seed_id),
    "twin_zs": lambda story, seed: story.zs[seed.seed_id],
    "embargo_until": lambda story, seed: story.embargo_until(seed.seed_id),
}
"""Field of a seed's record -> the same value, from the journal."""

ONCE: Mapping[str, str] = {
    "parameter_bytes": "nothing reads it: each gate measures the bytes of the seed again",
}
"""Field of a seed's record that nothing else in a run has -> the reason why this is no danger."""


MESSAGES: Mapping[RecordKind, type[BaseModel]] = {
    RecordKind.COMMAND: Command,
    RecordKind.GATE: GateReport,
    RecordKind.TRANSITION: Transition,
    RecordKind.FIELD_REPORT: FieldReport,
    RecordKind.INCUBATION_BEGUN: IncubationOrder,
}
"""Kind of record -> the message that is its body."""


def records_of(entries: Sequence[Entry], kind: RecordKind) -> list[str]:
    """Return the journal's records of one kind in `MESSAGES`, as `plain` text."""
    return [plain(_read(MESSAGES[kind], entry.body)) for entry in entries if entry.kind is kind]


def sent(entries: Sequence[Entry]) -> list[str]:
    """Return the journal's commands, as `plain` text. A command to go back is no command of the registry."""
    return records_of([entry for entry in entries if not _goes_back(entry)], RecordKind.COMMAND)


def _goes_back(entry: Entry) -> bool:
    return entry.kind is RecordKind.COMMAND and entry.body["operation"] == Operation.GO_BACK


def _read(message: type[M], body: Mapping[str, Any]) -> M:
    """Return the message of a record. A record of an earlier version lacks later fields, which get their defaults."""
    return message.model_validate_json(json.dumps(body))
