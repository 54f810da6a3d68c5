"""What holds for every test run: one torch thread, and no skip without a reason on the list. It tests nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

import esper.flow.in_process
from esper import resume, run
from esper.config.joined import load_config
from esper.errors import Drained, FaultInjected
from esper.faults import Fault, FaultSpec
from esper.flow.result import Result
from esper.leyline.commands import Command, sign
from esper.setup import assembly
from esper.task import Task
from esper.telemetry import Telemetry, use
from esper.telemetry.events import LOG
from esper.telemetry.metrics import Counters
from esper.testing import StopAt, tiny_config, tiny_task
from esper.user_code.task_reference import Reference, load_task

sys.path.insert(0, str(Path(__file__).parent / "kit"))  # --import-mode=importlib puts no folder of tests there
settings.register_profile("esper", deadline=None)  # a loaded machine must not fail a test
settings.load_profile("esper")
torch.set_num_threads(1)  # same bits and same speed whatever the machine

ALLOWED_SKIPS: dict[str, str] = {
    "this machine lets us mount no tmpfs": "not every machine gives the rights to",
    "this machine lets us make no network namespace": "not every machine gives the rights to",
}
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
    parser.addoption(
        "--new-workers", action="store_true", help="start the processes of Ray's actors as Ray does, unforked"
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The tiny run in one process that nobody disturbed. Its directory is read by many tests; none changes it."""
    return run(tiny_task(), tiny_config(run__dir=str(tmp_path_factory.mktemp("undisturbed") / "run")))


@pytest.fixture(scope="session")
def drained_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was drained at fence 4, gone on with, and drained at fence 6. Not to be changed."""
    path = tmp_path_factory.mktemp("drained") / "run"
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(path)), drain=(watch := StopAt(4)).drain, progress=watch)
    with pytest.raises(Drained):
        resume(path, tiny_task(), drain=(watch := StopAt(6)).drain, progress=watch)
    return path


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    with Telemetry.start(tmp_path / "telemetry", "test") as telemetry, use(telemetry):
        yield telemetry


@pytest.fixture
def told(telemetry: Telemetry) -> Callable[[], list[str]]:
    """Names of the severe events so far."""

    def read() -> list[str]:
        log = telemetry.directory / LOG
        return [json.loads(line)["name"] for line in log.read_text().splitlines()] if log.exists() else []

    return read


TASK = "from esper.testing import tiny_task\n\n\ndef task():\n    return tiny_task()\n"
StoppedRuns = Callable[..., Path]


@pytest.fixture(scope="session")
def stopped_runs(tmp_path_factory: pytest.TempPathFactory) -> StoppedRuns:
    """Return the directory of a tiny run of a task file (`mine.py` beside it) that stopped at a fence.

    It was drained there, or with `failing=True` failed there; further keywords are config values. Each run is made
    once. A test may change its directory: the next call for this run puts all files back as they were at the stop.
    """
    made: dict[str, Path] = {}

    def get(fence: int, *, failing: bool = False, **overrides: Any) -> Path:
        kind = repr((fence, failing, sorted(overrides.items())))
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("stopped")
            _stop(made[kind] / "here", fence, failing, overrides)
            shutil.copytree(made[kind] / "here", made[kind] / "kept")
        else:
            shutil.rmtree(made[kind] / "here")
            shutil.copytree(made[kind] / "kept", made[kind] / "here")
        return made[kind] / "here" / "run"

    return get


def _stop(folder: Path, fence: int, failing: bool, overrides: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "mine.py").write_text(TASK)
    task, reference = load_task(f"{folder}/mine.py:task")
    config = tiny_config(run__dir=str(folder / "run"), **overrides)
    if failing:
        fault = FaultSpec(point="conductor.fence", fault=Fault.RAISE, round=fence)
        with pytest.raises(FaultInjected):
            run(task, config.model_copy(update={"faults": (fault,)}), reference=reference)
        return
    with pytest.raises(Drained) as drained:
        run(task, config, reference=reference, drain=(watch := StopAt(fence)).drain, progress=watch)
    assert drained.value.fence == fence


# -- runs whose components are wrapped -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrapped:
    """What a test sees of the components of its runs in this process."""

    made: dict[str, Any] = field(default_factory=dict)
    """The components of the last run: trainer, tamiyo, kasmina, incubator."""
    sent: list[Command] = field(default_factory=list)
    """Tamiyo's commands but those that scale rates, as Kasmina gets them."""
    counted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Every count, name and labels, in order. An event counts as it is written, a transition as it is made."""

    def total(self, name: str, **labels: Any) -> int:
        """How often something was counted with these labels."""
        return sum(name == one and labels.items() <= told.items() for one, told in self.counted)


@pytest.fixture
def wrap_components() -> Callable[..., Wrapped]:
    """Wrap the components of the runs in this process, as long as a monkeypatch lasts.

    `methods` maps a method of a component, as "trainer.observe", to a function that is called in its stead with the
    method and its arguments. `commanded` maps each command of Tamiyo, and those sent before it, to the fields that
    are changed; the command is then signed again, as only Tamiyo can, unless `signed` is False.
    """

    def wrap(
        patch: pytest.MonkeyPatch,
        methods: Mapping[str, Callable[..., Any]] | None = None,
        commanded: Callable[[Command, Sequence[Command]], Mapping[str, Any]] = lambda _command, _sent: {},
        *,
        signed: bool = True,
    ) -> Wrapped:
        found, counts = Wrapped(), Counters.add

        def note(self: Counters, name: str, amount: int = 1, **labels: Any) -> None:
            found.counted.extend([(name, labels)] * amount)
            counts(self, name, amount, **labels)

        def changed(secret: bytes, command: Command) -> Command:
            command = command.model_copy(update=commanded(command, found.sent))
            found.sent.append(command.model_copy(update={"signature": sign(command, secret)}) if signed else command)
            return found.sent[-1]

        def advance(secret: bytes, ask: Callable[..., Any], state: Any) -> Command | None:
            command = ask(state)
            return changed(secret, command) if command is not None else None

        def decide(secret: bytes, ask: Callable[..., Any], state: Any) -> Any:
            verdict = ask(state)
            command = verdict.outcome
            return (
                verdict.model_copy(update={"outcome": changed(secret, command)})
                if isinstance(command, Command)
                else verdict
            )

        def make(component: str, *arguments: Any) -> Any:
            made = found.made[component] = getattr(assembly, f"make_{component}")(*arguments)
            replaced = [
                (name.partition(".")[2], one) for name, one in (methods or {}).items() if name.startswith(component)
            ]
            if component == "tamiyo":
                secret = arguments[1].secret
                replaced += [("advance", partial(advance, secret)), ("decide", partial(decide, secret))]
            for name, instead in replaced:
                patch.setattr(made, name, partial(instead, getattr(made, name)))
            return made

        patch.setattr(Counters, "add", note)
        for component in ("tamiyo", "kasmina", "incubator", "trainer"):
            patch.setattr(f"esper.flow.in_process.make_{component}", partial(make, component))
        return found

    return wrap


THREE_HOSTS = Path(__file__).parent / "data" / "three_hosts.py"
STOP = 7


@dataclass(frozen=True)
class Grown:
    """A host of tests/data/three_hosts.py that grew: its run stopped at fence 7, and gone on with to its end."""

    task: Task
    inputs: Tensor
    stopped: Path
    ended: Path
    at_stop: Tensor
    """What the live host gave for the inputs, in evaluation mode, at the stop."""
    at_end: Tensor
    network: nn.Module
    """Of the run's result."""
    weights_sha256: str


@pytest.fixture(scope="session")
def three_hosts() -> Any:
    spec = importlib.util.spec_from_file_location("three_hosts", THREE_HOSTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["three_hosts"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def grown_host(three_hosts: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Grown]:
    """The grown host of a name, made once. Not to be changed."""
    made: dict[str, Grown] = {}

    def get(name: str) -> Grown:
        if name not in made:
            made[name] = _grow(three_hosts, name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def _grow(three_hosts: Any, name: str, folder: Path) -> Grown:
    task, trainers = getattr(three_hosts, name)(), []
    reference = Reference(f"{THREE_HOSTS}:{name}", THREE_HOSTS)
    inputs = task.valid.inputs[:5]
    with pytest.MonkeyPatch.context() as patch:
        make = esper.flow.in_process.make_trainer
        patch.setattr(esper.flow.in_process, "make_trainer", lambda *args: trainers.append(make(*args)) or trainers[-1])
        config = load_config(None, {**three_hosts.EASY, "run.dir": str(folder / "run")})
        with pytest.raises(Drained):
            run(task, config, reference=reference, drain=(watch := StopAt(STOP)).drain, progress=watch)
        with torch.no_grad():
            at_stop = trainers[0].host.eval()(inputs)
        shutil.copytree(folder / "run", folder / "stopped")
        result = resume(folder / "run", task)
        with torch.no_grad():
            at_end = result.network(inputs)
    return Grown(
        task, inputs, folder / "stopped", folder / "run", at_stop, at_end, result.network, result.weights_sha256
    )
