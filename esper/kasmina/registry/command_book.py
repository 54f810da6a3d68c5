"""Every command that was admitted, with its plans and its answer, for replays and for checkpoints. It admits nothing.

Weights of plans are kept once, by digest, while a host may need them from here. For a replay that comes later they are
drawn again from the same random stream, and their digest is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from esper.errors import DependencyViolationError
from esper.ground.tensors import blob_digest
from esper.kasmina.registry.admission import AdmittedCommand, readmitted
from esper.kasmina.registry.registry_state import StoredAnswer, StoredCommand, needed_weights
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.commands import Command
from esper.leyline.incubation import Answer, IncubationOrder
from esper.leyline.reports import GraftPlan, Weights


class CommandBook:
    """The commands of one run by id, in the order in which they were admitted."""

    def __init__(self, draw: Callable[[GraftPlan], bytes]) -> None:
        """Args: draw: A plan's weights anew, as they were when its seed was asked for."""
        self._draw = draw
        self._admitted: dict[str, AdmittedCommand] = {}
        self._plans: dict[str, tuple[GraftPlan, ...]] = {}
        self._answers: dict[str, Answer] = {}
        self._weights: dict[str, bytes] = {}

    # -- as part of a checkpoint ---------------------------------------------------------------------------------

    def state(self) -> tuple[tuple[StoredCommand, ...], dict[str, bytes]]:
        """All commands, and the weights that are kept by their digest."""
        return tuple(self._kept(command_id) for command_id in self._admitted), dict(self._weights)

    def _kept(self, command_id: str) -> StoredCommand:
        answer = self._answers.get(command_id)
        return StoredCommand(
            command=self._admitted[command_id].command,
            plans=self._plans[command_id],
            answer=StoredAnswer.of(answer) if answer is not None else None,
        )

    def restore(self, commands: Iterable[StoredCommand], weights: Weights) -> None:
        """Replace all that stands here."""
        by_id = {known.command.command_id: known for known in commands}
        self._admitted = {command_id: readmitted(known.command) for command_id, known in by_id.items()}
        self._plans = {command_id: known.plans for command_id, known in by_id.items()}
        self._answers = {key: known.answer.as_given() for key, known in by_id.items() if known.answer is not None}
        self._weights = dict(weights)

    # -- commands ------------------------------------------------------------------------------------------------

    def counted(self, generation: int) -> dict[str, Command]:
        """Commands that admission must know of, by id.

        One of an older generation that was never carried out has left no trace, and whoever was restored before it
        asks for it again, by the same id and nonce: it is not counted.
        """
        return {
            key: admitted.command
            for key, admitted in self._admitted.items()
            if key in self._answers or admitted.command.generation == generation
        }

    def __getitem__(self, command_id: str) -> AdmittedCommand:
        return self._admitted[command_id]

    def enter(self, admitted: AdmittedCommand, plans: Sequence[GraftPlan], weights: Weights, generation: int) -> None:
        """Add a command of this generation; those that no longer count go, since it may have come in their place."""
        for forgotten in self._admitted.keys() - self.counted(generation).keys():
            del self._admitted[forgotten], self._plans[forgotten]
        command_id = admitted.command.command_id
        self._admitted[command_id] = admitted
        self._plans[command_id] = tuple(plans)
        self._weights |= weights

    def answer_with(self, command_id: str, answer: Answer) -> None:
        """Record what came of a command."""
        self._answers[command_id] = answer

    # -- what they led to ----------------------------------------------------------------------------------------

    def plans(self, command_id: str) -> tuple[GraftPlan, ...]:
        """Of a command's candidates."""
        return self._plans[command_id]

    def plan_of(self, seed: SeedRecord) -> GraftPlan:
        """By which a seed was put into its fork."""
        return next(plan for plan in self._plans[seed.command_id] if plan.seed_id == seed.seed_id)

    def answer(self, command_id: str) -> Answer | None:
        """What came of a command; None: it was not carried out."""
        return self._answers.get(command_id)

    def weights_of(self, plans: Iterable[GraftPlan]) -> dict[str, bytes]:
        """The weights of some plans, by digest.

        Raises:
            SeedBuildFailed: they had to be drawn again, and the factory raised.
            DependencyViolationError: they were drawn again and came out otherwise, as on another machine they may.
        """
        return {plan.weights_digest: self._kept_or_drawn(plan) for plan in plans}

    def _kept_or_drawn(self, plan: GraftPlan) -> bytes:
        weights = self._weights.get(plan.weights_digest)
        if weights is None:
            weights = self._draw(plan)
            if blob_digest(weights) != plan.weights_digest:
                what = f"plan for seed {plan.seed_id}"
                raise DependencyViolationError(what, "weights are not those digested", plan.weights_digest)
        return weights

    def forget_weights(self, order: IncubationOrder | None, seeds: Iterable[SeedRecord]) -> None:
        """Drop the weights that only a replay would ask for again; see `needed_weights`."""
        needed = needed_weights(self._plans, self._answers, order, seeds)
        self._weights = {digest: blob for digest, blob in self._weights.items() if digest in needed}
