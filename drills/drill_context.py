"""Runs the task of a drill, and keeps how each run ended. A drill breaks a run by its methods."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import esper
from drills.leaks import MARK
from drills.task_under_drill import TaskUnderDrill
from drills.undisturbed import Undisturbed
from esper import InProcess, OnRay
from esper.archive.history import look_at
from esper.archive.journal import RecordKind
from esper.archive.recovery_record import Recovery
from esper.archive.run_directory import run_file
from esper.config.joined import RunConfig, as_toml
from esper.errors import DrillImpossible
from esper.faults import Fault, FaultSpec, Firing, Firings
from esper.flow.progress import Progress
from esper.flow.result import Result
from esper.flow.stopping import Drain
from esper.ground.exit_codes import DONE, code_of
from esper.leyline.ports import Policy

STOPPED = "T"
"""State of a process that SIGSTOP has stopped."""


@dataclass(frozen=True)
class Soak:
    """How long a random schedule goes on, and which episode it begins with."""

    seconds: float = 60.0
    """No new episode begins after this time."""
    first: int = 0
    """Number of the first episode."""
    only: bool = False
    """Whether the first episode is the only one."""


@dataclass(frozen=True)
class Attempt:
    """One run or resume of a drill, and how it ended."""

    what: str
    """`run`, `resume`, or the command line."""
    began_s: float
    """Seconds from the begin of the drill."""
    wall_s: float
    exit_code: int
    """Exit code of the command line for this end. A negative number: the process died of this signal."""
    error: BaseException | None = None
    """The error that the run raised. None: it reached its end, or it was a command line."""
    result: Result | None = None
    failure: Mapping[str, Any] | None = None
    """The journal's record of the failure, as it was when the run ended. None: the run recorded none."""
    armed: tuple[FaultSpec, ...] = ()
    """The faults of this run or resume."""
    fired: tuple[Firing, ...] = ()
    """The firings of these faults."""


class Part(Protocol):
    """What one part of a long drill left: an `Observed` whose folder may be gone."""

    @property
    def same_bits(self) -> bool | None:
        """Whether the run of the part ended with the bits of the undisturbed run."""
        ...

    @property
    def signals_lost(self) -> int | None:
        """Number of lost signals. None: the part sent none."""
        ...

    @property
    def signals_duplicated(self) -> int | None:
        """Number of deliveries beyond the first. None: the part sent none."""
        ...

    @property
    def steps_redone(self) -> int | None:
        """Number of steps that were done more than once. None: unknown."""
        ...

    @property
    def recoveries(self) -> list[Recovery]:
        """Every recovery from the death of an actor."""
        ...


@dataclass
class DrillContext:
    """What a drill works with. Each drill gets its own, with an own folder."""

    subject: TaskUnderDrill
    folder: Path
    place: Callable[[Policy | None], InProcess | OnRay]
    """Returns the place of the runs of this drill."""
    undisturbed: Undisturbed
    """The same task without faults, in one process."""
    soak: Soak = field(default_factory=Soak)
    """How long a random schedule goes on."""
    say: Callable[[str], object] = lambda _: None
    """Shows a line to the person who runs the drill."""
    own_ray: bool = True
    """Whether commands may start a Ray of their own. False: all drills shall use a Ray that is up."""
    attempts: list[Attempt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Lines for the report, such as a schedule."""
    parts: list[Part] = field(default_factory=list)
    """What the parts of a long drill left."""
    sent: list[str] = field(default_factory=list)
    """Ids of the emergency signals that the drill sent."""
    spans_lost: int | None = None
    """Number of spans that did not reach their collector, as the run showed it. None: the drill did not ask."""
    spans_lost_in_all: int | None = None
    """The same number when the telemetry of the run was closed."""
    began_at: float = field(default_factory=time.time)
    """Unix time at the begin of the drill."""
    _began: float = field(default_factory=time.monotonic)
    _arming: tuple[FaultSpec, ...] = ()
    """The faults of the run or resume that was started last."""
    _known_files: frozenset[str] = frozenset()
    """Names of the files of firings before that run or resume."""

    @property
    def run_dir(self) -> Path:
        """Directory of the run of this drill."""
        return self.folder / "run"

    @property
    def signals_file(self) -> Path:
        """File of a sink outside the run directory. Its folder is not made here."""
        return self.folder / "sink" / "signals.jsonl"

    def run(
        self,
        *faults: FaultSpec,
        policy: Policy | None = None,
        progress: Progress | None = None,
        drain: Drain | None = None,
        settings: Mapping[str, object] | None = None,
        on: InProcess | OnRay | None = None,
    ) -> Attempt:
        """Begin the run, with faults armed, and wait for its end. An error of the run is kept in the attempt.

        Args:
            settings: Config values by dotted key.
            on: Place of the run. None: the place of the drill.
        """
        self._arm(faults)
        config = self.config(*faults, settings=settings)
        subject = self.subject
        return self._attempt(
            "run",
            lambda: esper.run(
                subject.task,
                config,
                on=on or self.place(policy),
                reference=subject.reference,
                progress=progress,
                drain=drain,
            ),
        )

    def resume(
        self,
        *faults: FaultSpec,
        policy: Policy | None = None,
        progress: Progress | None = None,
        drain: Drain | None = None,
        settings: Mapping[str, object] | None = None,
        on: InProcess | OnRay | None = None,
    ) -> Attempt:
        """Resume the run, with faults armed, and wait for its end. An error of the run is kept in the attempt.

        Args: as for `run`.
        """
        self._arm(faults)
        subject = self.subject
        task = None if subject.reference.text else subject.task
        broken = self._faults_file(faults)
        return self._attempt(
            "resume",
            lambda: esper.resume(
                self.run_dir,
                task,
                settings,
                on=on or self.place(policy),
                broken=broken,
                progress=progress,
                drain=drain,
            ),
        )

    def config(self, *faults: FaultSpec, settings: Mapping[str, object] | None = None) -> RunConfig:
        """Return the config of the run: that of the task, with these faults and settings, in this drill's folder."""
        return self.subject.config({"run.dir": str(self.run_dir), **(settings or {})}, faults)

    def start_command(
        self,
        *faults: FaultSpec,
        in_process: bool,
        resumes: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `esper run` of the task as an own process, in a session of its own. Wait for it by `await_command`.

        Args:
            resumes: Start `esper resume` instead.
            settings: Config values by dotted key.

        Raises: DrillImpossible: the task has no reference, so that no command line can name it; or the command would
            start a Ray although all drills shall use one that is up.
        """
        if not (in_process or self.own_ray):
            raise DrillImpossible("it needs a driver with a Ray of its own; run it without --on ADDRESS")
        self._arm(faults)
        words = ["resume", str(self.run_dir), *_set(settings or {})] if resumes else self._run_words(settings)
        broken = self._faults_file(faults)
        words += ["--in-process"] * in_process + (["--faults", str(broken)] if broken is not None else [])
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "esper", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.subject.started_in,
                env={**os.environ, MARK: str(os.getpid())},
                start_new_session=True,
            )

    def await_fault(self, fault: Fault | None = None) -> None:
        """Wait until a fault of the run or resume that was started last has fired.

        Args:
            fault: Kind of the fault. None: any.

        Raises: DrillImpossible: none fired within the time limit of the drill.
        """
        limit = time.monotonic() + self.subject.limit_s
        while not any(fault in (None, firing.fault) for firing in self._fired()):
            if time.monotonic() > limit:
                raise DrillImpossible("no fault fired within the time limit")
            time.sleep(0.02)

    def wake(self) -> None:
        """Wake the process that the fault STOP stops, as soon as it stands still: a signal before that would be lost.

        Raises: DrillImpossible: it did not stand still within the time limit of the drill.
        """
        limit = time.monotonic() + self.subject.limit_s
        (pid,) = {firing.pid for firing in self._fired() if firing.fault is Fault.STOP}
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != STOPPED:
            if time.monotonic() > limit:
                raise DrillImpossible("the process that was to stop did not stand still within the time limit")
            time.sleep(0.02)
        os.kill(pid, signal.SIGCONT)

    def await_command(self, process: subprocess.Popen[bytes], what: str = "esper run") -> Attempt:
        """Wait for the end of a command. The time limit of the drill ends it with all its processes."""
        began = time.monotonic()
        try:
            code = process.wait(timeout=self.subject.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        kept = Attempt(
            what, began - self._began, time.monotonic() - began, code, armed=self._arming, fired=self._fired()
        )
        self.attempts.append(kept)
        return kept

    def _attempt(self, what: str, do: Callable[[], Result]) -> Attempt:
        began = time.monotonic()
        result, error, code = None, None, DONE
        try:
            result = do()
        except Exception as raised:  # how the run ended is what the drill judges
            error, code = raised, code_of(raised)
        failure = self._journalled() if error is not None else None
        ended_s, fired = time.monotonic() - began, self._fired()
        kept = Attempt(what, began - self._began, ended_s, code, error, result, failure, self._arming, fired)
        self.attempts.append(kept)
        return kept

    def part(self, name: str) -> DrillContext:
        """Return a context for one part of a long drill: another run, in a folder of its own."""
        folder = self.folder / name
        folder.mkdir()
        return DrillContext(self.subject, folder, self.place, self.undisturbed, say=self.say, own_ray=self.own_ray)

    def note(self, line: str) -> None:
        """Show a line, and keep it for the report."""
        self.notes.append(line)
        self.say(line)

    def take(self, part: DrillContext, left: Part) -> None:
        """Count the runs of a part, and what it left, as those of this drill."""
        self.parts.append(left)
        later_s = part._began - self._began
        self.attempts += [replace(one, began_s=one.began_s + later_s) for one in part.attempts]

    def _arm(self, faults: tuple[FaultSpec, ...]) -> None:
        self._arming, self._known_files = faults, frozenset(self._files_of_firings())

    def _fired(self) -> tuple[Firing, ...]:
        """Return the firings since the last call of `_arm`."""
        new = {name: file for name, file in self._files_of_firings().items() if name not in self._known_files}
        return tuple(firing for name in sorted(new) for firing in Firings(new[name]).all())

    def _files_of_firings(self) -> dict[str, Path]:
        return {file.name: file for file in self.run_dir.glob("faults-*.jsonl")}

    def _run_words(self, settings: Mapping[str, object] | None) -> list[str]:
        file = self.folder / "config.toml"
        file.write_text(as_toml(self.config(settings=settings)))
        return ["run", self.subject.text, "--config", str(file)]

    def _faults_file(self, faults: tuple[FaultSpec, ...]) -> Path | None:
        """Write faults into a file for a command line or a resume. None: there are none."""
        if not faults:
            return None
        file = self.folder / "faults.toml"
        file.write_text("\n".join(_toml(fault) for fault in faults))
        return file

    def _journalled(self) -> Mapping[str, Any] | None:
        if not run_file(self.run_dir).exists():
            return None
        last = look_at(self.run_dir).entries[-1:]
        return last[0].body if last and last[0].kind is RecordKind.RUN_FAILED else None


def _set(settings: Mapping[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={_value(value)}")]


def _toml(fault: FaultSpec) -> str:
    given = fault.model_dump(mode="json", exclude_defaults=True)
    return "[[faults]]\n" + "".join(f"{name} = {_value(value)}\n" for name, value in given.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_value(one)}' for name, one in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)  # the texts, numbers and lists of a fault are the same in TOML
