"""The table of many rows looks like the tables of rich, and no text of it is lost on a narrow terminal."""

from __future__ import annotations

import pytest

from esper.cli.console import PlainConsole
from esper.cli.long_table import LongTable
from esper.cli.tables import cells, table

HEADERS = ("trace", "root", "time")
ROWS = (("a1b2c3d4", "esper round 4", "2.00 s"), ("b2", "[red]ünïcode 漢字", ""), ("c3", "a\x1b[31mb", "1,000 min"))


def printed(shown: object, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    console = PlainConsole()
    with console.capture() as told:
        console.print(shown)
    return [line.rstrip() for line in told.get().splitlines() if line.strip()]


def test_a_long_table_looks_like_a_table_of_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = LongTable(*HEADERS, wraps="root"), table(*HEADERS, figures=("trace", "time"))
    theirs.padding = (0, 1, 0, 0)
    for row in ROWS:
        mine.add_row(*row)
        theirs.add_row(*cells(*row))
    assert printed(mine, 80, monkeypatch) == printed(theirs, 80, monkeypatch)


@pytest.mark.parametrize("width", [20, 30, 34])
def test_the_column_that_wraps_loses_no_text(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = LongTable("root", "n", wraps="root")
    shown.add_row("one two three_four_five_six_seven_eight_nine_ten", "7")
    lines = printed(shown, width, monkeypatch)
    text = "".join(line[: width - 3] for line in lines[2:]).replace(" ", "")
    assert text.replace("7", "") == "onetwothree_four_five_six_seven_eight_nine_ten"
    assert lines[2].endswith("7")
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [20, 40])
def test_no_column_is_lost_if_they_do_not_fit_beside_each_other(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = ("trace", "root", "start (UTC)", "time", "spans", "errors", "severe")
    rows = [("a1b2c3d4", "esper round 4", "11-29 20:00:00", "2.00 s", "1,234", "5 +6 open", "78")]
    rows += [("b2c3d4e5", "a_name_that_is_longer_than_a_line_of_the_terminal", "11-29 20:00:01", "3.00 s", "9", "", "")]
    shown = LongTable(*headers, wraps="root")
    for row in rows:
        shown.add_row(*row)
    lines = printed(shown, width, monkeypatch)
    told = [f"{header}: {text}" for row in rows for header, text in zip(headers, row, strict=True) if text]
    assert "".join(lines).replace(" ", "") == "".join(told).replace(" ", "")
    assert max(map(len, lines)) <= width


def test_a_row_has_its_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = LongTable("root", wraps="root")
    shown.add_row("failed", style="red")
    shown.add_row("good")
    assert "\x1b[31m failed\x1b[0m" in printed(shown, 80, monkeypatch)
    assert " good" in printed(shown, 80, monkeypatch)
