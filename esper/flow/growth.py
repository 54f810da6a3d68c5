"""Growth at a fence: a tournament ends, seeds enter their next stage or are removed, and another tournament begins.

Kasmina is asked for one change at a time. Each change is journaled and applied by the trainer before the next request.
"""

from __future__ import annotations

from dataclasses import dataclass

from esper import faults
from esper.archive.journal import Journal, RecordKind
from esper.errors import IsolationViolation
from esper.flow.answered import check_answered
from esper.flow.crew import Components
from esper.flow.position import Position
from esper.flow.progress import Progress
from esper.leyline.commands import Command, Operation
from esper.leyline.decisions import Hold
from esper.leyline.evidence import HostObservation
from esper.leyline.incubation import Changed, IncubationResult
from esper.leyline.reports import AdoptPlan, GraftReceipt, HostPlan, Weights
from esper.leyline.state import TrainingState
from esper.tamiyo.field_reports import FieldReportStore


@dataclass
class Growth:
    """The growth of one run."""

    components: Components
    journal: Journal
    store: FieldReportStore
    progress: Progress
    at: Position

    def hold(self, fence: int, training: TrainingState) -> Command | None:
        """Conclude a tournament that is due, and judge the seeds that are due. Then let Tamiyo decide about a new
        tournament.

        Call it once per fence, after `at.view` was set to Kasmina's view of that fence. Each step updates `at.view`.

        Args:
            training: What the trainer measured in the round that ended at this fence.

        Returns:
            Tamiyo's command to go back to an earlier fence. The command is not sent yet. None: the run continues.
        """
        concludes = self.at.registry.due
        self._conclude(fence)
        self._compare_with_twin(fence)
        self._advance(fence, training)
        if concludes:
            self.components.incubator.drop_winner()
        self._reset(fence)
        return self._decide(fence, training)

    def _conclude(self, fence: int) -> None:
        if not self.at.registry.due:
            return
        self.progress.working(f"round {fence}: incubating")
        with self.at.tally.waiting():
            result = self.components.incubator.collect()
        self.at.tally.incubator_steps += result.fork_steps
        self.at.tally.incubator_flops += result.flops
        self._count(result)
        self.journal.write(RecordKind.INCUBATION_ENDED, result)
        self._take(self.components.kasmina.conclude(result, fence))

    def _count(self, result: IncubationResult) -> None:
        """Count a tournament or a later look that ended. The order of a tournament has the id of the command that
        requested its seeds."""
        requested = {seed.command_id for seed in self.at.registry.seeds}
        log = self.at.tally.growth
        self.at.tally.growth = log.concluded() if result.order_id in requested else log.looked()

    def _compare_with_twin(self, fence: int) -> None:
        if self.at.registry.compares_with_twin:
            live = self.components.trainer.sample_losses("gate", fence)
            with self.at.tally.waiting():
                twin = self.components.incubator.twin_losses(fence)
            compared = self.components.kasmina.compare(live, twin)
            self.at.tally.incubator_flops += compared.flops
            self.journal.write(RecordKind.TWIN_COMPARED, compared.losses)

    def _advance(self, fence: int, training: TrainingState) -> None:
        """Let Kasmina judge the next gate of each due seed. Seeds are judged one at a time, because a verdict may
        remove other seeds."""
        observation = self.components.trainer.observe(fence, self.at.registry.stages)
        while (command := self.components.tamiyo.advance(self.at.round_state(training))) is not None:
            self._carry_out(command, fence, observation)

    def _reset(self, fence: int) -> None:
        if seeds := self.at.registry.resetting:
            self._take(self.components.kasmina.reset(self.components.trainer.compare_with_unseeded(seeds), fence))

    def _decide(self, fence: int, training: TrainingState) -> Command | None:
        verdict = self.components.tamiyo.decide(self.at.round_state(training))
        if verdict.decision is not None:
            self.journal.write(RecordKind.DECISION, verdict.decision)
        for change in verdict.rates:
            self._carry_out(change, fence, None)
        if isinstance(verdict.outcome, Hold):
            self.at.tally.growth = self.at.tally.growth.held(verdict.outcome)
            self.journal.write(RecordKind.HOLD, verdict.outcome)
            self.progress.hold(verdict.outcome)
        elif verdict.outcome.operation is Operation.GO_BACK:
            return verdict.outcome
        else:
            self._germinate(self._sent(verdict.outcome), fence)
        return None

    def _germinate(self, command: Command, fence: int) -> None:
        received = self.components.kasmina.receive(command, fence)
        check_answered(command, received.command_id)
        snapshot = self.components.trainer.snapshot()
        with self.at.tally.waiting():
            probes = self.components.incubator.probe_candidates(received.plans, received.weights, snapshot)
        self.at.tally.incubator_flops += received.flops
        changed = self.components.kasmina.carry_out(command.command_id, fence, probes)
        self._take(changed)
        if changed.answer.order is not None:
            self.components.incubator.begin(changed.answer.order, changed.weights, snapshot)

    def _carry_out(self, command: Command, fence: int, observation: HostObservation | None) -> None:
        changed = self.components.kasmina.advance(self._sent(command), fence, observation)
        check_answered(command, changed.command_id)
        self._take(changed)
        if changed.answer.order is not None:
            self.components.incubator.go_on(changed.answer.order, changed.weights)

    def _sent(self, command: Command) -> Command:
        """Journal a command and return it. A command is journaled before Kasmina gets it, so that the journal contains
        every command that had an effect.
        """
        self.journal.write(RecordKind.COMMAND, command)
        return command

    def _take(self, changed: Changed) -> None:
        """Journal Kasmina's answer, apply its plans to the live host, and give its field reports to Tamiyo."""
        self.at.view, answer = changed.view, changed.answer
        for verdict in answer.gates:
            self.at.tally.growth = self.at.tally.growth.judged(verdict)
        self.journal.write_many([(RecordKind.GATE, report) for report in answer.gates])
        self.journal.write_many([(RecordKind.TRANSITION, step) for step in answer.transitions])
        if answer.order is not None:
            self.journal.write(RecordKind.INCUBATION_BEGUN, answer.order.model_copy(update={"plans": ()}))
        if answer.keep_twin:
            self.components.incubator.keep_twin()
        for plan in answer.plans:
            self._apply(plan, changed.weights)
        for report in answer.field_reports:
            self.store.append(report)
            self.journal.write(RecordKind.FIELD_REPORT, report)
            self.components.tamiyo.remember(report)
        self.progress.answer(answer)

    def _apply(self, plan: HostPlan, weights: Weights) -> None:
        """Apply a plan to the live host. If a seed would share memory with the host, it is not attached, and Kasmina
        culls it."""
        try:
            receipt = self._adopt(plan) if isinstance(plan, AdoptPlan) else self.components.trainer.apply(plan, weights)
        except IsolationViolation as violation:
            culled = self.components.kasmina.not_attached(violation.seed_id, violation.leaves, plan.fence)
            self._take(culled)
        else:
            self.journal.write(RecordKind.PLAN_APPLIED, receipt)

    def _adopt(self, plan: AdoptPlan) -> GraftReceipt:
        """Journal an adoption, and restore the state of the fork in the trainer.

        Raises:
            AdoptionMismatch: the weights of the live host are not the expected ones, before or after.
            IsolationViolation: the seed shares memory with the live host, which was not changed.
        """
        faults.point("conductor.adoption_before", round=plan.fence)
        with self.at.tally.waiting():
            snapshot = self.components.incubator.winner()
        faults.point("conductor.adoption_snapshot", round=plan.fence)
        self.journal.write(RecordKind.ADOPTED, plan)
        faults.point("conductor.adoption_journaled", round=plan.fence)
        receipt = self.components.trainer.adopt(plan, snapshot)
        faults.point("conductor.adoption_after", round=plan.fence)
        return receipt
