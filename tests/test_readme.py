"""README's figures are those of the newest dated file that its own script wrote, and README names that file."""

from __future__ import annotations

import json
from pathlib import Path

from esper.wording import percent

ROOT = Path(__file__).resolve().parents[1]


def test_what_readme_says_of_growing_is_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    newest = sorted((ROOT / "benchmarks" / "results").glob("default_task-*.json"))[-1]
    measured = json.loads(newest.read_text(encoding="utf-8"))
    rows = {row["measure"]: row["ratio"] for row in measured["rows"]}
    ratios = [rows[f"run seed {seed}: test loss over the twin's"] for seed in (1, 2, 3)]
    first, second, third = (percent(1 - ratio) for ratio in ratios)

    assert measured["name"] == "default_task"
    assert max(ratios) < 1  # else "below" is another word
    said = (
        f"With the run seeds 1, 2 and 3 the grown network's test loss is {first}, {second} and {third} below its twin's"
    )
    assert said in " ".join(readme.split())
    assert f"(benchmarks/results/{newest.name})" in readme
    assert "%" not in readme.replace(first, "").replace(second, "").replace(third, "")  # there is no other such figure
