"""docs/wp0.md has a row for each task of the work package of safety, and every file, test and event in it exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from esper.telemetry import events, metrics

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "wp0.md"

TASKS = [
    *("0.1.1", "0.1.2", "0.2.1", "0.2.2", "0.3.1", "0.3.2"),
    *("1.1.1", "1.1.2", "1.2", "1.3.1", "1.3.2", "1.4.1", "1.4.2"),
    *("2.1.1", "2.1.2", "2.2.1", "2.2.2", "2.3.1", "2.3.2", "2.3.3", "2.4.1", "2.4.2", "2.5.1", "2.5.2"),
    *("3.1.1", "3.1.2", "3.2.1", "3.2.2", "3.3.1", "3.3.2", "3.4.1", "3.4.2"),
    *("4.1.1", "4.1.2", "4.2.1", "4.2.2", "4.3.1", "4.3.2"),
]
"""The tasks of the plan in its order. Step 1.2 has no numbered task."""
FINDINGS = [
    *(("1.1.1", "#2"), ("1.1.1", "#3"), ("1.1.2", "#2"), ("1.1.2", "#3"), ("1.3.1", "#19"), ("1.3.2", "#20")),
    *(("1.3.2", "#10"), ("2.1.1", "#13"), ("2.1.2", "#13"), ("2.2.1", "#14"), ("2.2.2", "#15"), ("2.3.1", "#11")),
    *(("2.3.2", "#12"), ("2.3.3", "#5"), ("2.4.1", "#19"), ("3.1.1", "#24"), ("3.1.2", "#24"), ("3.2.1", "#25")),
    *(("3.2.2", "#25"), ("3.3.1", "#21"), ("3.3.2", "#22")),
]
"""The plan's findings, by the task that answers them."""
TO_COME = frozenset({"reports", "emergency", "the guard", "the learned policy", "the sign-off"})
"""Parts of esper to which a row may defer."""


def problems(page: str) -> Iterator[str]:
    """Yield what is wrong with a page."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    tasks = [cells for cells in rows if cells[0] != "task" and not cells[0].startswith("---")]
    if [cells[0] for cells in tasks] != TASKS:
        yield "the rows are not the tasks of the plan in their order"
    for task, asked, *links in tasks:
        yield from (f"{task}: {found}" for found in _problems_of(task, asked, links))


def _problems_of(task: str, asked: str, links: list[str]) -> Iterator[str]:
    named = re.findall(r"#\d+", asked)
    yield from (f"{number} is not named" for at, number in FINDINGS if at == task and number not in named)
    code, tests, told = (re.findall(r"`([^`]+)`", cell) for cell in links)
    later = re.findall(r"[Nn]ot yet: ([a-z -]+)", " | ".join((asked, *links)))
    yield from (f"nothing to come is called {name!r}" for name in later if name.strip() not in TO_COME)
    if not (code and tests) and not later:
        yield "no code or no test, and nothing to come"
    yield from (f"there is no file {path}" for path in code if not (ROOT / path).exists())
    yield from (f"there is no test {test}" for test in tests if not _is_test(test))
    yield from (f"there is no event or counter {name}" for name in told if name not in events.NAMES | metrics.NAMES)


def _is_test(named: str) -> bool:
    file, _, name = named.partition("::")
    return (ROOT / file).is_file() and name in _tests_of(ROOT / file)


@cache
def _tests_of(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def test_each_task_has_its_row_and_each_name_in_it_exists() -> None:
    assert list(problems(PAGE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| 2.2.1 |", "| 2.2.9 |"),
        ("(#14)", ""),
        ("`esper/tolaria/loss.py`", "`esper/tolaria/lost.py`"),
        ("::test_tamiyo_fails_aloud`", "::test_tamiyo_fails`"),
        ("`tests/emergency/test_queue.py::", "`tests/emergency/test_queues.py::"),
        ("`loss_device_mismatch`", "`loss_device`"),
        ("`esper.load.errors`", "`esper.load.error`"),
        ("not yet: the learned policy", ""),
        ("not yet: the guard", "not yet: the guards"),
    ],
)
def test_a_row_that_says_what_is_not_so_is_found(old: str, new: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert old in page
    assert list(problems(page.replace(old, new)))
