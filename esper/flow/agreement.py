"""Checks that the parts of a checkpoint agree with each other, with the checkpoint's record and with the journal. All
parts were written at the same fence, so a figure that is in two parts must be equal in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from esper.archive.history import Past
from esper.archive.journal import Entry, RecordKind
from esper.errors import StoreCorrupt
from esper.flow.checkpoints import FenceState
from esper.flow.position import LineState
from esper.kasmina.registry.registry_state import RegistryState
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.reports import GraftPlan, HostPlan, RemovePlan
from esper.leyline.stages import Stage
from esper.tolaria.snapshot import HostSnapshot


def check_agreement(
    written: CheckpointWritten, saved: FenceState, line: LineState, registry: RegistryState, past: Past
) -> None:
    """Compare the parts of one checkpoint.

    Args:
        line, registry: Parts of `saved`, parsed.

    Raises:
        StoreCorrupt: two parts contradict each other. The error has the name of the figure and both values.
    """
    host: HostSnapshot = saved.host
    told = [] if past.damaged else _until(written, past.entries)
    _check_equal("steps of the tally", line.tally.steps, written.step)
    _check_equal("generation of kasmina", registry.generation, written.generation)
    if told:
        began = [entry for entry in told if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)]
        _check_equal("total_steps", host.total_steps, began[-1].body["total_steps"])
    _check_plans(host, registry, told)
    _check_stages(host, registry, told)
    _check_forks(written, saved, registry)


def _check_plans(host: HostSnapshot, registry: RegistryState, told: Sequence[Entry]) -> None:
    """Check that the host has applied all plans of Kasmina and no other plans. Check also that its topology is the
    result of these plans.
    """
    given = [plan for one in registry.commands if one.answer is not None for plan in one.answer.as_given().plans]
    _check_equal("plans that were applied", _by_id(plan for plan, _ in host.receipts.values()), _by_id(given))
    receipts = {key: receipt.model_dump(mode="json") for key, (_, receipt) in host.receipts.items()}
    applied = [entry.body for entry in told if entry.kind is RecordKind.PLAN_APPLIED]
    if told:
        _check_equal("receipts", receipts, {(body["command_id"], body["seed_id"]): body for body in applied})
    _check_equal("topology", list(host.topology), _topology_after(given))
    strange = sorted(host.leaks.keys() - {plan.seed_id for plan in host.topology})
    _check_equal("seeds that have leaks and are not in the host", strange, [])


def _topology_after(plans: Iterable[HostPlan]) -> list[GraftPlan]:
    """Return the topology of a host that began without seeds, after some plans were applied in this order."""
    topology: dict[str, GraftPlan] = {}
    for plan in plans:
        if isinstance(plan, GraftPlan):
            topology[plan.seed_id] = plan
        elif plan.seed_id not in topology:
            raise StoreCorrupt("checkpoint", f"a plan changes seed {plan.seed_id}, which no plan before it has grafted")
        elif isinstance(plan, RemovePlan):
            del topology[plan.seed_id]
        else:
            topology[plan.seed_id] = plan.amended(topology[plan.seed_id])
    return list(topology.values())


def _check_stages(host: HostSnapshot, registry: RegistryState, told: Sequence[Entry]) -> None:
    """Check Kasmina's records of seeds against the journal's transitions and against the grafts of the host."""
    seeds = {seed.seed_id: seed for seed in registry.roster.seeds}
    if told:
        after = {entry.body["seed_id"]: entry.body["after"] for entry in told if entry.kind is RecordKind.TRANSITION}
        stages = {seed_id: str(seed.stage) for seed_id, seed in seeds.items()}
        _check_equal("stages of seeds", stages, {**dict.fromkeys(stages, str(Stage.DORMANT)), **after})
    for plan in host.topology:
        seed = seeds[plan.seed_id]
        graft = seed.graft
        recorded = graft and (graft.ordinal, graft.start_step, graft.blend, graft.confidence)
        grafted = (plan.ordinal, plan.start_step, plan.blend, plan.confidence)
        _check_equal(
            f"graft of seed {plan.seed_id}",
            (seed.slot, seed.blueprint_id, recorded, seed.rate_scale),
            (plan.slot, plan.blueprint_id, grafted, plan.rate_scale),
        )


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
