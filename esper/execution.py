"""One run from the command line: which way it is brought up, what signals do to it, what is said when it fails.

Exit codes: 3 strict failure; 4 emergency stop; 130 interrupted; 143 drained after SIGTERM.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from esper.config import RunConfig
from esper.errors import ConfigError, Drained, EmergencyStop, EsperError
from esper.journal import Entry, Kind, read
from esper.loop import GENERATION, Drain
from esper.loop import run as run_here
from esper.progress import Terminal
from esper.references import Reference
from esper.run_directory import journal_file
from esper.summary import Result, failure
from esper.task import Task

STRICT_FAILURE, EMERGENCY, INTERRUPTED, DRAINED = 3, 4, 130, 143

LAUNCHERS = "esper.launchers"
"""Entry-point group of other ways to bring a run up than in this process; `actors` has "ray" there."""


def execute(task: Task, config: RunConfig, reference: Reference, *, in_process: bool, as_json: bool) -> Result:
    """Run to the end, or leave with the exit code that the failure has.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        typer.Exit: the run did not reach its end; why was said.
    """
    terminal, drain = Terminal(Console(stderr=as_json)), Drain()
    launch = run_here if in_process else _launcher("ray")
    try:
        with _signals(drain):
            return launch(task, config, reference=reference, progress=terminal, drain=drain)
    except ConfigError:
        raise
    except KeyboardInterrupt as interrupt:
        terminal.close()
        kept = f"; its journal is kept: esper inspect {terminal.path}" if terminal.path is not None else ""
        raise typer.Exit(complain(f"interrupted{kept}", INTERRUPTED)) from interrupt
    except Exception as error:
        terminal.close()
        say_failure(error, terminal.path, as_json=as_json)
        raise typer.Exit(_code(error)) from error
    finally:
        terminal.close()


def complain(text: str, code: int) -> int:
    """One clear line on standard error; returns the exit code."""
    if text:  # a command without arguments has shown its help and says no more
        print(f"esper: {' '.join(text.split())}", file=sys.stderr)
    return code


def print_json(found: dict[str, Any]) -> None:
    """One JSON object, last on standard output."""
    print(json.dumps(found))


def _launcher(name: str) -> Callable[..., Result]:
    found = entry_points(group=LAUNCHERS, name=name)
    if not found:
        raise ConfigError("--in-process", False, "the package `actors` is not installed; run with --in-process")
    launcher: Callable[..., Result] = next(iter(found)).load()
    return launcher


def _code(error: Exception) -> int:
    if isinstance(error, EmergencyStop):
        return EMERGENCY
    return DRAINED if isinstance(error, Drained) else STRICT_FAILURE


@contextmanager
def _signals(drain: Drain) -> Iterator[None]:
    """While it lasts, SIGTERM asks the run to end; the first Ctrl-C interrupts it, and no other disturbs that end."""
    interrupted = False

    def terminate(number: int, frame: FrameType | None) -> None:
        del number, frame
        drain.ask()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        del number, frame
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_failure(error: Exception, run_dir: Path | None, *, as_json: bool) -> None:
    """The typed error, its cause, its trace, what is kept, what to do next."""
    last = _last_failure(run_dir)
    kept = "nothing was written" if run_dir is None else "run.json; the run had not begun"
    if last is not None:
        kept = f"journal and telemetry up to fence {last.body['fence']}"
    told: dict[str, Any] = {
        **failure(error),
        "trace_id": last.body["trace_id"] if last is not None else None,
        "run_dir": str(run_dir) if run_dir is not None else None,
        "kept": kept,
        "next": f"esper inspect {run_dir}" if run_dir is not None else "mend the cause and run again",
    }
    notes = told.pop("notes")
    if last is not None and "fault_fired" in last.body:
        told["fault_fired"] = last.body["fault_fired"]
    if not isinstance(error, EsperError):  # the user's own code: its traceback, notes included, is what helps
        traceback.print_exception(error)
    elif notes:
        print(*notes, sep="\n", file=sys.stderr)
    for name, value in told.items():
        if value:
            print(f"{name}: {value}", file=sys.stderr)
    if as_json:
        print_json({**told, "notes": notes} if notes else told)


def _last_failure(run_dir: Path | None) -> Entry | None:
    if run_dir is None:
        return None
    entries, _ = read(journal_file(run_dir, GENERATION))
    return next((entry for entry in reversed(entries) if entry.kind is Kind.RUN_FAILED), None)
