"""Converts snapshots to plain values for a weights-only load, and back.

Values that the conversion would change are refused.
"""

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
from esper.leyline.reports import (
    AdoptPlan,
    ConfidencePlan,
    GraftPlan,
    GraftReceipt,
    HostPlan,
    JoinPlan,
    RatePlan,
    RemovePlan,
)
from esper.task import Task
from esper.tolaria.optim import build_optimizer, build_scheduler, stand_ins
from esper.tolaria.snapshot import HostSnapshot
from esper.user_code.extra_state import state_of
from esper.user_code.their_code import their_code

_SCALARS = (bool, int, float, str, type(None))
_DICTS = (dict, OrderedDict, Counter)
_PLANS: dict[str, type[HostPlan]] = {
    kind.__name__: kind for kind in (GraftPlan, AdoptPlan, JoinPlan, RatePlan, ConfidencePlan, RemovePlan)
}
_SNAPSHOT = "host_snapshot"


# -- plain values ------------------------------------------------------------------------------------------------


def foreign(value: Any, at: str = "") -> str | None:  # Any: the values that are checked
    """Return the path and the type of the first value in a nesting that is not plain. None: all values are plain.

    Plain values are numbers, text, None and dense tensors, in dicts, lists and tuples. Instances of subclasses are not
    plain, because they would be loaded as their base class or not at all.
    """
    if type(value) in _SCALARS:
        return None
    if isinstance(value, Tensor):
        dense = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
        return None if dense else f"{at or '.'}: {type(value).__name__}, {value.layout}"
    if type(value) in _DICTS:
        keys = (foreign(key, f"{at}.{key}") for key in value)
        return next((found for found in keys if found), None) or _first_foreign(value.items(), at)
    if type(value) in (list, tuple):
        return _first_foreign(enumerate(value), at)
    return f"{at or '.'}: {type(value).__module__}.{type(value).__qualname__}"


def _first_foreign(items: Any, at: str) -> str | None:  # Any: an iterable of pairs
    return next((found for key, item in items if (found := foreign(item, f"{at}.{key}"))), None)


def check_plain(field: str, state: Any, source: str = "its state_dict") -> None:  # Any: the result of a `state_dict`
    """Refuse a state that a checkpoint cannot store.

    Args:
        field: Field of the task for the error, such as `task.optimizer`.
        source: Name of the function that returned the state, for the message.

    Raises:
        TaskError: a value in the state is not plain. The message names the path of the value.
    """
    if found := foreign(state):
        raise TaskError(field, found, f"{source} may hold numbers, text and tensors in dicts, lists and tuples only")


def check_own_state(snapshot: HostSnapshot) -> None:
    """Refuse states of modules and data sets (`get_extra_state`, `state_dict`) that a checkpoint cannot store.

    Raises:
        TaskError: a value in the state is not plain. The message names the path of the value.
    """
    for path, state in snapshot.modules.items():
        check_plain("task.model", state, f"get_extra_state of {path or 'the model'}")
    for shard, state in snapshot.data.items():
        check_plain(f"task.{shard}", state)


def check_task(task: Task, total_steps: int, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a task whose optimizer or scheduler has a state that a checkpoint cannot store.

    The states are checked after one step, because the first step creates the moments.

    Args:
        parameters: The host's parameters. The step changes copies of them.

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
    """Return the snapshot as plain values. The values share the snapshot's tensors.

    Only the weights of plans are copied.

    Raises:
        TaskError: the state of an optimizer, the scheduler, a module or a data set is not plain.
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
    """Return the snapshot whose plain form is `plain`. This is the inverse of `to_plain`.

    The snapshot shares the tensors of `plain`.

    Raises:
        StoreCorrupt: the values are not the plain form of a snapshot.
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
            step=_typed(int, plain["step"]),
            fence=_typed(int, plain["fence"]),
            total_steps=_typed(int, plain["total_steps"]),
            topology=tuple(plan for plan in topology if isinstance(plan, GraftPlan)),
            tensors=_tensors_of(plain["tensors"]),
            optimizer=_typed(dict, plain["optimizer"]),
            scheduler=None if plain["scheduler"] is None else _typed(dict, plain["scheduler"]),
            seed_optimizers={_typed(str, name): _typed(dict, one) for name, one in plain["seed_optimizers"].items()},
            best_round=None if plain["best_round"] is None else _finite(plain["best_round"]),
            receipts={(plan.command_id, plan.seed_id): (plan, receipt) for plan, receipt in applied},
            leaks={
                _typed(str, name): tuple(_typed(str, one) for one in names) for name, names in plain["leaks"].items()
            },
            modules=_later_part(plain, "modules"),
            data=_later_part(plain, "data"),
            weights=dict(zip(digests, blobs, strict=True)),
        )
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StoreCorrupt("snapshot", f"is no snapshot of a host: {error!r}") from error


def topology_digest(topology: Sequence[GraftPlan]) -> str:
    """Return the SHA-256, in hex, of the grafts in graft order, without ids, generations, fences and weights."""
    unnamed = {"command_id", "run_id", "generation", "seed_id", "fence", "weights"}
    digest = hashlib.sha256()
    for plan in topology:
        digest.update(plan.model_dump_json(exclude=unnamed).encode() + b"\n")
    return digest.hexdigest()


def _digests(snapshot: HostSnapshot) -> list[str]:
    """Return the digests of the weights of all grafts in a snapshot, without duplicates, in the order of the file."""
    plans = (*snapshot.topology, *(plan for plan, _ in snapshot.receipts.values()))
    return list(dict.fromkeys(plan.weights_digest for plan in plans if isinstance(plan, GraftPlan)))


def _plain_plan(plan: HostPlan, digests: Sequence[str]) -> dict[str, Any]:
    """Return a plan as JSON, with the index of its weights in the list of all weights (None if it has no weights)."""
    number = digests.index(plan.weights_digest) if isinstance(plan, GraftPlan) else None
    return {"kind": type(plan).__name__, "json": plan.model_dump_json(), "weights": number}


def _plan_of(plain: Mapping[str, Any], digests: Sequence[str]) -> HostPlan:
    """Invert `_plain_plan`. Raises: ValueError: the weights do not have the digest in the plan."""
    plan: HostPlan = _PLANS[plain["kind"]].model_validate_json(plain["json"])
    if isinstance(plan, GraftPlan) and digests[plain["weights"]] != plan.weights_digest:
        raise ValueError(f"weights of seed {plan.seed_id} are not those digested as {plan.weights_digest}")
    return plan


def _as_tensor(blob: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(blob, np.uint8).copy())


def _typed(kind: type, value: Any) -> Any:  # Any: a value from the file
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _finite(value: Any) -> float:  # Any: a value from the file
    if not math.isfinite(number := _typed(float, value)):
        raise ValueError(f"{number} where a finite number belongs")
    return float(number)


def _later_part(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of the plain form. Empty if it is absent, because the first versions of esper did not store it."""
    return {_typed(str, key): one for key, one in _typed(dict, plain[name]).items()} if name in plain else {}


def _tensors_of(value: Any) -> dict[str, Tensor]:  # Any: a value from the file
    tensors = {_typed(str, name): tensor for name, tensor in _typed(dict, value).items()}
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TypeError("a value that should be a tensor is not a tensor")
    return tensors


# -- the incubation: values and snapshots stored beside the host ----------------------------------------------------


def plain_incubation(incubation: Mapping[str, Any]) -> dict[str, Any]:  # Any: plain values and snapshots
    """Return named values in plain form. Each `HostSnapshot` among them is converted, for example the twin's."""
    found = {}
    for name, value in incubation.items():
        if isinstance(value, HostSnapshot):
            found[name] = {_SNAPSHOT: to_plain(value)}
            continue
        assert (other := foreign(value)) is None, f"nursery {name} holds {other}"
        found[name] = value
    return found


def incubation_of(plain: Mapping[str, Any]) -> dict[str, Any]:  # Any: plain values and snapshots
    """Return the named values whose plain form is `plain`. This is the inverse of `plain_incubation`.

    Raises:
        StoreCorrupt: the plain form of a snapshot is invalid.
    """
    return {name: from_plain(one[_SNAPSHOT]) if _is_snapshot(one) else one for name, one in plain.items()}


def _is_snapshot(value: Any) -> bool:  # Any: plain values
    return type(value) is dict and value.keys() == {_SNAPSHOT}
