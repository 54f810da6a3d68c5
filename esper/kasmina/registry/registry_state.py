"""Kasmina's registry as a value that a checkpoint carries: what decides its future, as JSON. It changes no registry.

Weights stand here once, under their digest, and only while a host may still need them from here: until a command is
carried out, a tournament has ended, and its first has been judged. For a later replay of the command they are drawn
anew from the same random stream, and their digest is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from esper.errors import StoreCorrupt
from esper.ground.problems import first_problem
from esper.ground.tensors import blob_digest
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.base import Count, Message
from esper.leyline.commands import Command
from esper.leyline.incubation import Answer, IncubationOrder
from esper.leyline.reports import GraftPlan, HostPlan, JoinPlan, RemovePlan
from esper.leyline.stages import Stage

WHERE = "kasmina's state"


class RosterState(Message):
    """All of `Roster`."""

    seeds: tuple[SeedRecord, ...]
    """In the order in which they were asked for."""
    ordinals: dict[str, Count]
    """Next place in each slot's history."""
    removed_at: Count | None
    """The last fence at which a seed left the host."""


class StoredGraft(Message):
    """A graft under its kind; see `StoredPlan`."""

    kind: Literal["graft"] = "graft"
    plan: GraftPlan


class StoredJoin(Message):
    """A join under its kind; see `StoredPlan`."""

    kind: Literal["join"] = "join"
    plan: JoinPlan


class StoredRemoval(Message):
    """A removal under its kind; see `StoredPlan`."""

    kind: Literal["removal"] = "removal"
    plan: RemovePlan


StoredPlan = Annotated[StoredGraft | StoredJoin | StoredRemoval, Field(discriminator="kind")]
"""A plan for the host. A join and a removal have the same fields: as JSON without a kind, one is read as the other."""


class StoredAnswer(Message):
    """An answer for a replay of its command."""

    answer: Answer
    """Without its plans for the host."""
    plans: tuple[StoredPlan, ...]

    @classmethod
    def of(cls, answer: Answer) -> StoredAnswer:
        """The answer, ready to be kept."""
        plans = tuple(_under_its_kind(plan) for plan in answer.plans)
        return cls(answer=answer.model_copy(update={"plans": ()}), plans=plans)

    def as_given(self) -> Answer:
        """The answer as it was given."""
        return self.answer.model_copy(update={"plans": tuple(kept.plan for kept in self.plans)})


class StoredCommand(Message):
    """A command that was admitted. Its signed bytes follow from it."""

    command: Command
    plans: tuple[GraftPlan, ...]
    """Of its candidates, as `receive` gave them."""
    answer: StoredAnswer | None
    """None: it was not carried out."""


class RegistryState(Message):
    """All of `SeedManager` that decides what it will answer.

    Kept: every seed's record, the ledger (every command ever admitted, so that none is admitted again under another
    id or body), answers for replays, the order in flight, and counts. Not kept: what a run is told anew at its start
    (facts, limits, slots, options, blueprints, key, clock), and weights that no host needs from here any more.
    Commands and answers grow with the run, by some kilobytes per tournament; weights do not.
    """

    run_id: str
    generation: Count
    roster: RosterState
    commands: tuple[StoredCommand, ...]
    """In the order in which they were admitted."""
    order: IncubationOrder | None
    """In flight."""
    weights: dict[str, bytes]
    """By SHA-256: of every plan that may yet be measured, forked or grafted."""
    tests_used: Count
    violations: Count
    twin_kept: bool

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        """Raises: ValueError: one part speaks of something that another does not know."""
        seeds = [seed.seed_id for seed in self.roster.seeds]
        ids = [kept.command.command_id for kept in self.commands]
        _each_once("seed", seeds)
        _each_once("command", ids)
        _each_once("nonce", [kept.command.nonce for kept in self.commands])
        _known("slot", {seed.slot for seed in self.roster.seeds}, self.roster.ordinals)
        _known("command", {seed.command_id for seed in self.roster.seeds}, ids)
        _known("seed", {seed.replica_of for seed in self.roster.seeds} - {None}, seeds)
        if self.order is not None:
            if self.order.generation != self.generation:
                raise ValueError(f"the order in flight is of generation {self.order.generation}")
            _known("command", {self.order.order_id}, ids)
            _known("seed", {plan.seed_id for plan in self.order.plans}, seeds)
        plans = {kept.command.command_id: kept.plans for kept in self.commands}
        answered = {kept.command.command_id for kept in self.commands if kept.answer is not None}
        _known("weights", needed_weights(plans, answered, self.order, self.roster.seeds), self.weights)
        for digest, blob in self.weights.items():
            if blob_digest(blob) != digest:
                raise ValueError(f"weights are not those digested as {digest}")
        return self


def needed_weights(
    plans: Mapping[str, Sequence[GraftPlan]],
    answered: Collection[str],
    order: IncubationOrder | None,
    seeds: Iterable[SeedRecord],
) -> set[str]:
    """Digests of the weights that a host may still need from here.

    Args:
        plans: Of candidates, by the command that named them.
        answered: Commands that were carried out.
        order: In flight; all of it may have to be begun again.
        seeds: A seed in TRAINING may have won, and waits for its graft.
    """
    training = {seed.seed_id for seed in seeds if seed.stage is Stage.TRAINING}
    waiting = {
        plan.weights_digest
        for command_id, own in plans.items()
        for plan in own
        if command_id not in answered or plan.seed_id in training
    }
    return waiting | {plan.weights_digest for plan in (order.plans if order is not None else ())}


def read_state(text: str, *, run_id: str, generation: int, slots: Collection[str]) -> RegistryState:
    """The state in a text that `SeedManager.state` gave.

    Raises:
        StoreCorrupt: it is no such text, does not hold together, or is of another run, of other slots, or of a
            generation after `generation`.
    """
    try:
        state = RegistryState.model_validate_json(text)
    except ValidationError as error:
        raise StoreCorrupt(WHERE, str(first_problem(error))) from error
    if state.run_id != run_id:
        raise StoreCorrupt(WHERE, f"of run {state.run_id}, here {run_id}")
    if state.generation > generation:
        raise StoreCorrupt(WHERE, f"of generation {state.generation}, which is after {generation}")
    if set(state.roster.ordinals) != set(slots):
        raise StoreCorrupt(WHERE, f"of slots {sorted(state.roster.ordinals)}, here {sorted(slots)}")
    return state


def _under_its_kind(plan: HostPlan) -> StoredPlan:
    match plan:
        case GraftPlan():
            return StoredGraft(plan=plan)
        case JoinPlan():
            return StoredJoin(plan=plan)
        case RemovePlan():
            return StoredRemoval(plan=plan)


def _each_once(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"a {what} stands there twice")


def _known(what: str, named: Collection[str | None], known: Collection[str]) -> None:
    strange = sorted(str(name) for name in named if name not in known)
    if strange:
        raise ValueError(f"{what} {strange[0]} is named and not there")
