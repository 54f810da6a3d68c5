"""Builds the messages in the registry's answers: records, plans, orders and reports."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TypedDict

from esper.errors import EvidenceMissing
from esper.kasmina.blueprints.catalogue import Blueprint
from esper.kasmina.host.blending import next_confidence
from esper.kasmina.incubation.planning import later_look, plan_seed
from esper.kasmina.incubation.rungs import course, next_look
from esper.kasmina.registry.roster import Roster
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import SeedRecord
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import Candidate, Command
from esper.leyline.ids import Purpose, derive_id
from esper.leyline.incubation import Answer, CandidateProbe, ForkResult, IncubationOrder
from esper.leyline.reports import AdoptPlan, FieldReport, GraftPlan, Outcome
from esper.telemetry.context import traceparent


class PlanIds(TypedDict):
    """The fields that identify the command, run and generation of a plan. Every kind of plan has them."""

    command_id: str
    run_id: str
    generation: int


def plan_ids(facts: RunFacts, command_id: str) -> PlanIds:
    """Return the identifying fields of a plan of the present generation."""
    return {"command_id": command_id, "run_id": facts.run_id, "generation": facts.generation}


def record_of(
    command: Command, candidate: Candidate, measured: CandidateProbe | None, roster: Roster, fence: int
) -> SeedRecord:
    """Return the first record of a candidate, at stage DORMANT.

    Args:
        measured: None: the blueprint is unknown in this slot. In this case the sizes are 0, and G0 refuses the
            candidate.
    """
    probe = measured.sanity if measured is not None else None
    pair = roster.options.get((candidate.slot, candidate.blueprint_id))
    return SeedRecord(
        seed_id=candidate.seed_id,
        slot=candidate.slot,
        blueprint_id=candidate.blueprint_id,
        command_id=command.command_id,
        policy_version=command.policy_version,
        replica_of=command.replica_of,
        commanded=command.blend,
        required_mesh=command.mesh_host_layers,
        parameters=probe.parameters if probe is not None else 0,
        parameter_bytes=probe.parameter_bytes if probe is not None else 0,
        flops=pair.flops if pair is not None else 0,
        germinated_fence=fence,
        since_fence=fence,
        copies=candidate.copies,
    )


def make_order(
    command: Command,
    fence: int,
    plans: Sequence[GraftPlan],
    placebos: Sequence[GraftPlan],
    placebo_flops: Sequence[int],
    roster: Roster,
    facts: RunFacts,
    limits: GrowthConfig,
) -> IncubationOrder:
    """Return the order to incubate candidates that passed G0 and G1.

    An order for one or two candidates has no rung but the last.
    """
    first = facts.fence_steps[fence]
    found = course(limits, facts.fence_steps, fence, len(plans))
    stops = tuple(first + step for step in found.steps)
    by_rungs = limits.rungs is not None
    return IncubationOrder(
        adopts=limits.entry == "adopt",
        order_id=command.command_id,
        generation=facts.generation,
        fence=fence,
        due_fence=fence + found.rounds,
        first_step=first,
        last_step=stops[-1],
        halving_step=stops[0] if len(stops) > 1 and not by_rungs else None,
        rungs=stops if by_rungs else (),
        rung_units=found.units,
        plans=tuple(plans),
        batch_size=facts.batch_size,
        base_flops=roster.step_flops(),
        seed_flops=tuple(roster[plan.seed_id].flops for plan in plans),
        placebos=tuple(placebos),
        placebo_flops=tuple(placebo_flops),
        keeps=_keeps(fence, fence + found.rounds, roster, facts, limits),
    )


def order_to_go_on(
    before: IncubationOrder,
    command: Command,
    seed_ids: Collection[str],
    roster: Roster,
    facts: RunFacts,
    limits: GrowthConfig,
) -> IncubationOrder | None:
    """Return the order by which some forks of a refused tournament train on. None: no later look fits the run.

    Args:
        before: The order of the tournament, or the last order by which its forks trained on.
        command: The command with which G2 refused the first seed.
        seed_ids: The seeds of the forks that train on.
    """
    due = next_look(limits, facts.fence_steps, before.fence, before.due_fence)
    if due is None:
        return None
    later = later_look(before, command.command_id, seed_ids, due, facts.fence_steps[due])
    later = later.model_copy(update={"keeps": _keeps(before.fence, due, roster, facts, limits)})
    return in_generation(later, facts.generation)


def _keeps(began: int, due_fence: int, roster: Roster, facts: RunFacts, limits: GrowthConfig) -> int:
    """Return the number of forks that may train on after a tournament, or a look, that ends at `due_fence`."""
    again = next_look(limits, facts.fence_steps, began, due_fence) is not None and not roster.has_grafted()
    return limits.beside if again else 0


def fork_plan(
    command: Command,
    candidate: Candidate,
    blueprint: Blueprint,
    fence: int,
    roster: Roster,
    facts: RunFacts,
    limits: GrowthConfig,
) -> tuple[GraftPlan, bytes]:
    """Return the plan that attaches a candidate to its fork, and the candidate's weights.

    If the fork may be adopted, it has the ramp of the command, because this ramp continues in the live host.

    Raises:
        SeedBuildFailed: the module could not be built.
    """
    assert command.blend is not None, "admission requires a blend to germinate"
    ramp = command.blend.ramp_steps if limits.entry == "adopt" else limits.probe_ramp_steps
    return plan_seed(
        candidate,
        roster.specs[candidate.slot],
        blueprint,
        run_id=facts.run_id,
        generation=facts.generation,
        command_id=command.command_id,
        run_seed=facts.run_seed,
        fence=fence,
        step=facts.fence_steps[fence],
        ordinal=roster.next_ordinal(candidate.slot),
        blend=command.blend.model_copy(update={"ramp_steps": ramp}),
        confidence=next_confidence(command.blend, command.confidence_logits, None),
        warmup_steps=limits.probe_warmup_steps,
    )


def live_plan(
    drawn: GraftPlan,
    seed: SeedRecord,
    command: Command,
    fence: int,
    roster: Roster,
    facts: RunFacts,
    limits: GrowthConfig,
) -> GraftPlan:
    """Return the plan for the live host. It has the initial weights of the plan for the fork, and the ramp of the
    command.

    Args:
        drawn: The plan of the seed's fork, perhaps of an older generation.
    """
    assert command.blend is not None, "admission requires the blend at the graft"
    return drawn.model_copy(
        update={
            **plan_ids(facts, command.command_id),
            "fence": fence,
            "start_step": facts.fence_steps[fence],
            "ordinal": roster.next_ordinal(seed.slot),
            "blend": command.blend,
            "confidence": next_confidence(command.blend, command.confidence_logits, drawn.confidence),
            "isolated": limits.isolate_until != "none",
            "warmup_steps": limits.warmup_steps,
        }
    )


def adopt_plan(drawn: GraftPlan, result: ForkResult, command: Command, fence: int, facts: RunFacts) -> AdoptPlan:
    """Return the plan to continue with the fork of a seed, instead of the live host.

    Args:
        drawn: The plan of the seed's fork, perhaps of an older generation. The fork has it in the present generation.

    Raises:
        EvidenceMissing: the weights of the fork or of the control were not measured.
    """
    before, after = result.control_sha256, result.weights_sha256
    if before is None or after is None:
        raise EvidenceMissing("G2", "digests of the weights of control and fork", None, "those of their last step")
    return AdoptPlan(
        seed_id=result.seed_id,
        fence=fence,
        graft=drawn.model_copy(update={"generation": facts.generation}),
        before_sha256=before,
        after_sha256=after,
        **plan_ids(facts, command.command_id),
    )


def field_report(
    facts: RunFacts, seed: SeedRecord, outcome: Outcome, reasons: tuple[str, ...], fence: int, now: datetime
) -> FieldReport:
    """Return the outcome of a seed as a field report for the policy."""
    judged, step = seed.judged, facts.fence_steps[fence]
    pick = seed.result.pick if seed.result is not None else None
    return FieldReport(
        report_id=derive_id(facts.run_id, Purpose.REPORT, fence=fence, step=step, slot=seed.seed_id),
        command_id=seed.command_id,
        run_id=facts.run_id,
        generation=facts.generation,
        seed_id=seed.seed_id,
        blueprint_id=seed.blueprint_id,
        slot=seed.slot,
        outcome=outcome,
        reasons=reasons,
        gain=judged.relative_gain if judged is not None else None,
        z=judged.z if judged is not None else None,
        pick_gain=pick.relative_gain if pick is not None else None,
        window_fences=(seed.germinated_fence, fence),
        issued_at=now,
        policy_version=seed.policy_version,
        copies=seed.copies,
        traceparent=traceparent(),
    )


def in_generation(order: IncubationOrder, generation: int) -> IncubationOrder:
    """Return the order with another generation number. The number is also set in the plans of the order."""
    later = {"generation": generation}
    plans, placebos = (tuple(one.model_copy(update=later) for one in some) for some in (order.plans, order.placebos))
    return order.model_copy(update={**later, "plans": plans, "placebos": placebos})


def joined(left: Answer, right: Answer) -> Answer:
    """Return both answers as one. `order` and `keep_twin` are taken from `left`."""
    return left.model_copy(
        update={
            "transitions": left.transitions + right.transitions,
            "gates": left.gates + right.gates,
            "plans": left.plans + right.plans,
            "field_reports": left.field_reports + right.field_reports,
        }
    )
