"""The files of `monitoring/` and the runbooks: each severe event has an alert, each alert a page, and the reverse."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

import monitoring
from esper.cli.command_table import COMMANDS
from esper.cli.main import app
from esper.telemetry import events
from esper.telemetry.events import Severity

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "runbooks"
PARTS = ("What it means", "What is kept", "What to do", "Which command")


@pytest.mark.parametrize("path", monitoring.FILES, ids=lambda path: path.name)
def test_the_files_are_what_the_tool_writes(path):
    assert path.read_text() == monitoring.FILES[path](), "run `python tools/monitoring.py`"


def test_every_severe_event_has_an_alert_and_the_reverse():
    assert monitoring.EVENTS.keys() == events.NAMES
    assert set(re.findall(r'recent\{event=\\"(\w+)\\"\}', monitoring.RULES.read_text())) == events.NAMES
    names = [alert.name for alert in monitoring.alerts()]
    assert len(names) == len(set(names))
    tested = {case.alert.name for case in monitoring.cases()}
    assert tested == set(names)


def severities(event):
    """The severities with which the source reports an event, where it names them."""
    for room in ("esper", "actors"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if f'"{event}"' not in text:
                continue
            for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
                told = [ast.unparse(one) for one in call.args]
                if repr(event) in told:
                    yield from (Severity[one.partition(".")[2]] for one in told if one.startswith("Severity."))


def test_the_severity_of_an_alert_is_the_highest_of_its_event():
    order = list(Severity)
    for event, (severity, _) in monitoring.EVENTS.items():
        found = list(severities(event))
        if event in ("gate_failure", "command_rejected", "dependency_violation"):  # another call computes it
            assert severity is Severity.CRITICAL
        elif found:
            assert severity is max(found, key=order.index), event


def test_every_alert_has_a_page_with_its_four_parts_and_every_page_has_an_alert():
    pages = {path.stem: path.read_text() for path in PAGES.glob("*.md")}
    for alert in monitoring.alerts():
        assert (ROOT / alert.runbook).is_file(), alert.runbook
        assert alert.name in pages[alert.page]
    for name, page in pages.items():
        mine = {alert.name for alert in monitoring.alerts() if alert.page == name}
        assert set(re.findall(r"\bEsper[A-Z]\w+", page)) == mine, name
        parts = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)+)", page, flags=re.MULTILINE))
        assert tuple(parts) == PARTS, name
        assert min(map(len, parts.values())) > 25, name
        assert "```\nesper " in parts["Which command"]


COMMAND = re.compile(r"^(esper [a-z].*)$|`(esper [a-z][^`]* RUN[^`]*)`", re.MULTILINE)


def test_the_command_line_takes_every_command_of_a_page():
    found = {first or second for page in PAGES.glob("*.md") for first, second in COMMAND.findall(page.read_text())}
    assert len(found) > 15
    for line in sorted(found):
        words, command = shlex.split(line)[1:], typer.main.get_command(app)
        if words[0] not in COMMANDS:
            assert words[:2] == ["drill", "run"], line  # the command of an installed package
            continue
        while hasattr(command, "resolve_command"):
            _, command, words = command.resolve_command(command.context_class(command), words)
        command.make_context(line, words)  # a wrong option or a missing argument raises


@pytest.mark.prometheus
@pytest.mark.parametrize(
    "arguments", [("check", monitoring.RULES), ("test", monitoring.RULES_TEST)], ids=lambda a: a[0]
)
def test_promtool_accepts_the_rules_and_passes_their_tests(arguments):
    what, file = arguments
    done = subprocess.run(["promtool", what, "rules", file.name], cwd=file.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_promtool_sees_an_alert_that_fires_too_early(tmp_path):
    """The tests of the rules can fail: one expression is made to hold always."""
    broken = monitoring.rules().replace('event=\\"gate_failure\\"} > 0', 'event=\\"gate_failure\\"} >= 0')
    assert broken != monitoring.rules()
    (tmp_path / monitoring.RULES.name).write_text(broken)
    (tmp_path / "test.yml").write_text(monitoring.rules_test())
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "EsperGateFailure" in done.stdout + done.stderr
