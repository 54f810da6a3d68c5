"""All records of Kasmina's registry of one run.

The registry's answers depend only on these records and on its inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from esper.ground.clock import Clock
from esper.kasmina.blueprints.catalogue import BlueprintRegistry
from esper.kasmina.blueprints.placebos import kind_of
from esper.kasmina.incubation.placebo_plans import placebo_plans, placebo_weights
from esper.kasmina.incubation.planning import draw_weights
from esper.kasmina.registry.answers import field_report, fork_plan, in_generation
from esper.kasmina.registry.command_book import CommandBook
from esper.kasmina.registry.ledger import Ledger
from esper.kasmina.registry.registry_state import RegistryState, read_state
from esper.kasmina.registry.roster import Roster
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import SeedRecord, tell_gate
from esper.kasmina.registry.shared_vectors import packed
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import Candidate, Command
from esper.leyline.decisions import Pair
from esper.leyline.incubation import IncubationOrder
from esper.leyline.reports import FieldReport, GateReport, GraftPlan, Outcome
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView


class RunRecords:
    """Seeds, commands, the order in flight and counts of one run, with the constants of the run."""

    def __init__(
        self,
        facts: RunFacts,
        limits: GrowthConfig,
        specs: Sequence[SlotSpec],
        options: Sequence[Pair],
        blueprints: BlueprintRegistry,
        clock: Clock,
    ) -> None:
        self.facts, self.limits = facts, limits
        self._blueprints, self._clock = blueprints, clock
        self.roster = Roster(facts, limits, specs, options)
        self.book = CommandBook(self._draw_weights_again)
        self.order: IncubationOrder | None = None
        """The order whose tournament is running. None: no tournament is running."""
        self.tests_used = 0
        """Number of candidates that were incubated in the whole run."""
        self.violations = 0
        """Number of judgements that found a seed's gradient in host parameters."""
        self.twin_kept = False
        self.placebo_gains: tuple[float, ...] = ()
        """Gains of the placebos of the last tournament with placebos that has ended, on the gate shard."""

    # -- state for a checkpoint ----------------------------------------------------------------------------------

    def state(self) -> str:
        """Drop the weights that no host needs, and return the records as JSON; see `RegistryState`."""
        self.forget_weights()
        commands, weights = self.book.state()
        state = RegistryState(
            run_id=self.facts.run_id,
            generation=self.facts.generation,
            roster=self.roster.state(),
            commands=commands,
            order=self.order,
            weights=weights,
            tests_used=self.tests_used,
            violations=self.violations,
            twin_kept=self.twin_kept,
            placebo_gains=self.placebo_gains,
        )
        return packed(state.model_dump_json())

    def restore(self, state: str, generation: int) -> None:
        """Replace all records by the records in `state`. The new generation is `generation`.

        Raises:
            StoreCorrupt: the text is not a state of this run up to this generation; nothing was changed.
        """
        stored = read_state(state, run_id=self.facts.run_id, generation=generation, slots=self.roster.specs)
        specs, options = tuple(self.roster.specs.values()), tuple(self.roster.options.values())
        self.facts = replace(self.facts, generation=generation)
        self.roster = Roster(self.facts, self.limits, specs, options)
        self.roster.restore(stored.roster)
        self.book.restore(stored.commands, stored.weights)
        self.order = in_generation(stored.order, generation) if stored.order is not None else None
        self.tests_used, self.violations = stored.tests_used, stored.violations
        self.twin_kept, self.placebo_gains = stored.twin_kept, stored.placebo_gains

    # -- queries -------------------------------------------------------------------------------------------------

    def view(self, fence: int) -> RegistryView:
        """Return the view of the registry at a fence. `esper.flow.growth` chooses its next step by this view."""
        return RegistryView(
            run_id=self.facts.run_id,
            generation=self.facts.generation,
            fence=fence,
            last_fence=len(self.facts.fence_steps) - 1,
            slots=self.roster.slot_states(fence),
            seeds=self.roster.seed_states(fence),
            options=tuple(self.roster.options.values()),
            incubating=self.order is not None,
            added_parameters=self.roster.added_parameters(),
            parameter_budget=self.roster.parameter_budget(),
            tests_used=self.tests_used,
            tests_allowed=self.limits.max_tests,
            tournaments_used=self.roster.tournaments(),
            tournaments_allowed=self.limits.max_tournaments,
            isolation_violations=self.violations,
            due=self.order is not None and self.order.due_fence == fence,
            resetting={seed.seed_id: seed.slot for seed in self.roster.resetting(fence)},
            has_twin=self.twin_kept,
            compares_with_twin=self.twin_kept and bool(self.roster.shadowed()),
            step_flops=self.roster.step_flops(),
        )

    def ledger(self, fence: int, checkpoints: Collection[int] = ()) -> Ledger:
        """Return the facts about earlier commands and seeds that the admission of a command needs.

        Args:
            checkpoints: The fences to which a command may roll the run back.
        """
        counted = self.book.counted(self.facts.generation)
        return Ledger(
            run_id=self.facts.run_id,
            generation=self.facts.generation,
            nonces={admitted.command.nonce: key for key, admitted in counted.items()},
            bodies={key: admitted.signed for key, admitted in counted.items()},
            fence=fence,
            stages=self.roster.stages(),
            earliest=self.roster.earliest(),
            pairs=self.roster.pairs(),
            slots=self.roster.specs,
            blends=self.roster.blends(),
            closed=self.roster.closed(),
            order_in_flight=self.order.order_id if self.order is not None else None,
            checkpoints=tuple(sorted(checkpoints)),
        )

    # -- judgements and reports ----------------------------------------------------------------------------------

    def judged(self, report: GateReport, seed: SeedRecord) -> None:
        """Count a judgement and emit its events."""
        tell_gate(report, seed)
        self.violations += "isolation_violated" in report.reasons

    def field_report(self, seed: SeedRecord, outcome: Outcome, reasons: tuple[str, ...], fence: int) -> FieldReport:
        """Return the outcome of a seed as a field report, issued now."""
        return field_report(self.facts, seed, outcome, reasons, fence, self._clock.now())

    # -- weights of plans ----------------------------------------------------------------------------------------

    def fork_plan(self, command: Command, candidate: Candidate, fence: int) -> tuple[GraftPlan, bytes]:
        """Return the plan that attaches a candidate to its fork, and the weights drawn for it.

        Raises:
            SeedBuildFailed: the module could not be built.
        """
        blueprint = self._blueprints.get(candidate.blueprint_id)
        return fork_plan(command, candidate, blueprint, fence, self.roster, self.facts, self.limits)

    def placebo_plans(self, plans: Sequence[GraftPlan]) -> tuple[GraftPlan, ...]:
        """Return the plans of the placebos of a tournament with these candidates."""
        return placebo_plans(plans, self.limits.placebos, self.roster.specs, self._blueprints, self.facts.run_seed)

    def placebo_flops(self, plans: Sequence[GraftPlan]) -> tuple[int, ...]:
        """Return the modelled FLOPs that each placebo adds per step."""
        specs, batch = self.roster.specs, self.facts.batch_size
        return tuple(
            self._blueprints.get(plan.blueprint_id).flops(specs[plan.slot], batch, plan.copies) for plan in plans
        )

    def forget_weights(self) -> None:
        """Drop the weights that no host needs any more. If a replay needs them, they are drawn again."""
        self.book.forget_weights(self.order, self.roster.having((Stage.TRAINING,)))

    def _draw_weights_again(self, plan: GraftPlan) -> bytes:
        """Draw a plan's weights again. The seed's pair and the fence of its germination determine the bits."""
        if kind_of(plan.blueprint_id) is not None:
            spec = self.roster.specs[plan.slot]
            return placebo_weights(plan, spec, self._blueprints, self.facts.run_seed)
        seed = self.roster[plan.seed_id]
        named = {"slot": seed.slot, "blueprint_id": seed.blueprint_id, "seed_id": seed.seed_id}
        candidate = Candidate(**named, copies=seed.copies)
        spec, blueprint = self.roster.specs[seed.slot], self._blueprints.get(seed.blueprint_id)
        return draw_weights(candidate, spec, blueprint, run_seed=self.facts.run_seed, fence=seed.germinated_fence)
