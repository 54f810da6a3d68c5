"""What people see: a text is shown as it is, and output that fails ends no run and changes no exit code."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from rich.table import Table

from esper.cli.command_table import only_prints
from esper.cli.console import PlainConsole, can_redraw
from esper.cli.lazy_group import Unloaded
from esper.cli.main import app, exit_code
from esper.cli.output import guarded, printable
from esper.cli.tables import cells, table
from esper.flow.result import Result

NASTY = ["lr=[/0.1]", "[exp1]", "[red]x[/red]", ":smile: \\[a]", "größe→", "\x1b[31ma"]
RUN = ["run", "own.py:task", "--in-process", "--no-growth"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(
        "from esper.testing import tiny_task\n"
        "def task():\n    print('of the task')\n    return tiny_task(epochs=1)\n"
        "def bad(): raise ValueError('[/bad] [red]')\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().print(text, soft_wrap=True)
    assert capsys.readouterr().out == printable(text) + "\n"


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[31m\x9b\r\x00b\tc\n") == "a\\x1b[31m\\x9b\\r\\x00b\tc\n"


def test_a_cell_with_control_characters_loses_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table("reason")
    shown.add_row(*cells("esc\x1b[2Jape"))
    PlainConsole().print(shown)
    assert "esc\\x1b[2Jape" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("text", NASTY)
def test_a_run_in_a_folder_of_any_name_is_shown_and_looked_at(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*RUN, "--run-dir", text]) == 0
    out = capsys.readouterr().out
    assert f"run {printable(text)}\n" in out
    assert out.rstrip().endswith(printable(text))
    assert exit_code(["inspect", text]) == 0
    assert capsys.readouterr().out.startswith(f"{printable(text)}: finished")


def test_names_and_errors_of_the_user_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["run", "own.py:bad", "--in-process"]) == 2
    assert "ValueError: [/bad] [red]" in capsys.readouterr().err
    assert exit_code(["inspect", "[/nowhere]"]) == 2
    assert "'[/nowhere]'" in capsys.readouterr().err


def test_every_help_text_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    for words, command in commands(typer.main.get_command(app), []):
        assert exit_code([*words, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        options = [one for one in command.params if isinstance(one, typer.core.TyperOption)]
        for text in (command.help, *(option.help for option in options)):
            assert " ".join((text or "").split()) in shown


def commands(command: typer.core.TyperCommand, words: list[str]) -> Iterator[tuple[list[str], typer.core.TyperCommand]]:
    command = command.load() if isinstance(command, Unloaded) else command
    yield words, command
    for name, inner in command.commands.items() if isinstance(command, typer.core.TyperGroup) else ():
        yield from commands(inner, [*words, name])


# -- output that fails ---------------------------------------------------------------------------------------------


@contextmanager
def closed_pipe() -> Iterator[io.TextIOBase]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def full_disk() -> Iterator[io.TextIOBase]:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def closed_file() -> Iterator[io.TextIOBase]:
    with open("gone", "w", encoding="utf-8") as stream:
        pass
    yield stream


@contextmanager
def no_file() -> Iterator[None]:
    yield None


WAYS = [closed_pipe, full_disk, closed_file, no_file]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_without_its_output(
    way: Callable[[], Iterator[io.TextIOBase]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = io.StringIO()
    with way() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", told)
        assert exit_code([*RUN, "--run-dir", "run"]) == 0
    assert json.loads(Path("run/summary.json").read_bytes())["steps"] == 32
    said = "" if way is no_file else "esper: standard output is dropped from now on: "
    assert re.fullmatch(f"{said}[^\n]*\n?", told.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([*RUN, "--json", "--run-dir", "run"], 0),
        (["run", "own.py:bad"], 2),
        (["inspect", "nowhere"], 2),
        (["log", "verify", "journal.log"], 2),
    ],
)
def test_with_no_output_at_all_the_exit_code_is_the_same(
    way: Callable[[], Iterator[io.TextIOBase]], words: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with way() as out, way() as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert exit_code(words) == code


@pytest.mark.parametrize(
    "words",
    [["config"], ["--help"], ["inspect", "run", "--json"], ["log", "dump", "run"], ["checkpoint", "list", "run"]],
)
@pytest.mark.parametrize(("way", "code"), [(closed_pipe, 0), (no_file, 0), (full_disk, 3), (closed_file, 3)])
def test_a_command_fails_if_its_output_is_all_it_makes_and_is_lost(
    way: Callable[[], Iterator[io.TextIOBase]],
    code: int,
    words: list[str],
    undisturbed: Result,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [undisturbed.run_dir if word == "run" else word for word in words]
    told = io.StringIO()
    with way() as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", told)
        assert exit_code(words) == code
    assert bool(told.getvalue()) == bool(code)  # a reader that left, as `head` does, is no failure
    assert "Errno" not in told.getvalue()


def test_a_command_of_a_package_keeps_its_exit_code_without_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {words[0] for words, _ in commands(typer.main.get_command(app), []) if words}
    assert {name for name in own if not only_prints([name])} == {
        "run",
        "resume",
        "snapshot",
        "export",
        "signal",
        "queue",
    }
    monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])
    app.command("theirs")(lambda: print("written"))
    with full_disk() as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert exit_code(["theirs"]) == 0


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with guarded():
        print("größe", "\udcff")
        PlainConsole().print("→ █")
        sys.stdout.flush()
    assert raw.getvalue() == b"gr\\xf6\\xdfe \\udcff\n\\u2192 \\u2588\n"


def test_streams_are_put_back_and_guarded_once() -> None:
    before = sys.stdout, sys.stderr
    with guarded():
        inside = sys.stdout
        with guarded():
            assert sys.stdout is inside
    assert (sys.stdout, sys.stderr) == before


ENTRY = "from esper.cli.main import main; main()"


@pytest.mark.slow
def test_a_real_process_whose_reader_left_ends_as_the_run_does() -> None:
    """What is still buffered when the interpreter ends must not change the exit code either."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", ENTRY, *RUN, "--run-dir", "run"]
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert re.fullmatch(
        rb"esper: standard output is dropped from now on: its reader is gone; the command continues\n", ended.stderr
    )
    assert ended.returncode == 0


@pytest.mark.slow
def test_no_file_of_a_run_takes_the_number_of_a_closed_descriptor() -> None:
    """Whatever prints by number, as C code does, would write into it."""
    script = f"exec '{sys.executable}' -c '{ENTRY}' {' '.join(RUN)} --run-dir run >&- 2>&-"
    Path("own.py").write_text(
        "import os\nfrom esper.testing import Bands, tiny_task\n"
        "class Loud(Bands):\n    def __getitem__(self, index):\n"
        "        os.write(1, b'loud'), os.write(2, b'loud')\n        return super().__getitem__(index)\n"
        "def task(): return tiny_task(epochs=1, train=Loud(1024, 1))\n"
    )
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 0
    assert exit_code(["log", "verify", "run"]) == 0
    assert exit_code(["checkpoint", "verify", "run"]) == 0


# -- terminals -----------------------------------------------------------------------------------------------------


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("set_to", "live", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm", "COLUMNS": "0"}, True, True),
    ],
)
def test_what_a_terminal_can_do(
    set_to: dict[str, str], live: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", screen := FakeTerminal())
    console = PlainConsole()
    console.print("word", style="red")
    assert can_redraw(console) is live
    assert "word" in screen.getvalue()
    assert ("\x1b[31m" in screen.getvalue()) is coloured


def test_a_file_is_never_drawn_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not can_redraw(PlainConsole())


def test_a_console_is_made_in_one_place() -> None:
    root = Path(exit_code.__code__.co_filename).parent
    made = {
        path
        for place in (root, root.parent / "actors")
        for path in place.rglob("*.py")
        if re.search(r"\bConsole\(|\brich\.print\b|markup=True|from_markup", path.read_text(encoding="utf-8"))
    }
    assert made == set()


def test_a_console_that_is_no_terminal_breaks_no_name_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table, name = Table(*"abcdef"), "depthwise_separable/replica"
    table.add_row(*[name] * 5, "1")
    console = PlainConsole()
    with console.capture() as shown:
        console.print(table)
    assert shown.get().count(name) == 5
