"""Snapshots as plain values that a weights-only load reads, and back. It refuses what would not come back the same."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esper.errors import StoreCorrupt, TaskError
from esper.ground.tensors import blob_digest
from esper.leyline.reports import GraftPlan, GraftReceipt, HostPlan, JoinPlan, RemovePlan
from esper.task import Task
from esper.tolaria.optim import build_optimizer, build_scheduler, stand_ins
from esper.tolaria.snapshot import HostSnapshot
from esper.user_code.extra_state import state_of
from esper.user_code.their_code import their_code

_SCALARS = (bool, int, float, str, type(None))
_DICTS = (dict, OrderedDict, Counter)
_PLANS: dict[str, type[GraftPlan | JoinPlan | RemovePlan]] = {
    kind.__name__: kind for kind in (GraftPlan, JoinPlan, RemovePlan)
}
_SNAPSHOT = "host_snapshot"


# -- what may be kept --------------------------------------------------------------------------------------------


def foreign(value: Any, at: str = "") -> str | None:  # Any: it is what is asked
    """Where in a nesting something stands that is not plain, and its type; None if all of it is.

    Plain are numbers, text, None and dense tensors, in dicts, lists and tuples; of their types exactly, because a
    subclass would come back as its base or not at all.
    """
    if type(value) in _SCALARS:
        return None
    if isinstance(value, Tensor):
        dense = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
        return None if dense else f"{at or '.'}: {type(value).__name__}, {value.layout}"
    if type(value) in _DICTS:
        keys = (foreign(key, f"{at}.{key}") for key in value)
        return next((found for found in keys if found), None) or _first(value.items(), at)
    if type(value) in (list, tuple):
        return _first(enumerate(value), at)
    return f"{at or '.'}: {type(value).__module__}.{type(value).__qualname__}"


def _first(items: Any, at: str) -> str | None:  # Any: an iterable of pairs
    return next((found for key, item in items if (found := foreign(item, f"{at}.{key}"))), None)


def check_plain(field: str, state: Any, source: str = "its state_dict") -> None:  # Any: what a `state_dict` gave
    """Let a state pass that a checkpoint can hold.

    Args:
        field: What is to blame: `task.optimizer`, say.
        source: What returned the state.

    Raises:
        TaskError: something in it is not plain; it is named with its place.
    """
    if found := foreign(state):
        raise TaskError(field, found, f"{source} may hold numbers, text and tensors in dicts, lists and tuples only")


def check_own_state(snapshot: HostSnapshot) -> None:
    """Let the state pass that modules and data sets keep by themselves.

    Raises:
        TaskError: something in it is not plain; it is named with its place.
    """
    for path, state in snapshot.modules.items():
        check_plain("task.model", state, f"get_extra_state of {path or 'the model'}")
    for shard, state in snapshot.data.items():
        check_plain(f"task.{shard}", state)


def check_task(task: Task, total_steps: int, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a task whose optimizer or scheduler could not be kept in a checkpoint, seen after one step of it.

    Args:
        parameters: The host's; the step is made on stand-ins for them.

    Raises:
        TaskError: see `check_plain`, `build_optimizer` and `build_scheduler`.
    """
    tried = stand_ins(parameters)
    optimizer = build_optimizer(task, tried)
    scheduler = build_scheduler(task, optimizer, total_steps)
    for parameter in tried:
        parameter.grad = torch.ones_like(parameter)
    with their_code("task.optimizer", "optimizer.step"):
        optimizer.step()
    check_plain("task.optimizer", state_of("task.optimizer", optimizer))
    if scheduler is not None:
        with their_code("task.scheduler", "scheduler.step"):
            scheduler.step()
        check_plain("task.scheduler", state_of("task.scheduler", scheduler))


# -- snapshots ---------------------------------------------------------------------------------------------------


def to_plain(snapshot: HostSnapshot) -> dict[str, Any]:
    """The snapshot as plain values. Its tensors are the snapshot's own; only the weights of plans are copied.

    Raises:
        TaskError: the state of an optimizer or of the scheduler is not plain.
    """
    for state in (snapshot.optimizer, snapshot.seed_optimizers):
        check_plain("task.optimizer", state)
    check_plain("task.scheduler", snapshot.scheduler)
    check_own_state(snapshot)
    digests = _digests(snapshot)
    return {
        "step": snapshot.step,
        "fence": snapshot.fence,
        "total_steps": snapshot.total_steps,
        "topology": [_plain_plan(plan, digests) for plan in snapshot.topology],
        "receipts": [
            {"plan": _plain_plan(plan, digests), "receipt": receipt.model_dump_json()}
            for plan, receipt in snapshot.receipts.values()
        ],
        "weights": [_as_tensor(snapshot.weights[digest]) for digest in digests],
        "tensors": snapshot.tensors,
        "optimizer": snapshot.optimizer,
        "scheduler": snapshot.scheduler,
        "seed_optimizers": snapshot.seed_optimizers,
        "best_round": snapshot.best_round,
        "leaks": {seed_id: list(names) for seed_id, names in snapshot.leaks.items()},
        "modules": snapshot.modules,
        "data": snapshot.data,
    }


def from_plain(plain: Mapping[str, Any]) -> HostSnapshot:
    """The snapshot that `to_plain` was given. Its tensors are those of `plain`.

    Raises:
        StoreCorrupt: the values are not such a snapshot's.
    """
    try:
        blobs = [tensor.numpy().tobytes() for tensor in plain["weights"]]
        digests = [blob_digest(blob) for blob in blobs]
        applied = [
            (_plan_of(one["plan"], digests), GraftReceipt.model_validate_json(one["receipt"]))
            for one in plain["receipts"]
        ]
        topology = tuple(_plan_of(one, digests) for one in plain["topology"])
        if not all(isinstance(plan, GraftPlan) for plan in topology):
            raise ValueError("a topology holds grafts only")
        return HostSnapshot(
            step=_of(int, plain["step"]),
            fence=_of(int, plain["fence"]),
            total_steps=_of(int, plain["total_steps"]),
            topology=tuple(plan for plan in topology if isinstance(plan, GraftPlan)),
            tensors=_tensors_of(plain["tensors"]),
            optimizer=_of(dict, plain["optimizer"]),
            scheduler=None if plain["scheduler"] is None else _of(dict, plain["scheduler"]),
            seed_optimizers={_of(str, name): _of(dict, one) for name, one in plain["seed_optimizers"].items()},
            best_round=None if plain["best_round"] is None else _finite(plain["best_round"]),
            receipts={(plan.command_id, plan.seed_id): (plan, receipt) for plan, receipt in applied},
            leaks={_of(str, name): tuple(_of(str, one) for one in names) for name, names in plain["leaks"].items()},
            modules=_added(plain, "modules"),
            data=_added(plain, "data"),
            weights=dict(zip(digests, blobs, strict=True)),
        )
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StoreCorrupt("snapshot", f"is no snapshot of a host: {error!r}") from error


def topology_digest(topology: Sequence[GraftPlan]) -> str:
    """SHA-256, in hex, over what is grafted and how, in graft order; ids and generations are no part of it."""
    unnamed = {"command_id", "run_id", "generation", "seed_id", "fence", "weights"}
    digest = hashlib.sha256()
    for plan in topology:
        digest.update(plan.model_dump_json(exclude=unnamed).encode() + b"\n")
    return digest.hexdigest()


def _digests(snapshot: HostSnapshot) -> list[str]:
    """Digests of the weights of all grafts in a snapshot, each once, in the order in which they are written."""
    plans = (*snapshot.topology, *(plan for plan, _ in snapshot.receipts.values()))
    return list(dict.fromkeys(plan.weights_digest for plan in plans if isinstance(plan, GraftPlan)))


def _plain_plan(plan: HostPlan, digests: Sequence[str]) -> dict[str, Any]:
    """A plan as JSON, and the number of its weights among all weights."""
    number = digests.index(plan.weights_digest) if isinstance(plan, GraftPlan) else None
    return {"kind": type(plan).__name__, "json": plan.model_dump_json(), "weights": number}


def _plan_of(plain: Mapping[str, Any], digests: Sequence[str]) -> HostPlan:
    """The plan that `_plain_plan` was given. Raises: ValueError: its weights have another digest than it says."""
    plan: HostPlan = _PLANS[plain["kind"]].model_validate_json(plain["json"])
    if isinstance(plan, GraftPlan) and digests[plain["weights"]] != plan.weights_digest:
        raise ValueError(f"weights of seed {plan.seed_id} are not those digested as {plan.weights_digest}")
    return plan


def _as_tensor(blob: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(blob, np.uint8).copy())


def _of(kind: type, value: Any) -> Any:  # Any: whatever was in the file
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _finite(value: Any) -> float:  # Any: whatever was in the file
    if not math.isfinite(number := _of(float, value)):
        raise ValueError(f"{number} where a finite number belongs")
    return float(number)


def _added(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part that checkpoints of the first versions lack: nothing of its kind was kept then."""
    return {_of(str, key): one for key, one in _of(dict, plain[name]).items()} if name in plain else {}


def _tensors_of(value: Any) -> dict[str, Tensor]:  # Any: whatever was in the file
    tensors = {_of(str, name): tensor for name, tensor in _of(dict, value).items()}
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TypeError("a tensor's place holds something else")
    return tensors


# -- what stands beside a snapshot -------------------------------------------------------------------------------


def plain_nursery(nursery: Mapping[str, Any]) -> dict[str, Any]:  # Any: plain values and snapshots
    """Named values as plain ones; a `HostSnapshot` among them (the twin, an incubation's origin) in its plain form."""
    found = {}
    for name, value in nursery.items():
        if isinstance(value, HostSnapshot):
            found[name] = {_SNAPSHOT: to_plain(value)}
            continue
        assert (other := foreign(value)) is None, f"nursery {name} holds {other}"
        found[name] = value
    return found


def nursery_of(plain: Mapping[str, Any]) -> dict[str, Any]:  # Any: plain values and snapshots
    """What `plain_nursery` was given.

    Raises:
        StoreCorrupt: a snapshot among them is none.
    """
    return {name: from_plain(one[_SNAPSHOT]) if _is_snapshot(one) else one for name, one in plain.items()}


def _is_snapshot(value: Any) -> bool:  # Any: plain values
    return type(value) is dict and value.keys() == {_SNAPSHOT}
