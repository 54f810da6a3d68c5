"""Starts a run from the command line, handles signals during it, and reports a failure."""

from __future__ import annotations

import math
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from esper.archive.history import Remains, look_at
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import checkpoints_folder, quarantined, run_file
from esper.archive.summary import failure
from esper.cli.console import PlainConsole
from esper.cli.output import complain, print_json, say
from esper.cli.terminal import Terminal
from esper.config.joined import RunConfig
from esper.errors import ActorLost, ConfigError, EsperError, PlacementUnavailable, all_notes
from esper.flow.entry import resume, run
from esper.flow.next_steps import next_step, resume_command
from esper.flow.places import InProcess, OnRay
from esper.flow.result import Result
from esper.flow.stopping import SAME_REQUEST_S, Drain
from esper.ground import parent
from esper.ground.closing import noted_on
from esper.ground.exit_codes import DRAINED, INTERRUPTED, STRICT_FAILURE, code_of
from esper.ground.parent import End
from esper.ground.workplace import fixed, shown
from esper.task import Task
from esper.trace.span_files import has_spans
from esper.user_code.plugins import launcher
from esper.user_code.task_reference import Reference
from esper.user_code.their_code import marked

SHOW_CURSOR = "\x1b[?25h"
"""Control sequence that shows the cursor, which the live view hides."""


class Signalled(KeyboardInterrupt):
    """Raised if a signal arrives while a run starts. Its text is the name of the signal."""


def place_of_run(*, in_process: bool) -> InProcess | OnRay:
    """Return the place of the run: this process, or Ray. Call it before the task is loaded.

    Raises:
        ConfigError: the package `actors` is not installed, or another package has its name.
    """
    if in_process:
        return InProcess()
    launcher("ray")  # imported now, from esper's folder, because the task's project may have a package of the same name
    return OnRay()


def execute(on: InProcess | OnRay, task: Task, config: RunConfig, reference: Reference, *, as_json: bool) -> Result:
    """Run to the end, or exit with the code of the failure.

    Raises:
        ConfigError: an input is wrong; nothing was written. typer.Exit: the run did not reach its end. The reason was
            printed.
    """
    with _watched(as_json) as (progress, drain):
        return run(task, config, on=on, reference=reference, progress=progress, drain=drain)


def execute_resume(
    run_dir: Path,
    task: str | None,
    settings: Mapping[str, Any],
    broken: Path | None,
    *,
    in_process: bool,
    as_json: bool,
) -> Result:
    """Resume a run to its end, or exit with the code of the failure.

    Raises:
        ConfigError: the run cannot be resumed with these settings; nothing was changed. typer.Exit: the run did not
            reach its end. The reason was printed.
    """
    on = place_of_run(in_process=in_process)
    begun = fixed(run_dir) if run_file(fixed(run_dir)).is_file() else None
    if begun is not None:
        parent.tell(run_dir=shown(begun))
    with _watched(as_json, begun) as (progress, drain):
        result = resume(run_dir, task, settings, on=on, broken=broken, progress=progress, drain=drain)
        if progress.path is None:  # the run had already ended, so no view was opened
            progress.ended(result)
        return result


@contextmanager
def _watched(as_json: bool, begun: Path | None = None) -> Iterator[tuple[Terminal, Drain]]:
    """Show a run, handle signals, and report a failure before the process exits.

    Args:
        begun: The directory of a resumed run. None: the run is new, and gets a directory when it starts.
    """
    terminal, drain = Terminal(PlainConsole(stderr=as_json)), Drain()
    try:
        with _signals(drain):
            yield terminal, drain
    except ConfigError as error:
        if terminal.path is None:
            raise
        terminal.close()  # after the start, a ConfigError comes from an actor, and is a failure of the run
        say_failure(error, terminal.path, as_json=as_json)
        raise typer.Exit(STRICT_FAILURE) from error
    except KeyboardInterrupt as interrupt:
        terminal.close()
        place = terminal.path or begun
        kept = f"; to resume it: {resume_command(Path(shown(place)))}" if place is not None else ""
        raise typer.Exit(complain(f"interrupted{kept}", INTERRUPTED)) from interrupt
    except Exception as error:
        terminal.close()
        say_failure(error, terminal.path or begun, as_json=as_json)
        raise typer.Exit(code_of(error)) from error
    finally:
        terminal.close()


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises `SystemExit`, so that open resources are closed."""

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise SystemExit(DRAINED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals(drain: Drain) -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP request an end of the run at the next fence, and Ctrl-C interrupts it.

    A second Ctrl-C within `SAME_REQUEST_S` is ignored, so that it does not disturb the cleanup. A Ctrl-C after that
    time interrupts again, because other code may have caught the first interrupt. A SIGHUP that was ignored before
    (`nohup`) stays ignored.
    """
    last_s = -math.inf

    def terminate(number: int, frame: FrameType | None) -> None:
        del frame
        if time.monotonic() - last_s > SAME_REQUEST_S:
            try:
                drain.ask()
            except KeyboardInterrupt:
                raise Signalled(signal.Signals(number).name) from None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        del number, frame
        now_s = time.monotonic()
        if now_s - last_s > SAME_REQUEST_S:
            last_s = now_s
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    if before[signal.SIGHUP] is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_failure(error: Exception, run_dir: Path | None, *, as_json: bool) -> None:
    """Print the error, its cause, its trace id, the files that the failed run left, and the next step."""
    facts, last, kept = failure(error), None, "nothing was written"
    if run_dir is not None:
        kept = "nothing that can be read"
        with noted_on(error, f"reading what is left in {shown(run_dir)}"):
            found = look_at(run_dir)
            last = next((entry for entry in reversed(found.entries) if _tells(entry, facts)), None)
            kept = _kept(run_dir, found)
    trace_id = last.body["trace_id"] if last is not None else None
    on_disk = trace_id if run_dir is not None and has_spans(run_dir) else ""
    call = marked(error)
    told: dict[str, Any] = {
        **facts,
        **({"place": call.place} if call is not None and call.place else {}),
        "trace_id": trace_id,
        "run_dir": shown(run_dir) if run_dir is not None else None,
        "kept": kept,
        **({"last_fence": last.body["fence"]} if last is not None else {}),
        "next": next_step(error, Path(shown(run_dir)) if run_dir is not None else None, on_disk or ""),
    }
    del told["notes"]
    notes = list(all_notes(error))
    if last is not None and "fault_fired" in last.body:
        told["fault_fired"] = last.body["fault_fired"]
    # an error of the user's code, or a bug, for which the traceback and its notes help most
    if not isinstance(error, EsperError):
        traceback.print_exception(error)
    elif notes:
        say(*notes, error=True)
    for name, value in told.items():
        if value or (name == "last_fence" and value == 0):
            say(f"{name}: {value}", error=True)
    if as_json:
        print_json({**told, "notes": notes} if notes else told)


def in_child(*, as_json: bool) -> int | None:
    """Fork a child process for the command. Return None in the child. In the parent, return the exit code of the
    child."""
    try:
        end = parent.split()
    except OSError as error:
        refused = PlacementUnavailable("conductor", f"the system refused a process for the run: {error.strerror}")
        refused.__cause__ = error
        say_failure(refused, None, as_json=as_json)
        return STRICT_FAILURE
    return say_end(end, as_json=as_json) if end is not None else None


def say_end(end: End, *, as_json: bool) -> int:
    """Report the end of a child process that died without a report. Return the exit code of the command line."""
    if end.code is not None:
        return end.code
    if -end.status in parent.ENDING:
        parent.die_of(-end.status)
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            print(SHOW_CURSOR, end="", file=stream)
    why = end.reason or f"its process {end.how} without a report: a process of Ray died, or the system ended it"
    say_failure(ActorLost("conductor", why), Path(end.run_dir) if end.run_dir else None, as_json=as_json)
    return STRICT_FAILURE


def _kept(run_dir: Path, found: Remains) -> str:
    """Describe the files that a failed run left on disk."""
    if not found.entries:
        return "run.json; the run had not begun"
    there = [str(one.fence) for one in found.commits if (checkpoints_folder(run_dir) / one.file).exists()]
    kept = f"journal, telemetry and checkpoints of fence {', '.join(there)}" if there else "journal and telemetry"
    names = quarantined(run_dir)
    return f"{kept}; in quarantine, since they do not load: {', '.join(names)}" if names else kept


def _tells(entry: Entry, facts: dict[str, Any]) -> bool:
    """Return whether a record of the journal reports this failure."""
    return entry.kind is RecordKind.RUN_FAILED and entry.body.items() >= facts.items()
