"""Kasmina's manager: admits commands, runs the gates, moves seeds through their stages, and returns plans and orders.

It holds no host: its inputs are commands and evidence, its outputs plans and orders. Its answers depend on its inputs
and its state alone; the clock only decides whether a command is fresh, and stamps field reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from esper import faults
from esper.errors import EvidenceMissing
from esper.ground.clock import Clock
from esper.kasmina.blueprints.catalogue import Registry
from esper.kasmina.incubation.incubator import PROBE_BATCHES
from esper.kasmina.judging import gates
from esper.kasmina.judging.statistics import paired
from esper.kasmina.registry.admission import Ledger, admit, check_generation
from esper.kasmina.registry.answers import (
    field_report,
    fork_plan,
    in_generation,
    joined,
    live_plan,
    make_order,
    plan_ids,
    record_of,
)
from esper.kasmina.registry.command_book import CommandBook
from esper.kasmina.registry.gate_evidence import (
    gradient_evidence,
    impact_evidence,
    interface_evidence,
    sanity_evidence,
    stability_evidence,
)
from esper.kasmina.registry.lifecycle import NEXT
from esper.kasmina.registry.registry_state import RegistryState, read_state
from esper.kasmina.registry.roster import Roster
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import SeedRecord, tell_gate
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import Candidate, Command, Operation, signed_bytes
from esper.leyline.decisions import Pair
from esper.leyline.evidence import HostObservation, PairedLosses, ResetEvidence, ResetProbe, SampleLosses
from esper.leyline.incubation import Answer, CandidateProbe, IncubationOrder, IncubationResult
from esper.leyline.reports import FieldReport, Gate, GateReport, GraftPlan, JoinPlan, Outcome, RemovePlan
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import LIVE, Stage
from esper.leyline.state import RegistryView
from esper.telemetry.context import span
from esper.telemetry.events import Severity, severe

JOINED_AT = {"none": None, "blended": Stage.SHADOWING, "fossilized": Stage.FOSSILIZED}
"""`growth.isolate_until` -> the stage at whose start a seed's isolation ends. None: seeds are never isolated."""


class SeedManager:
    """The registry of one run's seeds and slots. It has no locks: one thread at a time may call it."""

    def __init__(
        self,
        facts: RunFacts,
        limits: GrowthConfig,
        specs: Sequence[SlotSpec],
        options: Sequence[Pair],
        blueprints: Registry,
        *,
        key: bytes,
        clock: Clock,
    ) -> None:
        self._facts, self._limits, self._blueprints = facts, limits, blueprints
        self._key, self._clock = key, clock
        self._roster = Roster(facts, limits, specs, options)
        self._book = CommandBook(self._draw_weights_again)
        self._order: IncubationOrder | None = None
        self._tests_used = 0
        self._violations = 0
        self._twin_kept = False

    # -- state for a checkpoint ----------------------------------------------------------------------------------

    def state(self) -> str:
        """Return all that later answers depend on, as JSON; see `RegistryState`. Drop weights that no host needs."""
        self._forget_weights()
        commands, weights = self._book.state()
        return RegistryState(
            run_id=self._facts.run_id,
            generation=self._facts.generation,
            roster=self._roster.state(),
            commands=commands,
            order=self._order,
            weights=weights,
            tests_used=self._tests_used,
            violations=self._violations,
            twin_kept=self._twin_kept,
        ).model_dump_json()

    def restore(self, state: str, generation: int) -> None:
        """Replace the present state by `state`, in `generation`.

        Afterwards commands and results of an older generation are refused, and new plans have the new number. `order`
        then returns the order in flight, which begins again from its first step. Within the same generation, replays
        are still answered.

        Raises:
            StoreCorrupt: the text is not a state of this run up to this generation; nothing was changed.
        """
        kept = read_state(state, run_id=self._facts.run_id, generation=generation, slots=self._roster.specs)
        facts = replace(self._facts, generation=generation)
        specs, options = tuple(self._roster.specs.values()), tuple(self._roster.options.values())
        self._facts, self._roster = facts, Roster(facts, self._limits, specs, options)
        self._roster.restore(kept.roster)
        self._book.restore(kept.commands, kept.weights)
        self._order = in_generation(kept.order, generation) if kept.order is not None else None
        self._tests_used, self._violations = kept.tests_used, kept.violations
        self._twin_kept = kept.twin_kept

    def order(self) -> IncubationOrder | None:
        """Return the order in flight. None: no tournament is running."""
        return self._order

    def weights_of(self, plans: Iterable[GraftPlan]) -> dict[str, bytes]:
        """Return the weights of plans that this registry made, by digest.

        Weights of the last change are stored until the next command or the next `state`. After that, weights that no
        host needs are drawn again.

        Raises:
            SeedBuildFailed, DependencyViolationError: they could not be drawn again with the same bits.
        """
        return self._book.weights_of(plans)

    # -- queries -------------------------------------------------------------------------------------------------

    def view(self, fence: int) -> RegistryView:
        """Return the view of the registry at a fence: all that growth needs to choose its next step."""
        return RegistryView(
            run_id=self._facts.run_id,
            generation=self._facts.generation,
            fence=fence,
            last_fence=len(self._facts.fence_steps) - 1,
            slots=self._roster.slot_states(fence),
            seeds=self._roster.seed_states(fence),
            options=tuple(self._roster.options.values()),
            incubating=self._order is not None,
            added_parameters=self._roster.added_parameters(),
            parameter_budget=self._roster.parameter_budget(),
            tests_used=self._tests_used,
            tests_allowed=self._limits.max_tests,
            isolation_violations=self._violations,
            due=self._order is not None and self._order.due_fence == fence,
            resetting={seed.seed_id: seed.slot for seed in self._roster.resetting(fence)},
            has_twin=self._twin_kept,
            compares_with_twin=self._twin_kept and bool(self._roster.shadowed()),
            step_flops=self._roster.step_flops(),
        )

    def probe_flops(self, plans: Sequence[GraftPlan]) -> int:
        """Return the modelled FLOPs of the measurements of candidates before their training."""
        seeds = sum(self._roster.options[plan.slot, plan.blueprint_id].flops for plan in plans)
        return PROBE_BATCHES * (len(plans) * self._roster.step_flops() + seeds)

    def comparison_flops(self, live: SampleLosses) -> int:
        """Return the modelled FLOPs of a twin comparison: a forward pass of each host, counted as a third of a step."""
        passes = len(live.losses) / self._facts.batch_size / 3
        return round(passes * (self._roster.step_flops() + self._facts.host_flops))

    # -- commands ------------------------------------------------------------------------------------------------

    def receive(self, command: Command, fence: int) -> tuple[GraftPlan, ...]:
        """Admit a command and record it with the plans of its candidates. No seed and no host is changed yet.

        Returns:
            For GERMINATE, the plans of the candidates that must be measured on a fork before `carry_out`. Else none.

        Raises:
            CommandRejected, DependencyViolationError: the command was refused.
            SeedBuildFailed: a candidate could not be built; the command was not recorded.
        """
        faults.point("kasmina.receive", round=fence)
        ledger = self._ledger()
        admitted = admit(command, ledger, key=self._key, now=self._clock.now())
        if command.command_id in ledger.bodies:
            return self._book.plans(command.command_id)
        known = [c for c in command.candidates if self._roster.known(c.slot, c.blueprint_id)]
        drawn = [self._fork_plan(command, c, fence) for c in known]
        plans = tuple(plan for plan, _ in drawn)
        self._forget_weights()
        self._book.enter(admitted, plans, {plan.weights_digest: blob for plan, blob in drawn}, self._facts.generation)
        return plans

    def carry_out(
        self, command_id: str, fence: int, probes: Sequence[CandidateProbe], observation: HostObservation | None
    ) -> Answer:
        """Carry out a command after `receive`, as far as the gates pass. A repeated call returns the same answer.

        Args:
            probes: Measurements of the plans that `receive` returned.
            observation: The trainer's observation at this fence. Required for G3 and G4 (seeds in the live host).

        Raises:
            CommandRejected: the command was admitted in an older generation.
            EvidenceMissing: a gate could not judge; nothing was changed.
        """
        command = check_generation(self._book[command_id], self._facts.generation)
        known = self._book.answer(command_id)
        if known is not None:
            return known
        with span("gate evaluate", role="kasmina", command_id=command_id, operation=str(command.operation)):
            answer = self._do(command, fence, probes, observation)
        self._book.answer_with(command_id, answer)
        return answer

    def _do(
        self, command: Command, fence: int, probes: Sequence[CandidateProbe], observation: HostObservation | None
    ) -> Answer:
        if command.operation is Operation.GERMINATE:
            return self._germinate(command, fence, {probe.seed_id: probe for probe in probes})
        seed = self._roster[command.seed_id]
        if command.operation is Operation.CULL:
            return self._cull([seed], fence, "command", ("commanded",), command.command_id)
        if seed.stage is Stage.TRAINING:
            return self._accept(seed, command, fence)
        if observation is None:
            raise EvidenceMissing("G3 and G4", "observation of the host", None, "one at this fence")
        return self._advance(seed, command, fence, observation)

    def _ledger(self) -> Ledger:
        counted = self._book.counted(self._facts.generation)
        return Ledger(
            run_id=self._facts.run_id,
            generation=self._facts.generation,
            nonces={command.nonce: key for key, command in counted.items()},
            bodies={key: signed_bytes(command) for key, command in counted.items()},
            stages=self._roster.stages(),
            pairs=self._roster.pairs(),
            slots=frozenset(self._roster.specs),
            order_in_flight=self._order.order_id if self._order is not None else None,
        )

    # -- germination: G0 and G1 ----------------------------------------------------------------------------------

    def _germinate(self, command: Command, fence: int, probes: Mapping[str, CandidateProbe]) -> Answer:
        judged = [(c, self._judge_probe(command, c, probes.get(c.seed_id), fence)) for c in command.candidates]
        alive = {c.seed_id for c, reports in judged if reports[-1].passed}
        answer = Answer(gates=tuple(report for _, reports in judged for report in reports))
        for candidate, reports in judged:
            self._roster.enter(record_of(command, candidate, probes.get(candidate.seed_id), self._roster, fence))
            answer = joined(answer, self._settle_probe(candidate.seed_id, reports, fence))
        plans = [plan for plan in self._book.plans(command.command_id) if plan.seed_id in alive]
        self._tests_used += len(plans)
        self._order = make_order(command, fence, plans, self._roster, self._facts, self._limits) if plans else None
        return answer.model_copy(update={"order": self._order})

    def _judge_probe(
        self, command: Command, candidate: Candidate, measured: CandidateProbe | None, fence: int
    ) -> tuple[GateReport, ...]:
        """Judge G0, and G1 if G0 passed."""
        sanity = sanity_evidence(command, candidate, measured, self._roster, self._facts, self._limits)
        first = gates.sanity_gate(sanity, candidate.seed_id, fence)
        if not first.passed:
            return (first,)
        gradient = gradient_evidence(command, candidate, measured, self._roster)
        return first, gates.gradient_gate(gradient, self._limits, candidate.seed_id, fence)

    def _settle_probe(self, seed_id: str, reports: Sequence[GateReport], fence: int) -> Answer:
        """Report the judgements of G0 and G1, and move the seed: TRAINING; culled (G1 failed); DORMANT (G0 failed)."""
        seed, command_id = self._roster[seed_id], self._roster[seed_id].command_id
        for report in reports:
            tell_gate(report, seed)
            self._count_violation(report)
        steps = []
        if reports[0].passed:
            steps.append(self._roster.move(seed_id, Stage.GERMINATED, fence, Gate.G0, command_id))
        if reports[-1].passed:
            steps.append(self._roster.move(seed_id, Stage.TRAINING, fence, Gate.G1, command_id))
            return Answer(transitions=tuple(steps))
        if reports[0].passed:
            steps += self._roster.retire(seed_id, fence, Gate.G1, command_id)
        ended = self._field_report(seed, Outcome.ABORTED, reports[-1].reasons, fence)
        return Answer(transitions=tuple(steps), field_reports=(ended,))

    # -- the end of an incubation: G2 ----------------------------------------------------------------------------

    def conclude(self, result: IncubationResult, fence: int) -> Answer:
        """Record a tournament's results. The first waits for a command to judge its G2; the others fail G2 now.

        The losers are judged before any record changes, so that missing evidence changes nothing.

        Raises:
            EvidenceMissing: this is not the result of the order in flight; nothing was changed.
        """
        order = self._order
        if order is None or (result.order_id, result.generation) != (order.order_id, order.generation):
            raise EvidenceMissing("G2", "result of the incubation in flight", result.order_id, order and order.order_id)
        measured, asked = {fork.seed_id for fork in result.forks}, {plan.seed_id for plan in order.plans}
        if measured != asked:
            raise EvidenceMissing("G2", "results of all forks of the incubation", len(measured), len(asked))
        seeds = [self._roster[fork.seed_id].model_copy(update={"result": fork}) for fork in result.forks]
        losers = [seed for seed, fork in zip(seeds, result.forks, strict=True) if fork.rank != 1]
        judged = [(seed, self._judge_stability(None, seed, fence)) for seed in losers if seed.stage is Stage.TRAINING]
        self._order = None
        answer = Answer()
        for seed in seeds:
            self._roster.enter(seed)
        for seed, report in judged:
            tell_gate(report, seed)
            answer = joined(answer, self._cull_loser(seed, report, fence))
        return answer

    def _accept(self, seed: SeedRecord, command: Command, fence: int) -> Answer:
        """Judge G2 of the first of a tournament. If it passes, graft it into the live host; else cull it."""
        report = self._judge_stability(command, seed, fence)
        tell_gate(report, seed)
        if not report.passed:
            return self._cull_loser(seed, report, fence)
        step = self._roster.move(seed.seed_id, Stage.BLENDING, fence, Gate.G2, command.command_id)
        drawn = self._book.plan_of(seed)
        plan = live_plan(drawn, seed, command, fence, self._roster, self._facts, self._limits)
        self._roster.grafted(seed.seed_id, plan, command.mesh_host_layers)
        keep = self._limits.twin and not self._twin_kept
        self._twin_kept = self._twin_kept or keep
        return Answer(transitions=(step,), gates=(report,), plans=(plan,), keep_twin=keep)

    def _judge_stability(self, command: Command | None, seed: SeedRecord, fence: int) -> GateReport:
        if seed.result is None:
            raise EvidenceMissing("G2", "result of the seed's incubation", None, "a concluded tournament")
        winner = self._roster[seed.replica_of] if seed.replica_of is not None else None
        evidence = stability_evidence(command, seed, seed.result, winner, fence)
        return gates.stability_gate(evidence, self._limits, seed.seed_id, fence)

    def _cull_loser(self, seed: SeedRecord, report: GateReport, fence: int) -> Answer:
        outcome = Outcome.REGRESSION if "harmful" in report.reasons else Outcome.NEUTRAL
        return Answer(
            transitions=tuple(self._roster.retire(seed.seed_id, fence, report.gate, seed.command_id)),
            gates=(report,),
            field_reports=(self._field_report(seed, outcome, report.reasons, fence),),
        )

    # -- in the live host: G3 and G4 -----------------------------------------------------------------------------

    def _advance(self, seed: SeedRecord, command: Command, fence: int, observation: HostObservation) -> Answer:
        judge = self._judge_interface if seed.stage is Stage.BLENDING else self._judge_impact
        report = judge(seed, command, fence, observation)
        tell_gate(report, seed)
        self._count_violation(report)
        if not report.passed:
            return self._fail(seed, report, fence, command.command_id)
        after = NEXT[seed.stage]
        step = self._roster.move(seed.seed_id, after, fence, report.gate, command.command_id)
        plans: tuple[JoinPlan, ...] = ()
        if JOINED_AT[self._limits.isolate_until] is after:
            plans = (JoinPlan(seed_id=seed.seed_id, fence=fence, **plan_ids(self._facts, command.command_id)),)
        done = after is Stage.FOSSILIZED
        reports = (self._field_report(seed, Outcome.SUCCESS, (), fence),) if done else ()
        return Answer(transitions=(step,), gates=(report,), plans=plans, field_reports=reports)

    def _judge_interface(
        self, seed: SeedRecord, command: Command, fence: int, observation: HostObservation
    ) -> GateReport:
        evidence = interface_evidence(command, seed, self._roster.specs[seed.slot], observation)
        missing = gates.missing_layers(evidence)
        if missing:
            severe(
                "mesh_coverage_missing",
                Severity.ERROR,
                seed_id=seed.seed_id,
                missing=list(missing),
                required=list(seed.required_mesh),
                available=list(observation.registered_layers),
            )
        return gates.interface_gate(evidence, seed.seed_id, fence)

    def _judge_impact(self, seed: SeedRecord, command: Command, fence: int, observation: HostObservation) -> GateReport:
        evidence = impact_evidence(command, seed, observation, self._facts, self._limits, twin_kept=self._twin_kept)
        return gates.impact_gate(evidence, self._limits, seed.seed_id, fence)

    def _fail(self, seed: SeedRecord, report: GateReport, fence: int, command_id: str) -> Answer:
        """Cull a live seed that failed its gate.

        If the host is worse than its twin, cull every seed that is not fossilised: the comparison does not show which
        of them does the harm.
        """
        failed = self._roster.newest_first() if "worse_than_twin" in report.reasons else [seed]
        answer = self._cull(failed, fence, report.gate, report.reasons, command_id)
        return answer.model_copy(update={"gates": (report,)})

    def _cull(
        self, seeds: Sequence[SeedRecord], fence: int, cause: str, reasons: tuple[str, ...], command_id: str
    ) -> Answer:
        outcome = Outcome.REGRESSION if "worse_than_twin" in reasons else Outcome.ABORTED
        answer = Answer()
        for seed in seeds:
            report = self._field_report(seed, outcome, reasons, fence)
            steps = self._roster.retire(seed.seed_id, fence, cause, command_id)
            plans: tuple[RemovePlan, ...] = ()
            if seed.stage in LIVE:
                plans = (RemovePlan(seed_id=seed.seed_id, fence=fence, **plan_ids(self._facts, command_id)),)
            answer = joined(answer, Answer(transitions=tuple(steps), plans=plans, field_reports=(report,)))
        return answer

    def compare(self, live: SampleLosses, twin: SampleLosses) -> PairedLosses:
        """Compare live host and twin at this fence, and record z for every shadowed seed (alpha at its target)."""
        pairs = paired(twin, live)
        self._roster.compared(pairs.z, live.fence)
        return pairs

    # -- after a cull: embargo, G5 -------------------------------------------------------------------------------

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Answer:
        """Judge G5 for every seed whose embargo has ended. A seed that passes becomes DORMANT; else it stays RESETTING.

        Raises:
            EvidenceMissing: a seed's slot was not compared with an unseeded host; nothing was changed.
        """
        judged = []
        for seed in self._roster.resetting(fence):
            evidence = ResetEvidence(probe=probes.get(seed.seed_id))
            judged.append((seed, gates.reset_gate(evidence, seed.seed_id, fence)))
        answer = Answer()
        for seed, report in judged:
            steps = [self._roster.move(seed.seed_id, Stage.RESETTING, fence, "embargo over", seed.command_id)]
            tell_gate(report, seed)
            if report.passed:
                steps.append(self._roster.move(seed.seed_id, Stage.DORMANT, fence, Gate.G5, seed.command_id))
            answer = joined(answer, Answer(transitions=tuple(steps), gates=(report,)))
        return answer

    # -- plans and reports ---------------------------------------------------------------------------------------

    def _fork_plan(self, command: Command, candidate: Candidate, fence: int) -> tuple[GraftPlan, bytes]:
        blueprint = self._blueprints.get(candidate.blueprint_id)
        return fork_plan(command, candidate, blueprint, fence, self._roster, self._facts, self._limits)

    def _draw_weights_again(self, plan: GraftPlan) -> bytes:
        """Draw a plan's weights again, with the seed's pair and the fence of its germination, which fix the bits."""
        seed = self._roster[plan.seed_id]
        candidate = Candidate(slot=seed.slot, blueprint_id=seed.blueprint_id, seed_id=seed.seed_id)
        _, weights = self._fork_plan(self._book[seed.command_id].command, candidate, seed.germinated_fence)
        return weights

    def _forget_weights(self) -> None:
        self._book.forget_weights(self._order, self._roster.having((Stage.TRAINING,)))

    def _count_violation(self, report: GateReport) -> None:
        self._violations += "isolation_violated" in report.reasons

    def _field_report(self, seed: SeedRecord, outcome: Outcome, reasons: tuple[str, ...], fence: int) -> FieldReport:
        return field_report(self._facts, seed, outcome, reasons, fence, self._clock.now())
