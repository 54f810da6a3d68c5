"""The share of runs of useless seeds in which gate G2 accepts one, on four small hosts of different kinds.

Each run has the default settings: useless seeds take the place of all candidates. Each run has samples, first weights
and batches of its own. `esper plan --null --runs N` measures the same on a task of the user.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import MappingProxyType
from typing import NamedTuple

import torch
from _common import Outcome, Row, Spread, main
from torch import Tensor, nn

from esper import Task
from esper.config.joined import load_config
from esper.kasmina.blueprints.placebos import PLACEBOS
from esper.kasmina.judging.statistics import exact_interval
from esper.setup.null_tournament import NullVerdict
from esper.setup.null_trial import INTERVAL, NullTrial, null_trial
from esper.setup.survey import survey_of
from esper.user_code.process_state import process_state

SIZES = {"train": (2048, 1), "valid": (256, 2), "test": (512, 3), "pick": (512, 4), "gate": (512, 5)}
SETTINGS = {"run.round_steps": 20, "run.epochs": 10, "run.seed": 3000}
"""The run seeds are those after 3000. Smaller ones were used when the limits were chosen, on these four hosts."""
MOST = 0.05
"""Limit of the upper end of the interval of the share of runs that accept a useless seed."""

CHECKS = ("z", "relative_gain", "gain_over_placebos")
Make = Callable[[Tensor], tuple[Tensor, Tensor]]


class Drawn(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Inputs and classes that a function makes from normal random numbers [B, 64]."""

    def __init__(self, count: int, key: int, make: Make) -> None:
        self.inputs, self.targets = make(torch.randn(count, 64, generator=torch.Generator().manual_seed(key)))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def rows(x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """A table of 12 columns; the class depends on products of columns, with noise."""
    score_B = x_BD[:, 0] * x_BD[:, 1] + x_BD[:, 2] * x_BD[:, 3] + 0.5 * x_BD[:, 20]
    return x_BD[:, :12], (score_B > 0).long() + 2 * (x_BD[:, 4] > 0).long()


def images(x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Noise images [1, 8, 8] with a bright spot; the class is the quadrant of the spot."""
    classes_B = (x_BD[:, 0] > 0).long() + 2 * (x_BD[:, 1] > 0).long()
    x_BHW = x_BD.reshape(-1, 8, 8).clone()
    for quadrant in range(4):
        row, column = 4 * (quadrant // 2) + 1, 4 * (quadrant % 2) + 1
        x_BHW[classes_B == quadrant, row : row + 2, column : column + 2] += 0.8
    return x_BHW[:, None], classes_B


def symbols(x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of 12 symbols out of 8; the class is the symbol that stands where the first symbol points to."""
    symbols_BT = (x_BD[:, :12].abs() * 5).long() % 8
    where_B = symbols_BT[:, 0] % 11 + 1
    return symbols_BT, symbols_BT.gather(1, where_B[:, None])[:, 0]


class Table(nn.Module):
    """An MLP with two hidden layers of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x_BC: Tensor) -> Tensor:
        scores: Tensor = self.head(self.second(self.first(x_BC).relu()).relu())
        return scores


class Images(nn.Module):
    """Two convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(self.second(self.first(x_BCHW)), 4)
        scores: Tensor = self.head(pooled.flatten(1))
        return scores


class Attention(nn.Module):
    """One layer of attention over embedded symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.place = nn.Parameter(torch.randn(12, 16) * 0.1)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, symbols_BT: Tensor) -> Tensor:
        h_BTC = self.embed(symbols_BT) + self.place
        seen = nn.functional.scaled_dot_product_attention(self.query(h_BTC), self.key(h_BTC), self.value(h_BTC))
        scores: Tensor = self.head((h_BTC + self.mix(seen))[:, 0])
        return scores


class Recurrent(nn.Module):
    """A GRU over embedded symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(8, 12), nn.GRU(12, 16, batch_first=True)
        self.after, self.head = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, symbols_BT: Tensor) -> Tensor:
        states_BTC, _ = self.cell(self.embed(symbols_BT))
        scores: Tensor = self.head(self.after(states_BTC).relu().mean(dim=1))
        return scores


class Host(NamedTuple):
    """A network, its data, and the modules that may grow."""

    model: Callable[[], nn.Module]
    make: Make
    slots: list[str]


HOSTS = {
    "table, MLP": Host(Table, rows, ["first", "second"]),
    "images, CNN with batch norm": Host(Images, images, ["first", "second"]),
    "symbols, attention": Host(Attention, symbols, ["embed", "mix"]),
    "symbols, GRU": Host(Recurrent, symbols, ["embed", "after"]),
}


def task(host: Host, run_seed: int) -> Task:
    """Return the task of a host: classification by cross entropy, with Adam. Each run seed has other samples."""
    return Task(
        model=host.model,
        **{shard: Drawn(count, 1000 * run_seed + key, host.make) for shard, (count, key) in SIZES.items()},
        loss=nn.functional.cross_entropy,
        sample_loss=lambda scores, classes: nn.functional.cross_entropy(scores, classes, reduction="none"),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=4e-3),
        slots=host.slots,
        batch_size=32,
        epochs=4,
    )


def runs_on(name: str, host: Host, runs: int, settings: Mapping[str, object]) -> NullTrial:
    """Hold runs on one host, in a process of one thread."""
    config = load_config(None, settings)
    with process_state(1):
        own = partial(task, host)
        return null_trial(survey_of(own(0), config), runs, partial(_tell, name), whole=True, task_of=own)


def measure(
    repetitions: int,
    more: Mapping[str, object] = MappingProxyType({}),
    hosts: Mapping[str, Host] = MappingProxyType(HOSTS),
) -> Outcome:
    """Hold `repetitions` runs on each host, each host in a process of its own.

    Args:
        more: Further config keys of the runs.
    """
    each = partial(runs_on, runs=repetitions, settings={**SETTINGS, **more})
    with ProcessPoolExecutor(len(hosts), mp_context=get_context("spawn")) as pool:
        return outcome(dict(zip(hosts, pool.map(each, hosts, hosts.values()), strict=True)))


def outcome(found: Mapping[str, NullTrial]) -> Outcome:
    """Return the shares over all hosts."""
    trials = found.values()
    runs, tournaments = sum(one.runs for one in trials), sum(one.tournaments for one in trials)
    accepted, could = sum(one.accepted for one in trials), sum(one.only_placebos_refuse for one in trials)
    low, high = exact_interval(accepted, runs)
    looks = [one for trial in trials for one in trial.verdicts if one.look]
    rows = [
        Row.judged(
            f"share of runs that accept a useless seed, upper end of the interval ({INTERVAL})",
            high,
            MOST,
            "at most 5 %",
            high <= MOST,
        ),
        Row.told("its lower end", low),
        Row.told("share of runs that accept a useless seed", accepted / runs),
        Row.told("runs", runs),
        *_shares("later looks at refused seeds", sum(one.accepted for one in looks), len(looks)),
        *_shares("tournaments", accepted, tournaments),
        *_shares("verdicts whose first seed met all limits, or all but that of the placebos", accepted, could),
    ]
    for name, trial in found.items():
        rows.append(Row.told(f"{name}: runs that accept a useless seed", trial.accepted, trial.runs))
    return Outcome(rows, {label: spread for name, trial in found.items() for label, spread in _spreads(name, trial)})


def _shares(of: str, hits: int, count: int) -> list[Row]:
    """Return the number of some tournaments, the share that accepted a useless seed, and the ends of its interval."""
    if not count:
        return [Row.told(of, 0)]
    low, high = exact_interval(hits, count)
    told = {"": hits / count, ", lower end of its interval": low, ", upper end of its interval": high}
    return [Row.told(of, count), *(Row.told(f"share of these {of}{end}", value) for end, value in told.items())]


def _spreads(name: str, trial: NullTrial) -> Iterator[tuple[str, Spread]]:
    """Yield the spread of each figure of G2, of the limit of the placebos, and of the gains of each kind of placebo."""
    judged = [one.figures for one in trial.verdicts if one.figures]
    told = {
        **{
            f"{check} of the first seed": [one[check]["measured"] for one in judged if check in one] for check in CHECKS
        },
        "limit of the placebos": [one[CHECKS[-1]]["above"] for one in judged if CHECKS[-1] in one],
    }
    gains = [gain for one in trial.verdicts for gain in one.placebo_gains]
    for kind in PLACEBOS:
        told[f"gain of placebos of the kind {kind}"] = [gain for each, gain in gains if each == kind]
    for label, values in told.items():
        if known := tuple(value for value in values if value is not None):
            yield f"{name}: {label}", Spread(known)


def _tell(name: str, one: NullVerdict) -> None:
    print(json.dumps({"host": name, **vars(one)}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("useless_seeds", __doc__, measure, repetitions=30)
