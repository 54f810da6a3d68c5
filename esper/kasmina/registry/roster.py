"""Kasmina's records of the seeds and slots of one run, with queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esper.kasmina.host.blending import blend_alpha
from esper.kasmina.registry.registry_state import RosterState
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import Graft, SeedRecord
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import BlendSpec, Candidate
from esper.leyline.decisions import Pair
from esper.leyline.reports import GraftPlan, Transition
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import IN_HOST, LIVE, Stage
from esper.leyline.state import SeedState, SlotState
from esper.telemetry.context import span


class Roster:
    """All seeds of the run's GERMINATE commands, by id, in the order of the commands."""

    def __init__(
        self, facts: RunFacts, limits: GrowthConfig, specs: Sequence[SlotSpec], options: Sequence[Pair]
    ) -> None:
        self._facts, self._limits = facts, limits
        self.specs = {spec.path: spec for spec in specs}
        self.options = {(pair.slot, pair.blueprint_id): pair for pair in options}
        self._seeds: dict[str, SeedRecord] = {}
        self._ordinals = dict.fromkeys(self.specs, 0)
        self._removed_at: int | None = None

    # -- state for a checkpoint ----------------------------------------------------------------------------------

    def state(self) -> RosterState:
        """Return all records."""
        seeds = tuple(self._seeds.values())
        return RosterState(seeds=seeds, ordinals=dict(self._ordinals), removed_at=self._removed_at)

    def restore(self, state: RosterState) -> None:
        """Replace all records. `state` must have the slots of this roster."""
        self._seeds = {seed.seed_id: seed for seed in state.seeds}
        self._ordinals = {slot: state.ordinals[slot] for slot in self.specs}
        self._removed_at = state.removed_at

    # -- changes -------------------------------------------------------------------------------------------------

    def enter(self, seed: SeedRecord) -> None:
        """Add a seed, or replace its record."""
        self._seeds[seed.seed_id] = seed

    def move(self, seed_id: str, after: Stage, fence: int, cause: str, command_id: str) -> Transition:
        """Move a seed to the stage `after`, and return the transition.

        Raises:
            IllegalTransition: the lifecycle does not allow this transition.
        """
        with span("seed transition", role="kasmina", seed_id=seed_id, after=str(after)):
            self._seeds[seed_id], step = self._seeds[seed_id].moved(after, fence, cause, command_id)
        return step

    def retire(self, seed_id: str, fence: int, cause: str, command_id: str) -> list[Transition]:
        """Cull a seed. If it was in the host, its pair gets an embargo. Otherwise its reset is due now."""
        live = self._seeds[seed_id].stage in LIVE
        if live:
            self._removed_at = fence
        rounds = self._limits.embargo_rounds if live else 0
        steps = [self.move(seed_id, after, fence, cause, command_id) for after in (Stage.CULLED, Stage.EMBARGOED)]
        self.enter(self._seeds[seed_id].model_copy(update={"embargo_until": fence + rounds}))
        return steps

    def grafted(self, seed_id: str, plan: GraftPlan, mesh: tuple[str, ...]) -> None:
        """Record that `plan` grafted a seed into the live host, and increase the slot's next ordinal by 1."""
        graft = Graft(ordinal=plan.ordinal, start_step=plan.start_step, blend=plan.blend, confidence=plan.confidence)
        self.enter(self._seeds[seed_id].model_copy(update={"graft": graft, "required_mesh": mesh}))
        self._ordinals[plan.slot] += 1

    def set_confidence(self, seed_id: str, confidence: float) -> None:
        """Record the confidence that a plan applies to a seed in the host."""
        seed = self._seeds[seed_id]
        assert seed.graft is not None, "only a seed in the host has a confidence to change"
        graft = seed.graft.model_copy(update={"confidence": confidence})
        self.enter(seed.model_copy(update={"graft": graft}))

    def next_ordinal(self, slot: str) -> int:
        """Return the ordinal of the next seed that is grafted into the slot."""
        return self._ordinals[slot]

    def goes_on(self, seed_id: str, due_fence: int) -> None:
        """Record that a refused seed trains on in its fork, and that G2 judges it again at `due_fence`."""
        self.enter(self._seeds[seed_id].model_copy(update={"judged_again_at": due_fence}))

    # -- queries -------------------------------------------------------------------------------------------------

    def has_grafted(self) -> bool:
        """Return whether a seed has ever entered the live host."""
        return any(self._ordinals.values())

    def __getitem__(self, seed_id: str) -> SeedRecord:
        return self._seeds[seed_id]

    def known(self, candidate: Candidate) -> bool:
        """Return whether the pair is among the options that the survey found, with this number of copies."""
        pair = self.options.get((candidate.slot, candidate.blueprint_id))
        return pair is not None and pair.copies == candidate.copies

    def stages(self) -> dict[str, Stage]:
        """Return every seed's stage, by seed id."""
        return {seed.seed_id: seed.stage for seed in self._seeds.values()}

    def earliest(self) -> dict[str, int]:
        """Return the first fence at which each seed may pass to its next stage, by seed id.

        A seed stays in each stage for at least one fence, and in probation for `probation_rounds`. A refused seed whose
        fork trains on is judged at the end of this training.
        """
        return {seed.seed_id: self._earliest(seed) for seed in self._seeds.values()}

    def _earliest(self, seed: SeedRecord) -> int:
        if seed.stage is Stage.TRAINING and seed.judged_again_at is not None:
            return seed.judged_again_at
        return seed.since_fence + (self._limits.probation_rounds if seed.stage is Stage.PROBATIONARY else 1)

    def pairs(self) -> dict[str, tuple[str, str]]:
        """Return every seed's (slot, blueprint), by seed id."""
        return {seed.seed_id: (seed.slot, seed.blueprint_id) for seed in self._seeds.values()}

    def blends(self) -> dict[str, BlendSpec | None]:
        """Return every seed's blend, by seed id."""
        return {seed.seed_id: seed.blend for seed in self._seeds.values()}

    def closed(self) -> frozenset[str]:
        """Return the slots that are closed for further seeds, because parts of a culled seed are left in them."""
        return frozenset(seed.slot for seed in self.having((Stage.TERMINATED,)))

    def having(self, stages: Iterable[Stage]) -> list[SeedRecord]:
        """Return the seeds in some stages, in the order of their GERMINATE commands."""
        wanted = set(stages)
        return [seed for seed in self._seeds.values() if seed.stage in wanted]

    def newest_first(self) -> list[SeedRecord]:
        """Return the seeds that are in the host and not fossilised, the last grafted first.

        Seeds that were grafted at the same step are ordered by slot and ordinal. Seed ids must not decide the order,
        because the ids depend on the id of the run. Two runs with the same random seed must have the same results.
        """

        def grafted(seed: SeedRecord) -> tuple[int, str, int]:
            assert seed.graft is not None, "a seed in the host without its graft"
            return seed.graft.start_step, seed.slot, seed.graft.ordinal

        return sorted(self.having(LIVE), key=grafted, reverse=True)

    def resetting(self, fence: int) -> list[SeedRecord]:
        """Return the culled seeds whose embargo has ended."""
        return [seed for seed in self.having((Stage.EMBARGOED,)) if seed.embargo_until <= fence]

    def commands(self) -> tuple[str, ...]:
        """Return the ids of all GERMINATE commands, in their order."""
        return tuple(dict.fromkeys(seed.command_id for seed in self._seeds.values()))

    def tournaments(self) -> int:
        """Return the number of tournaments that were commanded, without those of replicas."""
        return len({seed.command_id for seed in self._seeds.values() if seed.replica_of is None})

    def step_flops(self) -> int:
        """Return the modelled FLOPs of one optimizer step of the live host with its present seeds."""
        return self._facts.host_flops + sum(seed.flops for seed in self.having(IN_HOST))

    def added_parameters(self) -> int:
        """Return the number of parameters of all seeds in the host."""
        return sum(seed.parameters for seed in self.having(IN_HOST))

    def parameter_budget(self) -> int:
        """Return the number of parameters that all seeds together may add to the host."""
        return self._limits.parameters_within(self._facts.host_parameters)

    def is_due(self, seed: SeedRecord, fence: int) -> bool:
        """Return whether the seed's next gate can be judged now. A seed passes at most one gate per fence."""
        if fence == seed.since_fence:
            return False
        if seed.stage is Stage.TRAINING:
            first = seed.result is not None and seed.result.rank == 1
            return first and fence >= (seed.judged_again_at or 0)
        if seed.stage is Stage.BLENDING and seed.graft is not None:
            return self._facts.fence_steps[fence] >= seed.start_step + seed.graft.blend.ramp_steps
        if self._disturbed(fence) and seed.stage in (Stage.SHADOWING, Stage.PROBATIONARY):
            return False
        if seed.stage is Stage.PROBATIONARY:
            return fence >= seed.since_fence + self._limits.probation_rounds
        return seed.stage is Stage.SHADOWING

    def slot_states(self, fence: int) -> tuple[SlotState, ...]:
        """Return the state of every slot for a decision at this fence."""
        return tuple(self._slot_state(spec, fence) for spec in self.specs.values())

    def seed_states(self, fence: int) -> tuple[SeedState, ...]:
        """Return the state of every seed for a decision at this fence."""
        return tuple(self._seed_state(seed, fence) for seed in self._seeds.values())

    def _slot_state(self, spec: SlotSpec, fence: int) -> SlotState:
        bound = {s.blueprint_id for s in self.having((Stage.EMBARGOED,)) if s.slot == spec.path and s.bound(fence)}
        occupied = sum(seed.slot == spec.path for seed in self.having(IN_HOST))
        closed = spec.path in self.closed()
        return SlotState(spec=spec, occupied=occupied, embargoed=tuple(sorted(bound)), closed=closed)

    def _seed_state(self, seed: SeedRecord, fence: int) -> SeedState:
        judged = seed.judged
        return SeedState(
            seed_id=seed.seed_id,
            slot=seed.slot,
            blueprint_id=seed.blueprint_id,
            ordinal=seed.graft.ordinal if seed.graft is not None else None,
            stage=seed.stage,
            alpha=self._alpha(seed, fence),
            since_fence=seed.since_fence,
            due=self.is_due(seed, fence),
            command_id=seed.command_id,
            replica_of=seed.replica_of,
            required_mesh=seed.required_mesh,
            parameters=seed.parameters,
            gain=judged.relative_gain if judged is not None else None,
            z=judged.z if judged is not None else None,
            rate_scale=seed.rate_scale,
            blend=seed.blend,
            copies=seed.copies,
        )

    def _alpha(self, seed: SeedRecord, fence: int) -> float | None:
        if seed.graft is None or seed.stage not in IN_HOST:
            return None
        step = self._facts.fence_steps[fence] - 1
        return blend_alpha(step, seed.start_step, seed.graft.blend, seed.graft.confidence).effective

    def _disturbed(self, fence: int) -> bool:
        return self._removed_at is not None and fence == self._removed_at + 1

    # -- the twin ------------------------------------------------------------------------------------------------

    def shadowed(self) -> list[SeedRecord]:
        """Return the seeds at their target alpha that are not fossilised.

        The comparison with the twin judges these seeds.
        """
        return self.having((Stage.SHADOWING, Stage.PROBATIONARY))

    def compared(self, z: float, fence: int) -> None:
        """Record z of (twin loss - live loss) at a fence for every seed that `shadowed` returns.

        The fence after a removal is skipped, because the loss of the host at this fence shows the effect of the removed
        seed.
        """
        if self._disturbed(fence):
            return
        for seed in self.shadowed():
            self.enter(seed.model_copy(update={"twin_zs": (*seed.twin_zs, z)}))
