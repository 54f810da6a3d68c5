"""The same training without esper: a plain loop, and a second process that runs the plain loop at the same time as a
measured process.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from esper.config.joined import load_config
from esper.ground.random_streams import generator
from esper.leyline.reports import GraftPlan
from esper.setup.survey import Survey, survey_of
from esper.tolaria.host_building import build_host
from esper.tolaria.optim import seed_rate
from esper.user_code.task_reference import load_task


class BareLoop:
    """The training loop that a user would write without esper. The loop uses the same samples in the same order as
    esper.
    """

    def __init__(self, survey: Survey) -> None:
        task, data, seed = survey.task, survey.data, survey.config.run.seed
        self.host = build_host(task, seed, "cpu")
        self._samples: Any = task.train  # Any: a data set with `__getitems__`
        self._loss = task.loss
        self._optimizer = task.optimizer(list(self.host.parameters()))
        assert task.scheduler is not None, "the task of this benchmark has one"
        self._scheduler = task.scheduler(self._optimizer, survey.total_steps)
        indices = data.shards["train"].indices
        laps = range(survey.total_steps * data.batch_size // len(indices) + 1)
        order = np.concatenate([generator(seed, "order", lap).permutation(indices) for lap in laps])
        per_epoch = data.epoch_samples // data.batch_size
        starts = [
            s // per_epoch * data.epoch_samples + s % per_epoch * data.batch_size for s in range(survey.total_steps)
        ]
        self._batches = [order[start : start + data.batch_size].tolist() for start in starts]
        self._step = 0

    def train(self, steps: int) -> None:
        """Train for a number of steps."""
        for batch in self._batches[self._step : self._step + steps]:
            self._update(batch)
            self._step += 1

    def _update(self, batch: list[int]) -> None:
        inputs, targets = default_collate(self._samples.__getitems__(batch))
        loss = self._loss(self.host(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._scheduler.step()
        loss.item()  # a user reads the loss in each step

    def state(self) -> dict[str, Any]:
        """Return the state from which a loop can continue."""
        parts = {"host": self.host, "optimizer": self._optimizer, "scheduler": self._scheduler}
        return {"step": self._step, **{name: part.state_dict() for name, part in parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Load a state, and continue from it."""
        self.host.load_state_dict(state["host"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._step = state["step"]


class LoopWithGuard(BareLoop):
    """A bare loop with two promises of esper, written with the usual functions.

    The random numbers of a step depend on the step alone. No update is made with a loss or gradient that is not finite.
    """

    def _update(self, batch: list[int]) -> None:
        random.seed(self._step)
        np.random.seed(self._step)
        torch.manual_seed(self._step)
        inputs, targets = default_collate(self._samples.__getitems__(batch))
        loss = self._loss(self.host(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients = [weight.grad for weight in self.host.parameters() if weight.grad is not None]
        value, norm = loss.item(), torch.nn.utils.get_total_norm(gradients).item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(f"step {self._step}: loss {value}, gradient norm {norm}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._scheduler.step()


class SeedByHand(nn.Module):
    """A slot's module followed by a residual seed, as a user would write it: `h + alpha * seed(h)`."""

    alpha: Tensor

    def __init__(self, slot: nn.Module, seed: nn.Module, *, isolated: bool) -> None:
        super().__init__()
        self.slot, self.seed, self.isolated = slot, seed, isolated
        self.register_buffer("alpha", torch.zeros(()))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the slot's output with the seed blended in, [B, ...]."""
        h: Tensor = self.slot(*inputs)
        corrected: Tensor = h + self.alpha * self.seed(h.detach() if self.isolated else h)
        return corrected


class LoopWithSeed(BareLoop):
    """A bare loop with a seed from some step on. The seed has a separate optimizer and learning rates."""

    def __init__(self, survey: Survey) -> None:
        super().__init__(survey)
        self._total, self._make_optimizer, self._peak = survey.total_steps, survey.task.optimizer, survey.peak_share
        self.host_parameters = list(self.host.parameters())
        self._by_hand: SeedByHand | None = None

    def insert(self, plan: GraftPlan, seed: nn.Module) -> None:
        """Insert a seed after the slot of a plan. The loop uses the seed from this step on."""
        self._plan, self.seed = plan, seed
        self._of_seed = self._make_optimizer([weight for _, weight in sorted(seed.named_parameters())])
        self._rate = self._peak * self._of_seed.param_groups[0]["lr"]
        self._by_hand = SeedByHand(self.host.get_submodule(plan.slot), seed, isolated=plan.isolated)
        self.host.set_submodule(plan.slot, self._by_hand)

    def _update(self, batch: list[int]) -> None:
        if self._by_hand is None:
            super()._update(batch)
            return
        age, plan = self._step - self._plan.start_step, self._plan
        self._by_hand.alpha.fill_(min(1.0, (age + 1) / plan.blend.ramp_steps))
        super()._update(batch)
        self._of_seed.param_groups[0]["lr"] = self._rate * seed_rate(
            self._step, plan.start_step, self._total, plan.warmup_steps
        )
        self._of_seed.step()
        self._of_seed.zero_grad()


class Neighbour:
    """Another process that runs bare loops without end.

    With it, the benchmark measures how two processes slow each other down on this machine.
    """

    def __init__(self, task: str) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, task], stdout=subprocess.PIPE)
        assert self._process.stdout is not None, "asked for"
        if self._process.stdout.readline() != b"trains\n":
            raise SystemExit("the neighbour did not start")

    def goes_on(self, yes: bool) -> None:
        """Continue or stop the process."""
        os.kill(self._process.pid, signal.SIGCONT if yes else signal.SIGSTOP)

    def __enter__(self) -> Neighbour:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def train_without_end(reference: str) -> None:
    """Run one bare loop after the other."""
    torch.set_num_threads(1)
    survey = survey_of(load_task(reference)[0], load_config())
    print("trains", flush=True)
    while True:
        BareLoop(survey).train(survey.total_steps)


if __name__ == "__main__":
    train_without_end(sys.argv[1])
