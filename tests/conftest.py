"""What holds for every test run: one torch thread, and no skip without a reason on the list. It tests nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.errors import Drained
from esper.loop import resume, run
from esper.testing import StopAt, tiny_config, tiny_task

torch.set_num_threads(1)  # same bits and same speed whatever the machine

ALLOWED_SKIPS: dict[str, str] = {"this machine lets us mount no tmpfs": "not every machine gives the rights to"}
"""Reason of a skip or an expected failure, word for word -> why it may stand. Anything else fails the run."""


class SkipLedger:
    """Collects skips and expected failures that `allowed` does not name, and fails the run if there is one."""

    def __init__(self, allowed: dict[str, str]) -> None:
        self.allowed = allowed
        self.unexplained: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        if hasattr(report, "wasxfail"):
            reason = report.wasxfail
        else:
            assert isinstance(report.longrepr, tuple)  # pytest's (path, line, "Skipped: reason")
            reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in self.allowed:
            self.unexplained.append(f"{report.nodeid}: {reason!r}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexplained and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexplained:
            terminalreporter.section("not run, and not on the list of tests/conftest.py", red=True)
            for line in self.unexplained:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipLedger(ALLOWED_SKIPS))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="put what tests have seen into the docs, where they do")


@pytest.fixture(scope="session")
def drained_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was drained at fence 4, gone on with, and drained at fence 6. Not to be changed."""
    path = tmp_path_factory.mktemp("drained") / "run"
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(path)), drain=(watch := StopAt(4)).drain, progress=watch)
    with pytest.raises(Drained):
        resume(path, tiny_task(), drain=(watch := StopAt(6)).drain, progress=watch)
    return path
