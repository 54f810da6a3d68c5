"""The two pytest processes of a make target run every test once between them, and their minutes are pytest's own."""

from __future__ import annotations

import re
from pathlib import Path

import minutes
import parts
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("target", ["test", "check"])
def test_each_test_file_is_in_one_part_and_in_no_other(target: str) -> None:
    said = parts.parts(target)
    files = [file for words in said.values() for file in chosen(words)]
    assert sorted(files) == sorted((ROOT / "tests").rglob("test_*.py"))


def chosen(words: list[str]) -> list[Path]:
    """The test files that pytest would collect for these words."""
    left_out = [ROOT / word.partition("=")[2] for word in words if word.startswith("--ignore=")]
    places = [ROOT / word for word in words if not word.startswith("--")]
    found = [file for place in places for file in (place.rglob("test_*.py") if place.is_dir() else [place])]
    return [file for file in found if not any(place in (file, *file.parents) for place in left_out)]


def test_the_files_that_wait_for_a_ray_are_in_one_part() -> None:
    marked = {
        ROOT / "tests" / "actors" / f"test_{name}.py" for name in ("clean_ends", "launch", "own_modules", "recovery")
    }
    without = {
        ROOT / "tests" / "actors" / f"test_{name}.py"
        for name in ("remote_incubator", "hosted_components", "shell", "supervision")
    }
    actors = {*chosen(parts.parts("check")["actors"])}
    assert marked <= actors
    assert not without & actors
    drills = {*(ROOT / "tests" / "drills").glob("test_*.py")}
    assert not drills & actors  # the Ray of the session is up there, and a drill starts its own


@pytest.mark.parametrize(
    ("codes", "good"),
    [
        ((0, 0), True),
        ((0, 1), False),
        ((1, 0), False),
        ((0, 5), True),
        ((5, 5), False),
        ((0, 2), False),
        ((0, -9), False),
    ],
)
def test_a_target_passes_where_each_part_does_and_one_had_a_test(codes: tuple[int, int], good: bool) -> None:
    assert parts.passed(dict(zip(("one", "other"), codes, strict=True))) is good


@pytest.mark.slow
def test_what_each_part_prints_is_shown_and_its_exit_code_and_report_are_kept(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (pytester.path / "tests" / "actors").mkdir(parents=True)
    failing = "def test_that_fails(embedded):\n    assert 'seen' == 0\n"
    (pytester.path / "tests" / "actors" / "test_a.py").write_text(failing)
    fixture = "import pytest\n@pytest.fixture\ndef embedded(): pass\n"
    (pytester.path / "tests" / "actors" / "conftest.py").write_text(fixture)
    (pytester.path / "tests" / "test_b.py").write_text("def test_that_passes():\n    assert True\n")
    monkeypatch.setattr(parts, "ROOT", pytester.path)
    monkeypatch.setattr(parts, "REPORTS", pytester.path / ".parts")
    assert parts.run("check", []) == {"actors": 1, "rest": 0}
    shown = capfd.readouterr().out
    assert re.search(r"^actors \| .*assert 'seen' == 0", shown, re.M)
    assert re.search(r"^  rest \| 1 passed", shown, re.M)
    read = minutes.read(pytester.path / ".parts" / "check" / "actors.xml")
    assert (read.name, read.tests, read.failed, list(read.by_file)) == ("actors", 1, 1, ["tests.actors.test_a"])


def test_a_table_of_minutes_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "rest.xml").write_text(
        '<testsuites><testsuite tests="2" failures="0" errors="0" time="90.0">'
        '<testcase classname="tests.test_a" time="80"/><testcase classname="tests.test_b.TestC" time="9"/>'
        "</testsuite></testsuites>"
    )
    page = "before\n<!-- minutes of test -->\nold\n<!-- end of test -->\nafter\n"
    told = minutes.written(page, "test", [minutes.read(tmp_path / "rest.xml")])
    assert "old" not in told
    assert "| rest | 2 | 1.5 |" in told
    assert "`tests/test_a.py` 80, `tests/test_b.py` 9" in told
    assert told.startswith("before\n")
    assert told.endswith("<!-- end of test -->\nafter\n")
    with pytest.raises(SystemExit, match="minutes of check"):
        minutes.written(page, "check", [minutes.read(tmp_path / "rest.xml")])
