"""`esper events`: prints the severe events of a run. It changes nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from esper.archive.inspection import failure_of_run
from esper.cli.console import PlainConsole
from esper.cli.options import JsonOption, RunArgument
from esper.cli.output import print_json, say
from esper.cli.trace_commands import SinceOption, tell_skipped
from esper.cli.trace_view import in_one_line, severity_style, value_text
from esper.errors import ConfigError
from esper.ground.clock import SystemClock
from esper.ground.exit_codes import DONE
from esper.ground.suggest import existing_names
from esper.ground.workplace import fixed
from esper.trace.event_log import SEVERITIES, SevereEvent, severe_events
from esper.trace.since import since
from esper.trace.span_files import Skipped, has_spans


def events(
    run_dir: RunArgument,
    level: Annotated[
        str | None, typer.Option("--level", metavar="LEVEL", help="at least WARNING, ERROR or CRITICAL")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="only events of this name")] = None,
    since_text: SinceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the severe events of a run, the newest last, with their trace ids. Then print the error that ended the run,
    if one did: it may be no severe event, for example if it is an exception of the task.
    """
    skipped = Skipped()
    every = severe_events(fixed(run_dir), skipped)
    least = _rank(level.upper()) if level is not None else 0
    begin = since(since_text, SystemClock().now()) if since_text else None
    chosen = [
        event
        for event in every
        if (event.severity not in SEVERITIES or SEVERITIES.index(event.severity) >= least)
        and name in (None, event.name)
        and (begin is None or event.time >= begin)
    ]
    ended_by = failure_of_run(fixed(run_dir))
    if as_json:
        told = [event.as_json() for event in chosen]
        print_json({"events": told, "ended_by": ended_by, "skipped": skipped.as_json()})
    else:
        _show(chosen, every, level, others=name is not None or begin is not None)
        if ended_by is not None:
            _show_end(ended_by, run_dir)
    tell_skipped(skipped, as_json=as_json)
    return DONE


def _rank(level: str) -> int:
    """Raises: ConfigError: there is no such level."""
    if level not in SEVERITIES:
        raise ConfigError("--level", level, f"no such level; {existing_names(level, SEVERITIES)}")
    return SEVERITIES.index(level)


def _show_end(ended_by: Mapping[str, Any], run_dir: Path) -> None:
    trace = ended_by["trace_id"]
    shown = f": esper trace show {shlex.quote(str(run_dir))} {trace}" if trace and has_spans(fixed(run_dir)) else ""
    told = ": ".join(part for part in (ended_by["error"], " ".join(ended_by["message"].split())) if part)
    say(in_one_line(f"the run ended with {told} (after fence {ended_by['fence']}){shown}"))


def _wanted(level: str | None, others: bool) -> str:
    return f"are {level.upper()} or higher" if level is not None and not others else "match"


def _show(chosen: list[SevereEvent], every: list[SevereEvent], level: str | None, *, others: bool) -> None:
    if not chosen:
        say(f"0 of {len(every):,} severe events {_wanted(level, others)}" if every else "the run has no severe event")
    console = PlainConsole()
    for event in chosen:
        head = f"{event.time:%Y-%m-%d %H:%M:%S} {event.severity:<8} "
        line = Text(in_one_line(head)).append(in_one_line(event.name), style=severity_style(event.severity))
        line.append(in_one_line(f"  {event.role}  trace {event.trace_id[:8] or 'none'}"))
        line.append(in_one_line("".join(f"  {key}={value_text(value)}" for key, value in event.fields.items())))
        console.print(line, soft_wrap=True)
