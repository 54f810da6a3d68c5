"""Stores every admitted command with its plans and its answer, for replays and checkpoints.

Weights of plans are stored once, by digest, as long as a host may need them. If a later replay needs them, they are
drawn again from the same random stream, and the digest is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from esper.errors import DependencyViolationError
from esper.ground.tensors import blob_digest
from esper.kasmina.registry.admission import AdmittedCommand, readmitted
from esper.kasmina.registry.registry_state import StoredAnswer, StoredCommand, needed_weights
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.incubation import Answer, IncubationOrder
from esper.leyline.reports import GraftPlan, Weights


class CommandBook:
    """The admitted commands of one run by id, in the order of admission."""

    def __init__(self, draw: Callable[[GraftPlan], bytes]) -> None:
        """Args: draw: Draws the weights of a plan again, with the same bits as at the germination of the seed."""
        self._draw = draw
        self._admitted: dict[str, AdmittedCommand] = {}
        self._plans: dict[str, tuple[GraftPlan, ...]] = {}
        self._answers: dict[str, Answer] = {}
        self._weights: dict[str, bytes] = {}

    # -- state for a checkpoint ----------------------------------------------------------------------------------

    def state(self) -> tuple[tuple[StoredCommand, ...], dict[str, bytes]]:
        """Return all commands, and the stored weights by digest."""
        return tuple(self._stored(command_id) for command_id in self._admitted), dict(self._weights)

    def _stored(self, command_id: str) -> StoredCommand:
        answer = self._answers.get(command_id)
        return StoredCommand(
            command=self._admitted[command_id].command,
            plans=self._plans[command_id],
            answer=StoredAnswer.of(answer) if answer is not None else None,
        )

    def restore(self, commands: Iterable[StoredCommand], weights: Weights) -> None:
        """Replace all commands and weights."""
        by_id = {known.command.command_id: known for known in commands}
        self._admitted = {command_id: readmitted(known.command) for command_id, known in by_id.items()}
        self._plans = {command_id: known.plans for command_id, known in by_id.items()}
        self._answers = {key: known.answer.as_given() for key, known in by_id.items() if known.answer is not None}
        self._weights = dict(weights)

    # -- commands ------------------------------------------------------------------------------------------------

    def counted(self, generation: int) -> dict[str, AdmittedCommand]:
        """Return the commands that admission needs, by id.

        If a command of an older generation was never carried out, it is left out, because it has changed nothing. After
        a restore, Tamiyo issues the command again with the same id and nonce, and admission must accept it.
        """
        return {
            key: admitted
            for key, admitted in self._admitted.items()
            if key in self._answers or admitted.command.generation == generation
        }

    def __getitem__(self, command_id: str) -> AdmittedCommand:
        return self._admitted[command_id]

    def enter(self, admitted: AdmittedCommand, plans: Sequence[GraftPlan], weights: Weights, generation: int) -> None:
        """Add a command of this generation.

        First drop the commands that `counted` leaves out, because one of them may have the same id.
        """
        for forgotten in self._admitted.keys() - self.counted(generation).keys():
            del self._admitted[forgotten], self._plans[forgotten]
        command_id = admitted.command.command_id
        self._admitted[command_id] = admitted
        self._plans[command_id] = tuple(plans)
        self._weights |= weights

    def answer_with(self, command_id: str, answer: Answer) -> None:
        """Record the answer to a command."""
        self._answers[command_id] = answer

    # -- plans, answers, weights ---------------------------------------------------------------------------------

    def plans(self, command_id: str) -> tuple[GraftPlan, ...]:
        """Return the plans of a command's candidates."""
        return self._plans[command_id]

    def plans_since(self, command_id: str) -> int:
        """Return the number of plans for the live host in the answers to the commands after a command."""
        ids = list(self._admitted)
        later = (self._answers.get(key) for key in ids[ids.index(command_id) + 1 :])
        return sum(len(answer.plans) for answer in later if answer is not None)

    def plan_of(self, seed: SeedRecord) -> GraftPlan:
        """Return the plan that attached a seed to its fork."""
        return next(plan for plan in self._plans[seed.command_id] if plan.seed_id == seed.seed_id)

    def order_of(self, seed: SeedRecord) -> IncubationOrder:
        """Return the last order whose plans have a seed."""
        orders = (answer.order for answer in reversed(self._answers.values()) if answer.order is not None)
        return next(order for order in orders if seed.seed_id in [plan.seed_id for plan in order.plans])

    def answer(self, command_id: str) -> Answer | None:
        """Return the answer to a command. None: the command was not carried out."""
        return self._answers.get(command_id)

    def weights_of(self, plans: Iterable[GraftPlan]) -> dict[str, bytes]:
        """Return the weights of some plans, by digest. Weights that are no longer stored are drawn again.

        Raises:
            SeedBuildFailed: weights had to be drawn again, and the factory raised.
            DependencyViolationError: weights that were drawn again have another digest. This can happen on another
                machine.
        """
        return {plan.weights_digest: self._stored_or_drawn(plan) for plan in plans}

    def _stored_or_drawn(self, plan: GraftPlan) -> bytes:
        weights = self._weights.get(plan.weights_digest)
        if weights is None:
            weights = self._draw(plan)
            if blob_digest(weights) != plan.weights_digest:
                what = f"plan for seed {plan.seed_id}"
                raise DependencyViolationError(what, "weights are not those digested", plan.weights_digest)
        return weights

    def forget_weights(self, order: IncubationOrder | None, seeds: Iterable[SeedRecord]) -> None:
        """Drop the weights that no host needs; see `needed_weights`. A replay draws them again."""
        needed = needed_weights(self._plans, self._answers, order, seeds)
        self._weights = {digest: blob for digest, blob in self._weights.items() if digest in needed}
