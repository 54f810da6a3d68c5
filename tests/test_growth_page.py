"""The tables of docs/growth.md have the figures of the newest files of `benchmarks/growth.py`."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "growth.md").read_text(encoding="utf-8")
ARMS = ("twin", "small", "static", "random", "plain")


def row(host: str, pair: dict[str, Any]) -> str:
    grown = pair["grown"]
    seeds = ", ".join(f"`{one['blueprint']}` at `{one['slot']}`" for one in pair["seeds"]) or "none"
    arms = (*ARMS, "longer") if "longer" in pair else ARMS
    measured = {arm: pair[arm] for arm in arms if arm in pair and pair[arm] is not None}
    ratios = [f"{grown['test'] / measured[arm]['test']:.3f}" if arm in measured else "-" for arm in arms]
    cost = f"{grown['gflops'] / pair['twin']['gflops']:.1f}"
    told = (f"{host}, {pair['seed']}", seeds, f"{pair['twin']['test']:.3f}", f"{grown['test']:.3f}", *ratios, cost)
    return f"| {' | '.join(told)} |"


def test_the_losses_at_equal_compute_are_those_of_the_files() -> None:
    rows = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("growth_curve_*.json")):
        (pairs,) = json.loads(path.read_text(encoding="utf-8"))["pairs"].values()

        def mean(arm: str, figure: str, pairs: list[dict[str, Any]] = pairs) -> float:
            return statistics.mean(pair[arm][figure] for pair in pairs)

        over = statistics.mean(pair["grown"]["test"] / pair["longer"]["test"] for pair in pairs)
        steps, beside = pairs[0]["grown"]["steps"], f"{mean('longer', 'test'):.3f} | {over:.3f}"
        grown, host = (f"{mean(arm, 'test'):.3f}, {mean(arm, 'gflops'):,.0f}" for arm in ("grown", "twin"))
        link = f"[{steps:,}](../benchmarks/results/{path.name})"
        rows.append((steps, f"| {steps:,} | {grown} | {host} | {beside} | {link} |"))
    assert re.findall(r"^\| [\d,]+ \| .*growth_curve.*$", PAGE, re.MULTILINE) == [row for _, row in sorted(rows)]


HELD_OUT = ("growth_held_out_default", "growth_held_out_default_more")


@pytest.mark.parametrize("name", ["growth_text", "growth_later", *HELD_OUT])
def test_every_pair_of_a_file_is_a_row_of_the_page(name: str) -> None:
    newest = sorted((ROOT / "benchmarks" / "results").glob(f"{name}-*.json"))[-1]
    pairs = json.loads(newest.read_text(encoding="utf-8"))["pairs"]
    rows = [row(host, pair) for host, of_host in pairs.items() for pair in of_host]
    assert re.findall(rf"^\| (?:{'|'.join(pairs)}), .*$", PAGE, re.MULTILINE) == rows
    assert f"(../benchmarks/results/{newest.name})" in PAGE
