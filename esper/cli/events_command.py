"""`esper events`: prints the severe events of a run. It changes nothing."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

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
from esper.trace.span_files import Skipped


def events(
    run_dir: RunArgument,
    level: Annotated[
        str | None, typer.Option("--level", metavar="LEVEL", help="at least WARNING, ERROR or CRITICAL")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="only events of this name")] = None,
    since_text: SinceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the severe events of a run, the newest last, with their trace ids."""
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
    if as_json:
        print_json({"events": [event.as_json() for event in chosen], "skipped": skipped.as_json()})
    else:
        _show(chosen, every)
    tell_skipped(skipped, as_json=as_json)
    return DONE


def _rank(level: str) -> int:
    """Raises: ConfigError: there is no such level."""
    if level not in SEVERITIES:
        raise ConfigError("--level", level, f"no such level; {existing_names(level, SEVERITIES)}")
    return SEVERITIES.index(level)


def _show(chosen: list[SevereEvent], every: list[SevereEvent]) -> None:
    if not chosen:
        say(f"no severe event is to be shown; the run has {len(every)}")
    console = PlainConsole()
    for event in chosen:
        head = f"{event.time:%Y-%m-%d %H:%M:%S} {event.severity:<8} "
        line = Text(in_one_line(head)).append(in_one_line(event.name), style=severity_style(event.severity))
        line.append(in_one_line(f"  {event.role}  trace {event.trace_id[:8] or 'none'}"))
        line.append(in_one_line("".join(f"  {key}={value_text(value)}" for key, value in event.fields.items())))
        console.print(line, soft_wrap=True)
