"""All that one host's future depends on, copied, and how it is put back. Only the trainer says when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

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
"""By command id and seed id: the plan that was applied, and its receipt."""


@dataclass(frozen=True, eq=False)
class HostSnapshot:
    """A host at a step. What the trainer gives away shares no memory with the host it was taken from."""

    step: int
    fence: int
    total_steps: int
    """Of the run that it was taken in; one that goes on for longer has another schedule from there."""
    topology: tuple[GraftPlan, ...]
    """In graft order, as the plans stand now; which seeds are isolated follows from it."""
    tensors: dict[str, Tensor]
    """Parameters and buffers of host and seeds, those that `state_dict` leaves out included."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    seed_optimizers: dict[str, dict[str, Any]]
    best_round: float | None
    """Lowest round mean since the host last lost a seed."""
    receipts: Receipts
    leaks: dict[str, tuple[str, ...]]
    """By seed id: host parameters that its gradient was seen to reach."""
    modules: dict[str, Any] = field(default_factory=dict)
    """By module path: what the module's own `get_extra_state` returned."""
    data: dict[str, Any] = field(default_factory=dict)
    """By shard: what the `state_dict` of its data set returned after the last training batch was drawn."""
    weights: dict[str, bytes] = field(default_factory=dict)
    """First weights of the seeds in `topology` and `receipts`, by digest; see `esper.leyline.reports.Weights`."""

    def mapped(self, each: Callable[[Tensor], Tensor]) -> HostSnapshot:
        """The same snapshot with `each(tensor)` for every tensor; nothing else in it is shared with this one."""
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
        """Every tensor, in the order in which `mapped` comes to it."""
        return tensors_of_state(
            [self.tensors, self.optimizer, self.scheduler, self.seed_optimizers, self.modules, self.data]
        )

    def copied(self) -> HostSnapshot:
        """The same snapshot in memory of its own."""
        return self.mapped(lambda tensor: tensor.detach().clone())


def load_tensors(live: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Copy kept tensors into the live ones of the same names.

    Raises:
        DependencyViolationError: a name, shape or type differs. Nothing was copied.
    """
    if live.keys() != kept.keys():
        found = sorted(live.keys() ^ kept.keys())[:3]
        raise DependencyViolationError("snapshot", "tensors differ from the host's", str(found))
    check_kinds(live, kept)
    copy_all([(tensor, kept[name]) for name, tensor in live.items()])


def check_kinds(live: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Every live tensor has one of its name, shape and type among the kept: a copy would broadcast, or convert.

    Raises:
        DependencyViolationError: one has not.
    """
    other = [name for name, tensor in live.items() if name not in kept or kind_of(tensor) != kind_of(kept[name])]
    if other:
        raise DependencyViolationError("snapshot", "tensors differ from the host's", str(other[:3]))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put an optimizer's state back, into the tensors that it has where they fit. The state stays the caller's.

    `load_state_dict` alone would take the caller's own tensors, which the next step changes.

    Raises:
        DependencyViolationError: a tensor took another shape or type on the way; the optimizer is not what it was. Or
            the groups are not those of the optimizer; nothing was changed.
    """
    copies: Copies = []
    check_groups(optimizer, state)
    loaded = laid_over(state, state_of("task.optimizer", optimizer), copies)
    copy_all(copies)
    with _refusing("optimizer", optimizer):
        optimizer.load_state_dict(loaded)
    kinds = [list(map(kind_of, tensors_of_state(one))) for one in (state_of("task.optimizer", optimizer), state)]
    if kinds[0] != kinds[1]:  # torch casts what it loads to the type of its parameter
        raise DependencyViolationError(
            "snapshot", "an optimizer's state does not load as it was", type(optimizer).__name__
        )


def load_scheduler(scheduler: LRScheduler | None, state: dict[str, Any] | None) -> None:
    """Put a scheduler's state back. The state stays the caller's.

    Raises:
        DependencyViolationError: the snapshot has one and the task has none, or the other way round.
    """
    if (scheduler is None) != (state is None):
        raise DependencyViolationError("snapshot", "a scheduler where there is none, or none where there is one")
    if scheduler is not None and state is not None:
        with _refusing("scheduler", scheduler):
            scheduler.load_state_dict(copied(state, lambda tensor: tensor.clone()))


@contextmanager
def _refusing(what: str, loading: object) -> Iterator[None]:
    """Around a `load_state_dict`. Raises: DependencyViolationError: it does not take the state."""
    try:
        with their_code(f"task.{what}", "load_state_dict"):
            yield
    except Exception as error:  # torch and foreign classes raise what they like for a state that is not theirs
        missing, detail = f"the {what}'s state does not load", f"{type(loading).__name__}: {text_of(error)}"
        raise DependencyViolationError("snapshot", missing, detail) from error
