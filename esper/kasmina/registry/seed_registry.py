"""Kasmina's registry of seeds: admits commands, carries them out on its records, and returns plans and orders.

The registry has no host. Its answers depend only on its inputs and its records. The clock is used to decide whether a
command is fresh, and to date field reports.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from esper.ground.clock import Clock
from esper.kasmina.blueprints.catalogue import BlueprintRegistry
from esper.kasmina.incubation.incubator import PROBE_BATCHES
from esper.kasmina.judging.statistics import paired
from esper.kasmina.registry.admission import admit, check_generation
from esper.kasmina.registry.advancing import not_attached
from esper.kasmina.registry.culling import reset
from esper.kasmina.registry.operations import OPERATIONS, Measured
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.run_records import RunRecords
from esper.kasmina.registry.selection import conclude
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import Command
from esper.leyline.decisions import Pair
from esper.leyline.evidence import HostObservation, PairedLosses, ResetProbe, SampleLosses
from esper.leyline.incubation import Answer, CandidateProbe, IncubationOrder, IncubationResult
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import SlotSpec
from esper.leyline.state import RegistryView
from esper.telemetry.context import span


class SeedRegistry:
    """The registry of one run's seeds and slots. It has no locks: one thread at a time may call it."""

    def __init__(
        self,
        facts: RunFacts,
        limits: GrowthConfig,
        specs: Sequence[SlotSpec],
        options: Sequence[Pair],
        blueprints: BlueprintRegistry,
        *,
        key: bytes,
        clock: Clock,
    ) -> None:
        self._records = RunRecords(facts, limits, specs, options, blueprints, clock)
        self._key, self._clock = key, clock

    # -- state for a checkpoint ----------------------------------------------------------------------------------

    def state(self) -> str:
        """Drop the weights that no host needs, and return the registry's state as JSON; see `RegistryState`."""
        return self._records.state()

    def restore(self, state: str, generation: int) -> None:
        """Replace the present state by `state`. The new generation is `generation`.

        Afterwards, commands and results of an older generation are refused, and new plans have the new generation. The
        order in flight, if any, must begin again from its first step. Replays within the same generation are still
        answered.

        Raises:
            StoreCorrupt: the text is not a state of this run up to this generation; nothing was changed.
        """
        self._records.restore(state, generation)

    def order(self) -> IncubationOrder | None:
        """Return the order in flight. None: no tournament is running."""
        return self._records.order

    def weights_of(self, plans: Iterable[GraftPlan]) -> dict[str, bytes]:
        """Return the weights of plans that this registry made, by digest.

        Weights are stored until the next command or the next `state`, and longer if a host needs them. Weights that are
        not stored are drawn again.

        Raises:
            SeedBuildFailed, DependencyViolationError: the weights could not be drawn again with the same bits.
        """
        return self._records.book.weights_of(plans)

    # -- queries -------------------------------------------------------------------------------------------------

    def view(self, fence: int) -> RegistryView:
        """Return the view of the registry at a fence. `esper.flow.growth` chooses its next step by this view."""
        return self._records.view(fence)

    def probe_flops(self, plans: Sequence[GraftPlan]) -> int:
        """Return the modelled FLOPs of the measurements of candidates before their training."""
        roster = self._records.roster
        seeds = sum(roster.options[plan.slot, plan.blueprint_id].flops for plan in plans)
        return PROBE_BATCHES * (len(plans) * roster.step_flops() + seeds)

    def comparison_flops(self, live: SampleLosses) -> int:
        """Return the modelled FLOPs of a twin comparison. The forward pass of each host counts as a third of a step."""
        facts = self._records.facts
        passes = len(live.losses) / facts.batch_size / 3
        return round(passes * (self._records.roster.step_flops() + facts.host_flops))

    # -- commands ------------------------------------------------------------------------------------------------

    def receive(self, command: Command, fence: int, checkpoints: Collection[int] = ()) -> tuple[GraftPlan, ...]:
        """Admit a command and record it with the plans of its candidates. Neither a seed nor a host is changed.

        Args:
            checkpoints: The fences to which a command may roll the run back. The caller (`esper.flow.line`) determines
                these fences.

        Returns:
            For GERMINATE, the plans of the candidates. They must be measured on a fork before `carry_out`. For other
            commands, the result has no plans.

        Raises:
            CommandRejected, DependencyViolationError: the command was refused.
            SeedBuildFailed: a candidate could not be built; the command was not recorded.
        """
        records, ledger = self._records, self._records.ledger(fence, checkpoints)
        admitted = admit(command, ledger, key=self._key, now=self._clock.now())
        if command.command_id in ledger.bodies:
            return records.book.plans(command.command_id)
        known = [c for c in command.candidates if records.roster.known(c)]
        drawn = [records.fork_plan(command, c, fence) for c in known]
        plans = tuple(plan for plan, _ in drawn)
        records.forget_weights()
        weights = {plan.weights_digest: blob for plan, blob in drawn}
        records.book.enter(admitted, plans, weights, records.facts.generation)
        return plans

    def carry_out(
        self, command_id: str, fence: int, probes: Sequence[CandidateProbe], observation: HostObservation | None
    ) -> Answer:
        """Carry out a command after `receive`. A repeated call returns the same answer.

        Args:
            probes: Measurements of the plans that `receive` returned.
            observation: The trainer's observation at this fence. It is required for G3 and G4, the gates of seeds in
                the live host.

        Raises:
            CommandRejected: the command was admitted in an older generation.
            EvidenceMissing: a gate could not judge; nothing was changed.
        """
        book = self._records.book
        command = check_generation(book[command_id], self._records.facts.generation)
        known = book.answer(command_id)
        if known is not None:
            return known
        measured = Measured({probe.seed_id: probe for probe in probes}, observation)
        with span("gate evaluate", role="kasmina", command_id=command_id, operation=str(command.operation)):
            answer = OPERATIONS[command.operation](self._records, command, fence, measured)
        book.answer_with(command_id, answer)
        return answer

    def not_attached(self, seed_id: str, leaks: tuple[str, ...], fence: int) -> Answer:
        """Cull a seed that the trainer did not attach; see `advancing.not_attached`."""
        return not_attached(self._records, self._records.roster[seed_id], leaks, fence)

    # -- what is due at a fence without a command ----------------------------------------------------------------

    def conclude(self, result: IncubationResult, fence: int) -> Answer:
        """Record a tournament's results; see `selection.conclude`."""
        return conclude(self._records, result, fence)

    def compare(self, live: SampleLosses, twin: SampleLosses) -> PairedLosses:
        """Compare live host and twin at this fence, and record z for every seed that `Roster.shadowed` returns."""
        pairs = paired(twin, live)
        self._records.roster.compared(pairs.z, live.fence)
        return pairs

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Answer:
        """Judge G5 for every seed whose embargo has ended; see `culling.reset`."""
        return reset(self._records, probes, fence)
