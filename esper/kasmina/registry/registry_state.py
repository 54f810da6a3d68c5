"""The state of Kasmina's registry in a checkpoint, as JSON. The registry's future answers depend on this state.

Weights are stored once, by digest, as long as a host may need them. They are needed until the command is carried out,
its tournament has ended, and the winner has been judged. If a later replay needs them, they are drawn again from the
same random stream, and the digest is checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from esper.errors import StoreCorrupt
from esper.ground.problems import first_problem
from esper.ground.tensors import blob_digest
from esper.kasmina.registry.seed_record import SeedRecord
from esper.kasmina.registry.shared_vectors import unpacked
from esper.leyline.base import Count, GrownMessage, Message
from esper.leyline.commands import Command
from esper.leyline.incubation import Answer, IncubationOrder
from esper.leyline.reports import AdoptPlan, ConfidencePlan, GraftPlan, HostPlan, JoinPlan, RatePlan, RemovePlan
from esper.leyline.stages import Stage

WHERE = "kasmina's state"
"""Name of this state in errors."""


class RosterState(Message):
    """The records of a `Roster`."""

    seeds: tuple[SeedRecord, ...]
    """In the order of their GERMINATE commands."""
    ordinals: dict[str, Count]
    """Slot path -> ordinal of the next seed that is grafted there."""
    removed_at: Count | None
    """The last fence at which a seed was removed from the host. None: no seed was removed."""


class StoredGraft(Message):
    """A graft plan with its kind; see `StoredPlan`."""

    kind: Literal["graft"] = "graft"
    plan: GraftPlan


class StoredJoin(Message):
    """A join plan with its kind; see `StoredPlan`."""

    kind: Literal["join"] = "join"
    plan: JoinPlan


class StoredConfidence(Message):
    """A confidence plan with its kind; see `StoredPlan`."""

    kind: Literal["confidence"] = "confidence"
    plan: ConfidencePlan


class StoredAdoption(Message):
    """A plan to adopt a fork with its kind; see `StoredPlan`."""

    kind: Literal["adoption"] = "adoption"
    plan: AdoptPlan


class StoredRemoval(Message):
    """A removal plan with its kind; see `StoredPlan`."""

    kind: Literal["removal"] = "removal"
    plan: RemovePlan


class StoredRate(Message):
    """A plan for a seed's learning rates with its kind; see `StoredPlan`."""

    kind: Literal["rate"] = "rate"
    plan: RatePlan


StoredPlan = Annotated[
    StoredGraft | StoredAdoption | StoredJoin | StoredRate | StoredConfidence | StoredRemoval,
    Field(discriminator="kind"),
]
"""A plan for the host. JoinPlan and RemovePlan have the same fields, so JSON needs `kind` to distinguish them."""


class StoredAnswer(Message):
    """The answer to a command, for a replay of that command."""

    answer: Answer
    """The answer without its plans for the host. The plans are in the field `plans`."""
    plans: tuple[StoredPlan, ...]

    @classmethod
    def of(cls, answer: Answer) -> StoredAnswer:
        """Return the answer in its stored form."""
        plans = tuple(_with_kind(plan) for plan in answer.plans)
        return cls(answer=answer.model_copy(update={"plans": ()}), plans=plans)

    def as_given(self) -> Answer:
        """Return the answer in its original form."""
        return self.answer.model_copy(update={"plans": tuple(kept.plan for kept in self.plans)})


class StoredCommand(Message):
    """An admitted command. Its signed bytes are not stored, because they can be computed from the command."""

    command: Command
    plans: tuple[GraftPlan, ...]
    """The plans of its candidates, as `receive` returned them."""
    answer: StoredAnswer | None
    """None: the command was not carried out."""


class RegistryState(GrownMessage):
    """The state of a `SeedRegistry`. The registry's answers depend on this state and on the arguments of its start.

    Admitted commands are stored so that their ids and nonces are refused for other commands. Answers are stored for
    replays. The arguments of a start (facts, limits, slots, options, blueprints, key, clock) are not stored. Weights
    that no host needs are not stored either. Each tournament adds some kilobytes of commands and answers.
    """

    LATER: ClassVar = frozenset({"placebo_gains"})

    run_id: str
    generation: Count
    roster: RosterState
    commands: tuple[StoredCommand, ...]
    """In the order of admission."""
    order: IncubationOrder | None
    """The order whose tournament is running. None: no tournament is running."""
    weights: dict[str, bytes]
    """SHA-256 -> weights, for every plan whose seed may still be measured, attached to a fork, or grafted."""
    tests_used: Count
    violations: Count
    twin_kept: bool
    placebo_gains: tuple[float, ...] = ()
    """Gains of the placebos of the last tournament with placebos that has ended, on the gate shard."""

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        """Return the state. Raises: ValueError: an id or a digest is used but not listed, or it is listed twice."""
        seeds = [seed.seed_id for seed in self.roster.seeds]
        ids = [kept.command.command_id for kept in self.commands]
        _check_unique("seed", seeds)
        _check_unique("command", ids)
        _check_unique("nonce", [kept.command.nonce for kept in self.commands])
        _check_known("slot", {seed.slot for seed in self.roster.seeds}, self.roster.ordinals)
        _check_known("command", {seed.command_id for seed in self.roster.seeds}, ids)
        _check_known("seed", {seed.replica_of for seed in self.roster.seeds} - {None}, seeds)
        if self.order is not None:
            if self.order.generation != self.generation:
                raise ValueError(f"the order in flight is of generation {self.order.generation}")
            _check_known("command", {self.order.order_id}, ids)
            _check_known("seed", {plan.seed_id for plan in self.order.plans}, seeds)
        plans = {kept.command.command_id: kept.plans for kept in self.commands}
        answered = {kept.command.command_id for kept in self.commands if kept.answer is not None}
        _check_known("weights", needed_weights(plans, answered, self.order, self.roster.seeds), self.weights)
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
    """Return the digests of the weights that a host may need.

    Args:
        plans: Plans of candidates, by command id.
        answered: Ids of the commands that were carried out.
        order: The order in flight. All its weights are needed, because its tournament begins again after a restart.
        seeds: All seeds. The weights of a seed in TRAINING are needed, because the seed may be grafted.
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
    """Parse the text that `SeedRegistry.state` returned.

    Raises:
        StoreCorrupt: the text is not a state of a registry, it is inconsistent, or it belongs to another run, to other
            slots, or to a generation after `generation`.
    """
    try:
        state = RegistryState.model_validate_json(unpacked(text))
    except ValidationError as error:
        raise StoreCorrupt(WHERE, str(first_problem(error))) from error
    except ValueError as error:
        raise StoreCorrupt(WHERE, str(error)) from error
    if state.run_id != run_id:
        raise StoreCorrupt(WHERE, f"of run {state.run_id}, here {run_id}")
    if state.generation > generation:
        raise StoreCorrupt(WHERE, f"of generation {state.generation}, which is after {generation}")
    if set(state.roster.ordinals) != set(slots):
        raise StoreCorrupt(WHERE, f"of slots {sorted(state.roster.ordinals)}, here {sorted(slots)}")
    return state


def _with_kind(plan: HostPlan) -> StoredPlan:
    match plan:
        case GraftPlan():
            return StoredGraft(plan=plan)
        case AdoptPlan():
            return StoredAdoption(plan=plan)
        case JoinPlan():
            return StoredJoin(plan=plan)
        case RatePlan():
            return StoredRate(plan=plan)
        case ConfidencePlan():
            return StoredConfidence(plan=plan)
        case RemovePlan():
            return StoredRemoval(plan=plan)


def _check_unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"a {what} is listed twice")


def _check_known(what: str, named: Collection[str | None], known: Collection[str]) -> None:
    strange = sorted(str(name) for name in named if name not in known)
    if strange:
        raise ValueError(f"{what} {strange[0]} is named but missing")
