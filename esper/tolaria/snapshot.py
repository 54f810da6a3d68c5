"""A snapshot of one host: a copy of all state on which its training depends, and functions that load each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.errors import DependencyViolationError, text_of
from esper.leyline.reports import GraftPlan, GraftReceipt, HostPlan
from esper.tolaria.optimizer_state import check_groups
from esper.tolaria.trees import Copies, copied, copy_all, kind_of, laid_over, tensors_of_state
from esper.user_code.extra_state import state_of
from esper.user_code.their_code import their_code

Receipts = dict[tuple[str, str], tuple[HostPlan, GraftReceipt]]
"""(command id, seed id) -> (applied plan, its receipt)."""


@dataclass(frozen=True, eq=False)
class HostSnapshot:
    """The state of a host after a step. `GrownHost.snapshot` returns a copy.

    `GrownHost._view` shares the host's tensors.
    """

    step: int
    fence: int
    total_steps: int
    """Length of the run, in steps. If a run is resumed with another length, its schedule changes from this step on."""
    topology: tuple[GraftPlan, ...]
    """The present plans of the seeds, in graft order. They show which seeds are isolated."""
    tensors: dict[str, Tensor]
    """Parameters and buffers of host and seeds, by name. Non-persistent buffers are included."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    seed_optimizers: dict[str, dict[str, Any]]
    best_round: float | None
    """Lowest mean training loss of a round since the last removal of a seed. None: no round has ended since the
    removal."""
    receipts: Receipts
    leaks: dict[str, tuple[str, ...]]
    """Seed id -> names of everything outside the seed that the seed changed or that its gradient reached. Empty: audits
    found nothing."""
    modules: dict[str, Any] = field(default_factory=dict)
    """Module path -> result of the module's `get_extra_state`."""
    data: dict[str, Any] = field(default_factory=dict)
    """Shard -> result of its data set's `state_dict` after the last training batch was drawn."""
    weights: dict[str, bytes] = field(default_factory=dict)
    """Digest -> initial weights of the seeds in `topology` and `receipts`; see `esper.leyline.reports.Weights`."""

    def mapped(self, each: Callable[[Tensor], Tensor]) -> HostSnapshot:
        """Return a snapshot with `each(tensor)` for every tensor. Other mutable values are copied."""
        return replace(
            self,
            tensors=copied(self.tensors, each),
            optimizer=copied(self.optimizer, each),
            scheduler=copied(self.scheduler, each),
            seed_optimizers=copied(self.seed_optimizers, each),
            receipts=dict(self.receipts),
            leaks=dict(self.leaks),
            modules=copied(self.modules, each),
            data=copied(self.data, each),
            weights=dict(self.weights),
        )

    def all_tensors(self) -> list[Tensor]:
        """Return every tensor, in the order in which `mapped` visits them."""
        return tensors_of_state(
            [self.tensors, self.optimizer, self.scheduler, self.seed_optimizers, self.modules, self.data]
        )

    def copied(self) -> HostSnapshot:
        """Return a copy that shares no tensor with this snapshot."""
        return self.mapped(lambda tensor: tensor.detach().clone())


def load_tensors(live: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into the live tensors of the same names.

    Raises:
        DependencyViolationError: a name, shape or dtype of the tensors differs. Nothing was copied.
    """
    if live.keys() != stored.keys():
        found = sorted(live.keys() ^ stored.keys())[:3]
        raise DependencyViolationError("snapshot", "tensors differ from the host's", str(found))
    check_kinds(live, stored)
    copy_all([(tensor, stored[name]) for name, tensor in live.items()])


def check_blends(wanted: Sequence[Mapping[str, Tensor]], stored: Mapping[str, Tensor]) -> None:
    """Refuse stored alphas and vectors of seeds that do not follow from the plans of the seeds.

    Args:
        wanted: Name -> value by the plans, after the last step and at the next step. A graft sets all alphas for the
            next step. Every name must be in `stored`.

    Raises:
        DependencyViolationError: a stored value is none of the wanted values. The error has both values.
    """
    for name in wanted[0]:
        values = [one[name].cpu() for one in wanted]
        found = stored[name].cpu()
        if not any(torch.equal(found, value) for value in values):
            at = int((found != values[0]).flatten().nonzero()[0]) if found.shape == values[0].shape else 0
            told = [float(one.flatten()[at]) for one in (found, *values)]
            detail = (
                f"entry {at} is {told[0]}, and by the plan of its seed {' or '.join(map(str, dict.fromkeys(told[1:])))}"
            )
            raise DependencyViolationError("snapshot", f"{name} differs from the seed's blend", detail)


def check_kinds(live: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Refuse stored tensors that do not fit the live tensors, because a copy would broadcast or convert them silently.

    Raises:
        DependencyViolationError: a live tensor has no stored tensor with its name, shape and dtype.
    """
    other = [name for name, tensor in live.items() if name not in stored or kind_of(tensor) != kind_of(stored[name])]
    if other:
        raise DependencyViolationError("snapshot", "tensors differ from the host's", str(other[:3]))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, into its present tensors if they fit. Later steps do not change `state`.

    `load_state_dict` alone would share the tensors of `state`, and the next step would overwrite them.

    Raises:
        DependencyViolationError: the groups differ from the groups of the optimizer; nothing was changed. Or
            `load_state_dict` failed, or changed the shape or dtype of a tensor. In this case the state of the optimizer
            is invalid.
    """
    copies: Copies = []
    check_groups(optimizer, state)
    loaded = laid_over(state, state_of("task.optimizer", optimizer), copies)
    copy_all(copies)
    with _refusing("optimizer", optimizer):
        optimizer.load_state_dict(loaded)
    kinds = [list(map(kind_of, tensors_of_state(one))) for one in (state_of("task.optimizer", optimizer), state)]
    if kinds[0] != kinds[1]:  # torch casts loaded tensors to the dtype of their parameter
        raise DependencyViolationError(
            "snapshot", "an optimizer's state does not load as it was", type(optimizer).__name__
        )


def load_scheduler(scheduler: LRScheduler | None, state: dict[str, Any] | None) -> None:
    """Load a scheduler's state. Later steps do not change `state`.

    Raises:
        DependencyViolationError: only one of snapshot and task has a scheduler, or `load_state_dict` failed.
    """
    if (scheduler is None) != (state is None):
        raise DependencyViolationError("snapshot", "only one of snapshot and task has a scheduler")
    if scheduler is not None and state is not None:
        with _refusing("scheduler", scheduler):
            scheduler.load_state_dict(copied(state, lambda tensor: tensor.clone()))


@contextmanager
def _refusing(what: str, loading: object) -> Iterator[None]:
    """Turn any error of a `load_state_dict` in the block into a DependencyViolationError."""
    try:
        with their_code(f"task.{what}", "load_state_dict"):
            yield
    except Exception as error:  # for a wrong state, torch and the user's classes may raise any error
        missing, detail = f"the {what}'s state does not load", f"{type(loading).__name__}: {text_of(error)}"
        raise DependencyViolationError("snapshot", missing, detail) from error
