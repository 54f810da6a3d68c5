"""The share of tournaments of useless seeds that gate G2 accepts, on four small hosts of different kinds.

Each host grows by the preset `lean`, which allows one tournament in a run. So the share of tournaments is also the
share of runs. `esper plan --null` measures the same on a task of the user.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _common import Outcome, Row, Spread, main
from torch import Tensor, nn

from esper import Task
from esper.config.joined import load_config
from esper.kasmina.judging.statistics import exact_interval
from esper.setup.null_trial import NullTrial, null_trial
from esper.setup.survey import survey_of
from esper.user_code.process_state import process_state

SIZES = {"train": (2048, 1), "valid": (256, 2), "test": (512, 3), "pick": (512, 4), "gate": (512, 5)}
SETTINGS = {"growth.preset": "lean", "run.round_steps": 20, "run.epochs": 4}
MOST = 0.05
"""Largest share of runs that may accept a useless seed."""

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


HOSTS: dict[str, tuple[Callable[[], nn.Module], Make, list[str]]] = {
    "table, MLP": (Table, rows, ["first", "second"]),
    "images, CNN with batch norm": (Images, images, ["first", "second"]),
    "symbols, attention": (Attention, symbols, ["embed", "mix"]),
    "symbols, GRU": (Recurrent, symbols, ["embed", "after"]),
}


def task(host: Callable[[], nn.Module], make: Make, slots: list[str]) -> Task:
    """Return the task of a host: classification by cross entropy, with Adam."""
    return Task(
        model=host,
        **{name: Drawn(count, key, make) for name, (count, key) in SIZES.items()},
        loss=nn.functional.cross_entropy,
        sample_loss=lambda scores, classes: nn.functional.cross_entropy(scores, classes, reduction="none"),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=4e-3),
        slots=slots,
        batch_size=32,
        epochs=4,
    )


def measure(repetitions: int) -> Outcome:
    """Hold `repetitions` tournaments on each host."""
    found: dict[str, NullTrial] = {}
    config = load_config(None, SETTINGS)
    with process_state(1):
        for name, (host, make, slots) in HOSTS.items():
            found[name] = null_trial(survey_of(task(host, make, slots), config), repetitions, _told(name))
    accepted, count = sum(one.accepted for one in found.values()), sum(len(one.tournaments) for one in found.values())
    low, high = exact_interval(accepted, count)
    rows = [
        Row.judged(
            "share of runs that accept a useless seed", accepted / count, MOST, "at most 5 %", accepted / count <= MOST
        )
    ]
    rows += [
        Row.told("its 95 % interval, from", low),
        Row.told("its 95 % interval, to", high),
        Row.told("tournaments", count),
    ]
    rows += [Row.told(f"{name}: accepted", one.accepted, len(one.tournaments)) for name, one in found.items()]
    spreads = {}
    for name, one in found.items():
        for check in ("z", "relative_gain", "gain_over_placebos"):
            values = [each.figures[check]["measured"] for each in one.tournaments if check in each.figures]
            spreads[f"{name}: {check} of the first seed"] = Spread(
                tuple(value for value in values if value is not None)
            )
        limits = [each.figures["gain_over_placebos"]["above"] for each in one.tournaments if each.figures]
        spreads[f"{name}: limit of the placebos"] = Spread(tuple(value for value in limits if value is not None))
    return Outcome(rows, spreads)


def _told(name: str) -> Callable[[object], None]:
    import sys

    return lambda one: print(f"{name}: {one}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("useless_seeds", __doc__, measure, repetitions=25)
