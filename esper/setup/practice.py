"""Checks, on copies of the parameters, that the state dicts of optimizer and scheduler contain their whole state.

Its steps need no forward pass, so it takes more steps than `rehearsal.py`. Therefore it also finds state that has an
effect only every few steps, such as slow weights that an optimizer mixes in every tenth step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.errors import TaskError
from esper.setup.rehearsal import OTHER_BITS, blame_attribute, blame_unkept, taking_over
from esper.task import Task
from esper.tolaria.optim import build_optimizer
from esper.tolaria.snapshot import load_optimizer, load_scheduler
from esper.tolaria.trees import copied
from esper.tolaria.unkept import Changing, changed_between
from esper.user_code.attributes import Held, different, held_by, path_in_words
from esper.user_code.extra_state import state_of
from esper.user_code.mends import mend_of

STEPS = 13
"""Steps before and after the restore. Optimizers usually mix in slow weights every 5, 6 or 10 steps."""
MOST_ELEMENTS = 1_000_000
"""Largest number of elements that are copied. If a host is larger, only its smallest parameters are copied."""


class _Pair:
    """An optimizer and its scheduler over copies of parameters. The gradients depend only on the step."""

    def __init__(self, task: Task, values: Sequence[Tensor], total_steps: int) -> None:
        self.parameters = [nn.Parameter(value.clone()) for value in values]
        self.optimizer = build_optimizer(task, self.parameters)
        self.scheduler = task.scheduler(self.optimizer, total_steps) if task.scheduler is not None else None

    def step(self, first: int, last: int) -> None:
        for step in range(first, last):
            draw = torch.Generator().manual_seed(step)
            for parameter in self.parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()

    def take_over(self, other: _Pair) -> None:
        """Load the parameters and states of another pair, as a restore does."""
        with torch.no_grad():
            for mine, its in zip(self.parameters, other.parameters, strict=True):
                mine.copy_(its)
        kept = state_of("task.optimizer", other.optimizer)
        load_optimizer(self.optimizer, copied(kept, lambda tensor: tensor.clone()))
        there = other.scheduler
        load_scheduler(self.scheduler, state_of("task.scheduler", there) if there is not None else None)

    def attributes(self) -> dict[str, Held]:
        kept = {id(parameter) for parameter in self.parameters}
        parts = {"task.optimizer": self.optimizer, "task.scheduler": self.scheduler}
        return {field: held_by(part, kept) for field, part in parts.items() if part is not None}


def practise(task: Task, host: nn.Module, total_steps: int) -> Changing:
    """Load the state of a used optimizer into a new optimizer, step both with the same gradients, and compare them.

    Returns:
        The attributes of optimizer and scheduler that the steps changed. All these attributes were restored.

    Raises:
        TaskError: the optimizer or the scheduler has state that is not in its state dict (the error names this state);
            or a new optimizer or scheduler cannot load the state.
    """
    steps, values = min(STEPS, total_steps // 2), _smallest(host)
    first, second = (_Pair(task, values, total_steps) for _ in range(2))
    made = first.attributes()
    first.step(0, steps)
    before = first.attributes()
    with taking_over():
        second.take_over(first)
    restored = {field: different(before[field], held) for field, held in second.attributes().items()}
    for pair in (first, second):
        pair.step(steps, 2 * steps)
    other = different(held_by(first.parameters), held_by(second.parameters))
    blame_unkept(made, restored, first.attributes(), second.attributes())
    if other:
        blame_attribute(made, before, restored)
        found = f"different bits in parameter {path_in_words(other[0])}"
        raise TaskError("task.optimizer", found, f"{OTHER_BITS}: {mend_of('task.optimizer', '')}")
    return changed_between(made, first.attributes())


def _smallest(host: nn.Module) -> list[Tensor]:
    """Return the values of the trained parameters, in order. If the parameters have more than `MOST_ELEMENTS` elements
    together, the largest are left out.
    """
    trained = [parameter.detach() for parameter in host.parameters() if parameter.requires_grad]
    room = MOST_ELEMENTS
    chosen: set[int] = set()
    for place in sorted(range(len(trained)), key=lambda place: trained[place].numel()):
        room -= trained[place].numel()
        if room >= 0 or not chosen:
            chosen.add(place)
    return [value for place, value in enumerate(trained) if place in chosen]
