"""docs/policies.md: its policy decides for a run as it stands there, and `esper inspect` shows what the policy did."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from esper.archive.history import read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import RecordKind
from esper.kasmina.blueprints.catalogue import BLUEPRINTS

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_policy_of_the_page_chooses_blends_scales_a_rate_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLUEPRINTS, "_blueprints", dict(BLUEPRINTS._blueprints))
    policy, whole = blocks("docs/policies.md")
    (tmp_path / "my_task.py").write_text(blocks("README.md")[0], encoding="utf-8")
    (tmp_path / "my_policy.py").write_text(policy, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    begun: dict[str, Any] = {"__name__": "__main__"}
    at_once = whole.replace("InTurn()", "InTurn(most_rise=-1.0)")  # any loss is a rise, so it goes back
    assert at_once != whole
    exec(at_once, begun)
    for name in ("my_task", "my_policy"):
        del sys.modules[name]
    assert begun["result"].rollbacks == 1
    run_dir = Path("runs/in-turn")
    decisions = [entry.body for entry in read_past(run_dir).entries if entry.kind is RecordKind.DECISION]
    assert {entry["policy_version"] for entry in decisions} == {"in-turn-1"}
    blends = {(blend["mode"], blend.get("schedule")) for one in decisions if (blend := one["blend"]) is not None}
    assert blends == {("CONVEX", "sigmoid"), ("RESIDUAL", "cosine")}
    found = inspect_run(run_dir)
    assert found["rollbacks"] == 1
    inside = [seed for seed in found["seeds"] if seed["stage"] == "FOSSILIZED"]
    assert [seed["rate_scale"] for seed in inside] == [0.5]
    assert [seed["blend"]["mode"] for seed in inside] == ["CONVEX"]
