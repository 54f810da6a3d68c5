"""What tests of Kasmina share: signed commands, events, and runs whose components are wrapped. It tests nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from growing import BLEND, KEY, RUN, a_command, slot

import esper
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.archive.run_directory import telemetry_folder
from esper.config.joined import RunConfig
from esper.errors import Drained
from esper.flow.result import Result
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint
from esper.kasmina.registry.admission import admit
from esper.kasmina.registry.ledger import Ledger
from esper.leyline.commands import Candidate, Command, CommandKind, Operation
from esper.leyline.reports import FieldReport, GateReport, Transition
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage
from esper.task import Task
from esper.telemetry import Telemetry
from esper.telemetry.events import LOG
from esper.testing import EPOCH, StopAt


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def run_id() -> str:
    return RUN


@pytest.fixture
def told(telemetry: Telemetry) -> Callable[[], list[dict[str, Any]]]:
    """Every severe event so far, as it stands in the log."""

    def read() -> list[dict[str, Any]]:
        log = telemetry.directory / LOG
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return read


@pytest.fixture
def body_spec() -> SlotSpec:
    """The slot "body" of `TinyHost`."""
    return slot()


@pytest.fixture
def make_command() -> Callable[..., Command]:
    """A sound, signed command; any field may be another, and then it is signed with that."""

    def make(operation: Operation = Operation.GERMINATE, name: str = "1", **changes: Any) -> Command:
        fields: dict[str, Any] = {"mesh_host_layers": ("body",)}
        if operation is Operation.SCALE_RATE:
            fields = {"kind": CommandKind.OPTIMIZER, "rate_scale": 0.5}
        elif operation is Operation.GO_BACK:
            fields = {"kind": CommandKind.ROLLBACK, "to_fence": 3}
        if operation is Operation.GERMINATE:
            fields["candidates"] = (Candidate(slot="body", blueprint_id="mlp", seed_id=f"seed-{name}"),)
        elif operation is not Operation.GO_BACK:
            fields["seed_id"] = "seed-1"
        if operation in (Operation.GERMINATE, Operation.ADVANCE):
            fields["blend"] = BLEND
        return a_command(operation, name, **(fields | changes))

    return make


@pytest.fixture
def ledger(body_spec: SlotSpec) -> Ledger:
    """A run in which `seed-1` was germinated by `command-0` and has just won its tournament."""
    return Ledger(
        run_id=RUN,
        generation=1,
        nonces={"nonce-0": "command-0"},
        bodies={"command-0": b"what was signed then"},
        fence=5,
        stages={"seed-1": Stage.TRAINING},
        earliest={"seed-1": 5},
        pairs={"seed-1": ("body", "mlp")},
        slots={"body": body_spec},
        blends={"seed-1": None},
        closed=frozenset(),
        order_in_flight=None,
        checkpoints=(0, 3, 4),
    )


@pytest.fixture
def refused(ledger: Ledger, telemetry: Telemetry, told: Any) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Have a command refused, and check that this was said once and that nothing was changed."""

    def refuse(command: Command, error: type[Exception], *, now: datetime = EPOCH, ledger: Ledger = ledger) -> Any:
        before = copy.deepcopy(ledger)
        with pytest.raises(error) as caught:
            admit(command, ledger, key=KEY, now=now)
        assert ledger == before
        assert type(caught.value) is error
        (event,) = told()
        assert telemetry.counters.total("esper.severe_events") == 1
        assert telemetry.counters.total("esper.command.rejections") == 1
        assert telemetry.counters.total("esper.command.admissions") == 0
        return caught.value, event

    return refuse


# -- runs whose components are wrapped -------------------------------------------------------------------------------


@dataclass
class Lived:
    """A run in this process, to its end, to a drain or to its error."""

    directory: Path
    result: Result | None = None
    error: Any = None
    """The error that ended it, a drain included. Any: a test knows which."""
    wrapped: Any = None
    """See `wrap_components`."""
    _past: Any = None

    @property
    def counted(self) -> list[tuple[str, dict[str, Any]]]:
        """See `wrap_components`."""
        counts: list[tuple[str, dict[str, Any]]] = self.wrapped.counted
        return counts

    @property
    def _entries(self) -> Any:
        if self._past is None:
            self._past = read_past(self.directory).entries
        return self._past

    def _bodies(self, kind: RecordKind) -> list[str]:
        return [json.dumps(entry.body) for entry in self._entries if entry.kind is kind]

    @property
    def gates(self) -> list[GateReport]:
        return [GateReport.model_validate_json(body) for body in self._bodies(RecordKind.GATE)]

    @property
    def field_reports(self) -> list[FieldReport]:
        return [FieldReport.model_validate_json(body) for body in self._bodies(RecordKind.FIELD_REPORT)]

    @property
    def transitions(self) -> list[Transition]:
        return [Transition.model_validate_json(body) for body in self._bodies(RecordKind.TRANSITION)]

    @property
    def commands(self) -> list[Command]:
        return [Command.model_validate_json(body) for body in self._bodies(RecordKind.COMMAND)]

    @property
    def events(self) -> list[dict[str, Any]]:
        log = telemetry_folder(self.directory) / LOG
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def total(self, name: str, **labels: Any) -> int:
        """How often something was counted with these labels."""
        found: int = self.wrapped.total(name, **labels)
        return found


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap_components: Callable[..., Any]) -> Callable[..., Lived]:
    """Run a task in this process. Without a config, resume the run in `run_dir`.

    `blueprints` are all that there are. `wrap` are the methods of `wrap_components`, and `commanded` is a function of
    (command, its place among all commands) that returns the changed fields. The run is drained at fence `stop`, or ends
    with the error `raising`, or is made to its end.
    """

    def run(
        task: Task,
        config: RunConfig | None,
        *,
        blueprints: tuple[Blueprint, ...],
        wrap: Mapping[str, Callable[..., Any]] | None = None,
        commanded: Callable[[Command, int], dict[str, Any]] = lambda _command, _place: {},
        stop: int | None = None,
        raising: type[Exception] | None = None,
        run_dir: str = "run",
    ) -> Lived:
        lived = Lived(tmp_path / run_dir)
        names = {made.name: made for made in blueprints}
        with monkeypatch.context() as patch:
            patch.setattr(BLUEPRINTS, "_blueprints", names)
            lived.wrapped = wrap_components(patch, wrap, lambda command, sent: commanded(command, len(sent)))
            watch = StopAt(stop if stop is not None else -1)
            expected = raising or (Drained if stop is not None else None)
            with pytest.raises(expected) if expected is not None else nullcontext() as caught:
                if config is None:
                    lived.result = esper.resume(lived.directory, task, progress=watch, drain=watch.drain)
                else:
                    here = config.run.model_copy(update={"dir": str(lived.directory)})
                    lived.result = esper.run(
                        task, config.model_copy(update={"run": here}), progress=watch, drain=watch.drain
                    )
            lived.error = caught.value if caught is not None else None
        return lived

    return run
