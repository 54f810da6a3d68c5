"""The tables of docs/growth.md have the figures of the newest files of `benchmarks/growth.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "growth.md").read_text(encoding="utf-8")
ARMS = ("twin", "small", "static", "random", "plain")


def row(host: str, pair: dict[str, Any]) -> str:
    grown = pair["grown"]
    seeds = ", ".join(f"`{one['blueprint']}` at `{one['slot']}`" for one in pair["seeds"]) or "none"
    ratios = [f"{grown['test'] / pair[arm]['test']:.3f}" if pair[arm] is not None else "-" for arm in ARMS]
    cost = f"{grown['gflops'] / pair['twin']['gflops']:.1f}"
    told = (f"{host}, {pair['seed']}", seeds, f"{pair['twin']['test']:.3f}", f"{grown['test']:.3f}", *ratios, cost)
    return f"| {' | '.join(told)} |"


@pytest.mark.parametrize("name", ["growth_text", "growth_later"])
def test_every_pair_of_a_file_is_a_row_of_the_page(name: str) -> None:
    newest = sorted((ROOT / "benchmarks" / "results").glob(f"{name}-*.json"))[-1]
    pairs = json.loads(newest.read_text(encoding="utf-8"))["pairs"]
    rows = [row(host, pair) for host, of_host in pairs.items() for pair in of_host]
    assert re.findall(rf"^\| (?:{'|'.join(pairs)}), .*$", PAGE, re.MULTILINE) == rows
    assert f"(../benchmarks/results/{newest.name})" in PAGE
