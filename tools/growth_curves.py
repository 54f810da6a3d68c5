"""Draws docs/growth.svg by `python tools/growth_curves.py`: test loss against steps, the trainer's FLOPs and all FLOPs.

The points are the files `growth_curve_STEPS-DATE.json`, which `benchmarks/growth.py --epochs E --arms longer` has
written. Each point is the end of a whole run, because the learning rates of a run depend on its length.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "growth.svg"
Pair = Mapping[str, Any]  # the arms of one run seed, as the benchmark has written them


@dataclass(frozen=True)
class Line:
    """One line of a panel: for each pair, the arms from which its points are, and the horizontal value of a point."""

    label: str
    arms: tuple[str, ...]
    at: Callable[[Pair, str], float]
    style: str


def gflops(pair: Pair, arm: str) -> float:
    """Return all modelled GFLOP of an arm. Of the grown network these include all forks and the twin."""
    return float(pair[arm]["gflops"])


def trained(pair: Pair, arm: str) -> float:
    """Return the modelled GFLOP of the steps that made the network itself."""
    return float(pair["trainer_gflops"]) if arm == "grown" else gflops(pair, arm)


def steps(pair: Pair, arm: str) -> float:
    """Return the number of optimizer steps of an arm."""
    return float(pair[arm]["steps"])


def panel(at: Callable[[Pair, str], float]) -> tuple[Line, Line]:
    """Return the lines of a panel: the host for the steps of the grown run, and for its FLOPs; and the grown run."""
    return Line("the host, not grown", ("twin", "longer"), at, "o:C0"), Line("grown", ("grown",), at, "D-C2")


PANELS = (
    ("optimizer steps", panel(steps)),
    ("GFLOP of training the network", panel(trained)),
    ("all GFLOP, with the search", panel(gflops)),
)


def newest() -> dict[int, Path]:
    """Return the newest file for each number of steps, in the order of the steps."""
    found: dict[int, Path] = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("growth_curve_*.json")):
        (length,) = re.findall(r"growth_curve_(\d+)-", path.name)
        found[int(length)] = path
    return dict(sorted(found.items()))


def pairs_of(path: Path) -> list[Pair]:
    """Return the pairs of the only host of a file."""
    (pairs,) = json.loads(path.read_text(encoding="utf-8"))["pairs"].values()
    return list(pairs)


def points(line: Line, runs: Sequence[Sequence[Pair]]) -> list[tuple[float, float]]:
    """Return (horizontal value, test loss): the means over the run seeds, for each length of a run and each arm."""
    means = [
        (
            statistics.mean(line.at(pair, arm) for pair in pairs),
            statistics.mean(float(pair[arm]["test"]) for pair in pairs),
        )
        for pairs in runs
        for arm in line.arms
    ]
    return sorted(means)


def draw(axes: Axes, name: str, lines: Sequence[Line], runs: Sequence[Sequence[Pair]]) -> None:
    """Draw one panel: lines through the means, and a small dot for each run seed."""
    for line in lines:
        across, losses = zip(*points(line, runs), strict=True)
        axes.plot(across, losses, line.style, label=line.label, markersize=5)
        each = [(line.at(pair, arm), pair[arm]["test"]) for pairs in runs for pair in pairs for arm in line.arms]
        axes.plot(*zip(*each, strict=True), "." + line.style[-2:], markersize=3, alpha=0.5)
    axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.grid(visible=True, alpha=0.3)


def main() -> None:
    """Draw the picture, and print the figures."""
    files = newest()
    runs = [pairs_of(path) for path in files.values()]
    with rc_context({"svg.hashsalt": "esper", "font.size": 9}):  # the same bytes in each run
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        all_axes = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (name, lines) in zip(all_axes, PANELS, strict=True):
            draw(axes, name, lines, runs)
        all_axes[0].set_ylabel("test loss")
        all_axes[0].legend()
        told = ", ".join(path.name for path in files.values())
        figure.savefig(PICTURE, metadata={"Date": None, "Title": "Growth against other networks", "Source": told})
    for length, pairs in zip(files, runs, strict=True):
        for arm in ("grown", "twin", "longer"):
            (point,) = points(Line(arm, (arm,), gflops, ""), [pairs])
            print(f"{length} {arm}: {point[0]:.0f} GFLOP, test loss {point[1]:.3f}")


if __name__ == "__main__":
    main()
