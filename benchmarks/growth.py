"""Growth against the networks that somebody could train instead: loss on the test shard at equal steps and data.

Arms of each run seed: the grown network (`grown`), the same run without growth (`twin`), the small network at its best
learning rate (`small`), a network of the final shape from the first step (`static`), random pairs (`random`), a plain
larger network of at least the grown network's size (`plain`), the small network for as many FLOPs as the whole grown
run (`longer`), the network of the final shape for as many FLOPs (`longer_static`), and a search by successive halving
(`halving`). `grown`, `twin`, `random` and `halving` use the task's learning rate. Each other arm uses the rate that is
best on the validation shard of run seed `TUNING_SEED`. Run seeds are fixed before a run, and the result has every pair.

    python benchmarks/growth.py --hosts digits --seeds 10 11 --json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from _common import RESULTS, machine
from _growth_arms import (
    FASTEST,
    RATES,
    SLOWEST,
    Arm,
    Grown,
    Inserted,
    grow,
    halving,
    of_shape,
    random_pairs,
    specs_of,
    train,
)
from _growth_hosts import FRESH, TUNED, Case
from _growth_hosts_held_out import HELD_OUT
from _growth_hosts_later import LATER
from torch import nn

from esper import Task
from esper.config.joined import load_config, parse_overrides
from esper.durable.files import atomic_write

TUNING_SEED = 100
DRAWS = 3
"""Random pairs that are tried for each run seed. The arm `random` is their mean."""
ARMS = ("small", "static", "random", "plain", "longer", "longer_static", "halving")
HOSTS = TUNED | FRESH | LATER | HELD_OUT


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=list(HOSTS), metavar="HOST")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11], help="run seeds; default 10 11")
    parser.add_argument("--arms", nargs="*", default=list(ARMS[:4]), choices=ARMS, help="beside grown and twin")
    parser.add_argument("--epochs", type=int, help="default: the task's")
    parser.add_argument("--fixed-rates", action="store_true", help="all arms use the task's learning rate")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config key of esper")
    parser.add_argument("--json", action="store_true", help=f"one JSON object, also written to {RESULTS.name}/")
    parser.add_argument("--name", default="growth", help="first part of the file's name; default growth")
    asked, here = parser.parse_args(), machine()
    if TUNING_SEED in asked.seeds:
        parser.error(f"--seeds: {TUNING_SEED} is the seed on which rates are chosen")
    settings = parse_overrides(asked.set) | ({} if asked.epochs is None else {"run.epochs": asked.epochs})
    found = {name: _host(name, HOSTS[name], settings, asked) for name in asked.hosts}
    growth = {name: load_config(None, {**HOSTS[name].settings, **settings}).growth for name in asked.hosts}
    summary = {name: _summary(pairs) for name, pairs in found.items()}
    for name, ratios in summary.items():
        print(name, json.dumps(ratios), file=sys.stderr)
    if asked.json:
        told = {"name": asked.name, "machine": here, "command": " ".join(["python", *sys.argv]), "settings": settings}
        told["growth"] = {name: keys.model_dump(mode="json") for name, keys in growth.items()}
        told |= {"finished_at": datetime.now(UTC).isoformat(timespec="seconds"), "summary": summary, "pairs": found}
        path = RESULTS / f"{asked.name}-{datetime.now(UTC).date()}.json"
        atomic_write(path, (json.dumps(told, indent=1) + "\n").encode())
        print(json.dumps(told))


def _host(name: str, case: Case, given: dict[str, Any], asked: argparse.Namespace) -> list[dict[str, Any]]:
    task, settings = case.make(), {**case.settings, **given}
    arms, pairs = Arms(task, case, settings, asked.fixed_rates), []
    for seed in asked.seeds:
        grown = grow(task, settings, seed)
        pair = {"seed": seed, **_grown_as_json(grown)}
        for arm in asked.arms:
            pair[arm] = getattr(arms, arm)(grown, seed)
        pairs.append(pair)
        told = {arm: round(pair["grown"]["test"] / _test_of(pair[arm]), 4) for arm in ("twin", *asked.arms)}
        print(name, seed, told, [vars(one) for one in grown.seeds], grown.why_none or "", file=sys.stderr, flush=True)
    return pairs


Variants = dict[int, Callable[[int, float], Arm]]
"""Number of a variant of an arm -> the function that trains it for a run seed at a factor of the learning rate."""


class Arms:
    """The other arms of one host. The learning rate of an arm, and its variant, are chosen once per shape."""

    def __init__(self, task: Task, case: Case, settings: dict[str, Any], fixed: bool) -> None:
        self._task, self._case, self._settings, self._fixed = task, case, settings, fixed
        self._specs = specs_of(task, settings)
        self._chosen: dict[object, tuple[int, float]] = {}

    def small(self, grown: Grown, seed: int) -> dict[str, Any]:
        """The host, which is not grown."""
        del grown
        return self._tuned("small", seed, {0: lambda at, rate: train(self._task, self._settings, at, rate)})

    def static(self, grown: Grown, seed: int) -> dict[str, Any]:
        """The shape of the grown network, from the first step."""
        return self._tuned(("static", grown.seeds), seed, {0: lambda at, rate: self._static(grown.seeds, at, rate)})

    def _static(self, seeds: tuple[Inserted, ...], seed: int, rate: float, epochs: int | None = None) -> Arm:
        return train(of_shape(self._task, self._specs, seeds), self._settings, seed, rate, epochs)

    def random(self, grown: Grown, seed: int) -> dict[str, Any]:
        """As many random pairs as the grown network has seeds, and at least one; the mean over several draws."""
        count = max(1, len(grown.seeds))
        draws = [random_pairs(self._task, self._settings, seed, count, draw) for draw in range(DRAWS)]
        mean = statistics.mean(one.test for one in draws)
        return {"test": mean, "draws": [one.as_json() for one in draws]}

    def plain(self, grown: Grown, seed: int) -> dict[str, Any] | None:
        """The smallest plain network with at least as many parameters as the grown one. If the host has two families of
        them, the better of both. None: the host has none of this size.
        """
        variants: Variants = {}
        for family in (self._case.plain, self._case.also_plain):
            enough = [model for model in family if _size(model) >= grown.arm.parameters]
            if enough:
                larger = replace(self._task, model=enough[0])
                variants[_size(enough[0])] = lambda at, rate, it=larger: train(it, self._settings, at, rate)
        return self._tuned(("plain", *variants), seed, variants) if variants else None

    def longer(self, grown: Grown, seed: int) -> dict[str, Any]:
        """The small network for the FLOPs of the whole grown run, rounded to whole epochs."""
        epochs = self._settings.get("run.epochs", self._task.epochs)
        more = max(1, round(epochs * grown.arm.gflops / grown.twin.gflops))
        return self._tuned("longer", seed, {0: lambda at, rate: train(self._task, self._settings, at, rate, more)})

    def longer_static(self, grown: Grown, seed: int) -> dict[str, Any]:
        """The shape of the grown network for the FLOPs of the whole grown run, rounded to whole epochs."""
        short = self._static(grown.seeds, seed, 1.0, epochs=1)
        more = max(1, round(grown.arm.gflops / short.gflops))
        key = ("longer_static", grown.seeds)
        return self._tuned(key, seed, {0: lambda at, rate: self._static(grown.seeds, at, rate, more)})

    def halving(self, grown: Grown, seed: int) -> dict[str, Any]:
        """A search over all single pairs, each trained from scratch."""
        del grown
        return halving(self._task, self._settings, seed).as_json()

    def _tuned(self, key: object, seed: int, variants: Variants) -> dict[str, Any]:
        if key not in self._chosen:
            self._chosen[key] = (min(variants), 1.0) if self._fixed else _best(variants)
        variant, rate = self._chosen[key]
        return variants[variant](seed, rate).as_json()


def _best(variants: Variants) -> tuple[int, float]:
    """Return the variant and the factor of the learning rate with the lowest loss on the validation shard. While the
    best factor of a variant is the smallest or the largest that was tried, the next one is tried, too.
    """
    losses: dict[tuple[int, float], float] = {}
    for variant, arm in variants.items():
        tried: dict[float, float] = {}
        missing = list(RATES)
        while missing:
            found = {rate: arm(TUNING_SEED, rate).valid for rate in missing}
            tried |= {rate: loss if math.isfinite(loss) else math.inf for rate, loss in found.items()}
            best = min(tried, key=lambda rate: tried[rate])
            edges = {max(tried): 2 * best, min(tried): best / 2}
            missing = [edges[best]] if best in edges and SLOWEST <= edges[best] <= FASTEST else []
        losses |= {(variant, rate): loss for rate, loss in tried.items()}
    return min(losses, key=lambda choice: losses[choice])


def _size(model: Callable[[], nn.Module]) -> int:
    return sum(weight.numel() for weight in model().parameters())


def _grown_as_json(grown: Grown) -> dict[str, Any]:
    return {
        "grown": grown.arm.as_json(),
        "twin": grown.twin.as_json(),
        "trainer_gflops": grown.trainer_gflops,
        "ends_with": grown.ends_with,
        "live_test": grown.live_test,
        "seeds": [vars(one) for one in grown.seeds],
        "tournaments": grown.tournaments,
        "why_none": grown.why_none,
    }


def _test_of(arm: dict[str, Any] | None) -> float:
    return arm["test"] if arm is not None else math.nan


def _summary(pairs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for each arm, the mean and the worst of grown / arm over the run seeds."""
    ratios = {
        arm: [pair["grown"]["test"] / _test_of(pair[arm]) for pair in pairs if pair.get(arm) is not None]
        for arm in ("twin", *ARMS)
    }
    return {arm: {"mean": statistics.mean(of), "worst": max(of), "pairs": len(of)} for arm, of in ratios.items() if of}


if __name__ == "__main__":
    main()
