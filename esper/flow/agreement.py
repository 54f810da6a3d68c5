"""What the parts of a checkpoint say of each other, of its record and of the journal: whether it agrees. It loads none.

Each part was written from the same state at the same fence, so that what two of them say must be alike.
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
from esper.leyline.reports import GraftPlan, HostPlan, JoinPlan, RemovePlan
from esper.leyline.stages import Stage
from esper.tolaria.snapshot import HostSnapshot


def check_agreement(
    written: CheckpointWritten, kept: FenceState, line: LineState, registry: RegistryState, past: Past
) -> None:
    """Compare the parts of one checkpoint.

    Args:
        line, registry: Parts of `kept`, as they were read.

    Raises:
        StoreCorrupt: two of them contradict each other; it names what, with both values.
    """
    host: HostSnapshot = kept.host
    told = [] if past.damaged else _until(written, past.entries)
    _alike("steps of the tally", line.tally.steps, written.step)
    _alike("generation of kasmina", registry.generation, written.generation)
    if told:
        began = [entry for entry in told if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)]
        _alike("total_steps", host.total_steps, began[-1].body["total_steps"])
    _check_plans(host, registry, told)
    _check_stages(host, registry, told)
    _check_forks(written, kept, registry)


def _check_plans(host: HostSnapshot, registry: RegistryState, told: Sequence[Entry]) -> None:
    """The host was changed by the plans that Kasmina gave, and by no other, and stands as they left it."""
    given = [plan for one in registry.commands if one.answer is not None for plan in one.answer.as_given().plans]
    _alike("plans that were applied", _by_id(plan for plan, _ in host.receipts.values()), _by_id(given))
    receipts = {key: receipt.model_dump(mode="json") for key, (_, receipt) in host.receipts.items()}
    applied = [entry.body for entry in told if entry.kind is RecordKind.PLAN_APPLIED]
    if told:
        _alike("receipts", receipts, {(body["command_id"], body["seed_id"]): body for body in applied})
    joined = {plan.seed_id for plan in given if isinstance(plan, JoinPlan)}
    removed = {plan.seed_id for plan in given if isinstance(plan, RemovePlan)}
    grafted = [plan for plan in given if isinstance(plan, GraftPlan) and plan.seed_id not in removed]
    stands = [plan.model_copy(update={"isolated": False}) if plan.seed_id in joined else plan for plan in grafted]
    _alike("topology", list(host.topology), stands)
    strange = sorted(host.leaks.keys() - {plan.seed_id for plan in host.topology})
    _alike("seeds with leaks that are not there", strange, [])


def _check_stages(host: HostSnapshot, registry: RegistryState, told: Sequence[Entry]) -> None:
    """Kasmina's records of seeds say what the journal says of their lives, and the host of their grafts."""
    seeds = {seed.seed_id: seed for seed in registry.roster.seeds}
    if told:
        after = {entry.body["seed_id"]: entry.body["after"] for entry in told if entry.kind is RecordKind.TRANSITION}
        stages = {seed_id: str(seed.stage) for seed_id, seed in seeds.items()}
        _alike("stages of seeds", stages, {**dict.fromkeys(stages, str(Stage.DORMANT)), **after})
    for plan in host.topology:
        seed = seeds[plan.seed_id]
        graft = (seed.graft.ordinal, seed.graft.start_step, seed.graft.blend) if seed.graft is not None else None
        grafted = (plan.ordinal, plan.start_step, plan.blend)
        _alike(
            f"graft of seed {plan.seed_id}",
            (seed.slot, seed.blueprint_id, graft),
            (plan.slot, plan.blueprint_id, grafted),
        )


def _check_forks(written: CheckpointWritten, kept: FenceState, registry: RegistryState) -> None:
    """The twin is the host without seeds at the same step; the order in flight began no later than here."""
    twin, origin, steps = kept.nursery["twin"], kept.nursery["origin"], kept.nursery["twin_steps"]
    _alike("a twin is kept", twin is not None, registry.twin_kept)
    _alike("twin_steps is a number of steps", type(steps) is int and 0 <= steps <= written.step, True)
    if twin is not None:
        _alike("step of the twin", twin.step, written.step)
        _alike("seeds of the twin", len(twin.topology), 0)
    began_before = registry.order is not None and registry.order.fence != written.fence
    _alike("an origin of the order in flight is kept", origin is not None, began_before)


def _until(written: CheckpointWritten, entries: Sequence[Entry]) -> list[Entry]:
    """What the journal says up to the beginning of this save; nothing if that is not told."""
    begun = list(takewhile(lambda entry: not _begins(entry, written), entries))
    return begun if len(begun) < len(entries) else []


def _begins(entry: Entry, written: CheckpointWritten) -> bool:
    return entry.kind is RecordKind.CHECKPOINT_BEGUN and entry.body["file"] == written.file


def _by_id(plans: Iterable[HostPlan]) -> dict[tuple[str, str], HostPlan]:
    return {(plan.command_id, plan.seed_id): plan for plan in plans}


def _alike(what: str, found: object, wanted: object) -> None:
    """Raises: StoreCorrupt: they are not."""
    if found != wanted:
        raise StoreCorrupt("checkpoint", f"{what}: {_short(found)}, where {_short(wanted)} belongs")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
