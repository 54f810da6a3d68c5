"""Checks that the parts of a checkpoint agree with each other, with the checkpoint's record and with the journal. All
parts were written at the same fence, so a figure that is in two parts must be equal in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, takewhile, zip_longest

from esper.archive.history import Past
from esper.archive.journal import Entry, RecordKind
from esper.errors import StoreCorrupt, in_a_line
from esper.flow.checkpoints import FenceState
from esper.flow.position import LineState
from esper.flow.retold import OF_COMMANDS, OF_JOURNAL, Story, plain, records_of, sent
from esper.kasmina.registry.answers import in_generation
from esper.kasmina.registry.registry_state import RegistryState
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.incubation import IncubationOrder
from esper.leyline.reports import AdoptPlan, GateReport, GraftPlan, HostPlan, RemovePlan
from esper.tamiyo.policy_state import TamiyoState
from esper.tolaria.snapshot import HostSnapshot


def check_agreement(
    written: CheckpointWritten,
    saved: FenceState,
    line: LineState,
    registry: RegistryState,
    tamiyo: TamiyoState,
    past: Past,
) -> None:
    """Compare the parts of one checkpoint.

    Args:
        line, registry, tamiyo: Parts of `saved`, parsed.

    Raises:
        StoreCorrupt: two parts contradict each other. The error has the name of the figure and both values.
    """
    told = [] if past.damaged else _until(written, past.entries)
    story = Story(registry, saved.host, told)
    try:
        _check_parts(written, saved, line, tamiyo, story)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:  # a value that another value needs is missing
        raise StoreCorrupt("checkpoint", f"its parts do not belong together: {in_a_line(error)}") from error


def _check_parts(
    written: CheckpointWritten, saved: FenceState, line: LineState, tamiyo: TamiyoState, story: Story
) -> None:
    host: HostSnapshot = saved.host
    _check_equal("steps of the tally", line.tally.steps, written.step)
    _check_equal("generation of kasmina", story.registry.generation, written.generation)
    if story.entries:
        _check_equal("total_steps", host.total_steps, story.began["total_steps"])
    _check_plans(host, story)
    _check_seeds(host, story)
    _check_registry(story)
    _check_forks(written, saved, story.registry)
    if story.entries:
        _check_told(story)
        _check_measured(host, line, tamiyo, story)


def _check_plans(host: HostSnapshot, story: Story) -> None:
    """Check that the host has applied all plans of Kasmina and no other plans. Check also that its topology is the
    result of these plans.
    """
    _check_equal("plans that were applied", _by_id(plan for plan, _ in host.receipts.values()), _by_id(story.plans))
    receipts = {key: receipt.model_dump(mode="json") for key, (_, receipt) in host.receipts.items()}
    if story.entries:
        applied = story.bodies(RecordKind.PLAN_APPLIED)
        _check_equal("receipts", receipts, {(body["command_id"], body["seed_id"]): body for body in applied})
    _check_equal("topology", list(host.topology), _topology_after(story.plans))
    strange = sorted(host.leaks.keys() - {plan.seed_id for plan in host.topology})
    _check_equal("seeds that have leaks and are not in the host", strange, [])


def _topology_after(plans: Iterable[HostPlan]) -> list[GraftPlan]:
    """Return the topology of a host that began without seeds, after some plans were applied in this order."""
    topology: dict[str, GraftPlan] = {}
    for plan in plans:
        if isinstance(plan, GraftPlan):
            topology[plan.seed_id] = plan
        elif isinstance(plan, AdoptPlan):
            topology[plan.seed_id] = plan.graft
        elif plan.seed_id not in topology:
            raise StoreCorrupt("checkpoint", f"a plan changes seed {plan.seed_id}, which no plan before it has grafted")
        elif isinstance(plan, RemovePlan):
            del topology[plan.seed_id]
        else:
            topology[plan.seed_id] = plan.amended(topology[plan.seed_id])
    return list(topology.values())


def _check_seeds(host: HostSnapshot, story: Story) -> None:
    """Check Kasmina's records of seeds against its commands, and against the seeds of the host."""
    seeds = {seed.seed_id: seed for seed in story.registry.roster.seeds}
    _check_equal("seeds", list(seeds), list(story.germinated))
    for seed in seeds.values():
        for name, derived in OF_COMMANDS.items():
            _check_equal(f"{name} of seed {seed.seed_id}", getattr(seed, name), derived(story, seed))
    for plan in host.topology:
        scale = seeds[plan.seed_id].rate_scale
        _check_equal(f"rate_scale of seed {plan.seed_id} in the host", plan.rate_scale, scale)


def _check_registry(story: Story) -> None:
    """Check the records of Kasmina that belong to no seed."""
    registry, answers = story.registry, story.answers
    entered = [plan.graft if isinstance(plan, AdoptPlan) else plan for plan in story.given]
    grafts = [plan.slot for plan in entered if isinstance(plan, GraftPlan)]
    ordinals = {slot: grafts.count(slot) for slot in registry.roster.ordinals}
    _check_equal("ordinals of the slots", registry.roster.ordinals, ordinals)
    orders = [answer.order for answer in answers.values() if answer.order is not None]
    _check_equal("tests_used", registry.tests_used, sum(len(order.plans) for order in orders))
    _check_equal("twin_kept", registry.twin_kept, sum(answer.keep_twin for answer in answers.values()))
    if registry.order is not None:
        _check_equal("order in flight", _undated(registry.order), _undated(orders[-1]) if orders else None)
    for known in registry.commands:
        ids = [(plan.command_id, plan.seed_id, plan.slot, plan.blueprint_id) for plan in known.plans]
        named = {(known.command.command_id, c.seed_id, c.slot, c.blueprint_id) for c in known.command.candidates}
        _check_equal("plans of no candidate", [one for one in ids if one not in named], [])
        order = known.answer.as_given().order if known.answer is not None else None
        forks = _planned(registry, known.plans, order) if order is not None else []
        _check_equal("plans of an order", list(order.plans) if order is not None else [], forks)


def _planned(registry: RegistryState, own: Sequence[GraftPlan], order: IncubationOrder) -> list[GraftPlan]:
    """Return the plans of an order's seeds, as its command made them. If its forks train on, an earlier command made
    them, and they have the generation of the order.

    Args:
        own: The plans of the order's command.
    """
    ordered = {plan.seed_id for plan in order.plans}
    if order.goes_on_from is None:
        return [plan for plan in own if plan.seed_id in ordered]
    made = (plan for known in registry.commands for plan in known.plans if plan.seed_id in ordered)
    return [plan.model_copy(update={"generation": order.generation}) for plan in made]


def _check_gains(story: Story) -> None:
    """Check the gains of the placebos. An older version of esper kept those of all tournaments, not of the last one."""
    found, each = list(story.registry.placebo_gains), story.placebo_gains
    kept = [gains for (_, gains), later in zip_longest(each, each[1:]) if later is None or not later[0]]
    if list(filter(math.isfinite, found)) != list(filter(math.isfinite, chain(*kept))):
        _check_equal("placebo_gains", found, list(each[-1][1] if each else ()))


def _check_told(story: Story) -> None:
    """Check Kasmina's records against the journal."""
    registry = story.registry
    for seed in registry.roster.seeds:
        for name, derived in OF_JOURNAL.items():
            found, wanted = getattr(seed, name), derived(story, seed)
            _check_equal(f"{name} of seed {seed.seed_id}", plain(found), plain(wanted))
    _check_equal("removed_at", registry.roster.removed_at, story.removed_at)
    reports = [GateReport.model_validate_json(text) for text in records_of(story.entries, RecordKind.GATE)]
    _check_equal("violations", registry.violations, sum("isolation_violated" in one.reasons for one in reports))
    _check_equal("commands", [plain(command) for command in story.commands.values()], sent(story.entries))
    orders = [answer.order.model_copy(update={"plans": ()}) for answer in story.answers.values() if answer.order]
    _check_equal("orders", [plain(order) for order in orders], records_of(story.entries, RecordKind.INCUBATION_BEGUN))
    _check_gains(story)
    ended = {body["order_id"] for body in story.bodies(RecordKind.INCUBATION_ENDED)}
    open_orders = [order.order_id for order in orders if order.order_id not in ended]
    _check_equal("order in flight", [registry.order.order_id] if registry.order is not None else [], open_orders)
    for kind, name in (
        (RecordKind.GATE, "gates"),
        (RecordKind.TRANSITION, "transitions"),
        (RecordKind.FIELD_REPORT, "field_reports"),
    ):
        known = set(records_of(story.entries, kind))
        given = [plain(one) for answer in story.answers.values() for one in getattr(answer, name)]
        _check_equal(f"{name} of answers, not in the journal", [one for one in given if one not in known], [])


def _check_measured(host: HostSnapshot, line: LineState, tamiyo: TamiyoState, story: Story) -> None:
    """Check counts and measured values of host, line and Tamiyo against the journal."""
    reports = records_of(story.entries, RecordKind.FIELD_REPORT)
    _check_equal("field reports of tamiyo", [plain(report) for report in tamiyo.past], reports)
    chosen = [body for body in story.bodies(RecordKind.FINISHED) if body["fence"] == host.fence]
    _check_equal("finish", plain(line.finish), plain(chosen[-1] if chosen else None))
    forks = story.bodies(RecordKind.INCUBATION_ENDED)
    _check_equal("incubator_steps", line.tally.incubator_steps, sum(body["fork_steps"] for body in forks))
    rounds = story.bodies(RecordKind.ROUND_ENDED)
    if not rounds:
        return
    before, mean = rounds[-1]["best_train_loss"], rounds[-1]["train_loss"]
    best = mean if before is None else min(before, mean)
    removed = any(isinstance(plan, RemovePlan) and one.step == host.step for plan, one in host.receipts.values())
    _check_equal("best_round", host.best_round, None if removed else best)
    inside = {plan.seed_id for plan in host.topology}
    told = [body["leaks"] for body in rounds[-1:] if "leaks" in body]
    leaks = {seed_id: tuple(found) for one in told for seed_id, found in one.items() if seed_id in inside}
    _check_equal("leaks", {seed_id: found for seed_id, found in host.leaks.items() if found}, leaks)


def _undated(order: IncubationOrder) -> str:
    """Return an order without its generation. A restore begins the order again in the generation of the restore."""
    return str(plain(in_generation(order, 0)))


def _check_forks(written: CheckpointWritten, saved: FenceState, registry: RegistryState) -> None:
    """Check the twin's step and seeds. Check also the origin, which is the snapshot from which the order in flight
    began. The origin must be stored if the order began at an earlier fence, and must be absent otherwise.
    """
    twin, origin, steps = saved.incubation["twin"], saved.incubation["origin"], saved.incubation["twin_steps"]
    _check_equal("a twin is kept", twin is not None, registry.twin_kept)
    _check_equal("twin_steps is a number of steps", type(steps) is int and 0 <= steps <= written.step, True)
    if twin is not None:
        _check_equal("step of the twin", twin.step, written.step)
        _check_equal("seeds of the twin", len(twin.topology), 0)
    began_before = registry.order is not None and registry.order.fence != written.fence
    _check_equal("an origin of the order in flight is kept", origin is not None, began_before)


def _until(written: CheckpointWritten, entries: Sequence[Entry]) -> list[Entry]:
    """Return the journal entries before the record of the beginning of this save. Empty: the journal has no such
    record.
    """
    begun = list(takewhile(lambda entry: not _begins(entry, written), entries))
    return begun if len(begun) < len(entries) else []


def _begins(entry: Entry, written: CheckpointWritten) -> bool:
    return entry.kind is RecordKind.CHECKPOINT_BEGUN and entry.body["file"] == written.file


def _by_id(plans: Iterable[HostPlan]) -> dict[tuple[str, str], HostPlan]:
    return {(plan.command_id, plan.seed_id): plan for plan in plans}


def _check_equal(what: str, found: object, wanted: object) -> None:
    """Raises: StoreCorrupt: `found` is not `wanted`."""
    if found != wanted:
        texts = repr(found), repr(wanted)
        pairs = enumerate(zip(*texts, strict=False))
        start = max(next((place for place, (one, other) in pairs if one != other), 0) - 80, 0)
        raise StoreCorrupt("checkpoint", f"{what}: {_short(texts[0], start)}, expected {_short(texts[1], start)}")


def _short(text: str, start: int) -> str:
    """Return the text. If it has more than 200 characters, return 200 of them from `start`."""
    if len(text) <= 200:
        return text
    return f"{'...' if start else ''}{text[start : start + 200]}{'...' if start + 200 < len(text) else ''}"
