"""`esper signal` sends an emergency signal to a run. `esper queue` lists, retries or drops signals in a run's queue.

Exit codes: 0 the request was carried out, or waits in the inbox; 1 a part of the queue cannot be read; 2 wrong input; 3
refused.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.archive.identity import load_identity
from esper.archive.run_directory import emergency_folder
from esper.cli.command_table import COMMANDS
from esper.cli.console import PlainConsole
from esper.cli.options import JsonOption, RunArgument
from esper.cli.output import print_json, say
from esper.cli.tables import cells, table
from esper.emergency.queue_state import HeldSignal
from esper.emergency.reading import QUEUE, QueueContents, read_queue
from esper.emergency.requests import INBOX, REFUSED
from esper.errors import ConfigError
from esper.ground.clock import SystemClock
from esper.ground.exit_codes import CHECK_FAILED, DONE, STRICT_FAILURE
from esper.ground.suggest import existing_names
from esper.ground.workplace import fixed
from esper.leyline.signals import Level

app = typer.Typer(help=COMMANDS["queue"].help, add_completion=False, no_args_is_help=True, rich_markup_mode=None)

WaitOption = Annotated[
    float, typer.Option("--wait", metavar="S", min=0.0, help="seconds to wait until the run has taken it")
]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="signals; default: all dead letters")]


def signal(
    run_dir: RunArgument,
    level: Annotated[str, typer.Option("--level", help="NOTICE, ELEVATED, CONSERVATIVE or HALT")],
    reason: Annotated[str, typer.Option("--reason", help="why, for people")],
    attributes: Annotated[
        list[str] | None, typer.Option("--attribute", metavar="KEY=VALUE", help="a detail; may be repeated")
    ] = None,
    wait_s: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> int:
    """Send an emergency signal to a run. HALT stops the run at the next step; CONSERVATIVE stops germination."""
    from esper.flow.operator import Outcome, send  # imported here: it loads the emergency service

    found, details = _level(level), dict(map(_attribute, attributes or ()))
    sent, answer = send(fixed(run_dir), found, reason, details, wait_s)
    told = {"run_dir": str(run_dir), "signal_id": sent.signal_id, "level": sent.level.name}
    if as_json:
        print_json({**told, "state": answer.outcome.value, "why": answer.why})
    else:
        say(f"signal {sent.signal_id} ({sent.level.name}): {answer.outcome.value}{_because(answer.why)}")
    return STRICT_FAILURE if answer.outcome in (Outcome.REFUSED, Outcome.UNKNOWN) else DONE


@app.command("list")
def list_all(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Show the signals that are not delivered to every subscriber, by level, then by age."""
    run_dir = fixed(run_dir)
    load_identity(run_dir)  # refuses a folder without a run
    found = _contents(run_dir)
    signals = [_as_json(held) for held in found.waiting()] if found is not None else []
    damages = [asdict(damage) | {"file": str(damage.file)} for damage in found.damage] if found is not None else []
    counts = {name: _files(emergency_folder(run_dir) / name) for name in (INBOX, REFUSED)}
    if as_json:
        print_json({"run_dir": str(run_dir), "signals": signals, **counts, "damages": damages})
    else:
        _show(signals)
        say(f"requests that wait in the inbox: {counts[INBOX]}; refused requests: {counts[REFUSED]}")
        say(*(f"{one['file']}: damaged at byte {one['offset']}: {one['reason']}" for one in damages))
    return CHECK_FAILED if damages else DONE


@app.command()
def retry(run_dir: RunArgument, ids: IdsArgument = None, wait_s: WaitOption = 10.0, as_json: JsonOption = False) -> int:
    """Send dead letters again."""
    from esper.flow import operator

    run_dir = fixed(run_dir)
    load_identity(run_dir)
    chosen = ids or _dead(run_dir)
    if not chosen:
        raise ConfigError("ID", "", "there is no dead letter to retry; `esper queue list` shows what waits")
    return _end(run_dir, chosen, operator.retry(run_dir, chosen, wait_s), as_json=as_json)


@app.command()
def drop(
    run_dir: RunArgument,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="signals to remove")],
    reason: Annotated[str, typer.Option("--reason", help="why, for the record")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    wait_s: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> int:
    """Remove signals from the queue before they are delivered. The queue records the drop."""
    from esper.flow import operator

    run_dir = fixed(run_dir)
    load_identity(run_dir)
    if not yes and not _confirmed(len(ids)):
        say("nothing was dropped", error=as_json)
        return DONE
    return _end(run_dir, ids, operator.drop(run_dir, ids, reason, wait_s), as_json=as_json)


def _level(name: str) -> Level:
    """Return the level of this name. Raises: ConfigError: no level has this name."""
    if name.upper() not in Level.__members__:
        raise ConfigError("--level", name, f"no such level; {existing_names(name, Level.__members__)}")
    return Level[name.upper()]


def _attribute(text: str) -> tuple[str, str]:
    """Return (key, value). Raises: ConfigError: the text is not KEY=VALUE."""
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise ConfigError("--attribute", text, "write KEY=VALUE")
    return key, value


def _confirmed(number: int) -> bool:
    """Return the answer to the question. Raises: ConfigError: standard input is not a terminal."""
    if not sys.stdin.isatty():
        raise ConfigError("--yes", "not given", "standard input is no terminal, so nobody can be asked; give --yes")
    return typer.confirm(f"Drop {number} signals for good?", err=True)


def _contents(run_dir: Path) -> QueueContents | None:
    """Return the queue of a run. None: the run has no queue yet."""
    folder = emergency_folder(run_dir) / QUEUE
    return read_queue(folder) if folder.is_dir() else None


def _dead(run_dir: Path) -> list[str]:
    """Return the ids of all signals with a dead letter."""
    found = _contents(run_dir)
    return [
        held.signal.signal_id
        for held in (found.waiting() if found is not None else ())
        if any(delivery.dead is not None for delivery in held.waiting.values())
    ]


def _files(folder: Path) -> int:
    return sum(not one.name.startswith(".") for one in folder.iterdir()) if folder.is_dir() else 0


def _as_json(held: HeldSignal) -> dict[str, Any]:
    signal = held.signal
    return {
        "signal_id": signal.signal_id,
        "level": signal.level.name,
        "issued_at": signal.issued_at.isoformat(),
        "origin": signal.origin,
        "reason": signal.reason,
        "attributes": dict(signal.attributes),
        "deliveries": [
            {
                "subscriber": name,
                "state": "waiting" if delivery.dead is None else "dead",
                "attempts": delivery.attempts,
                "why": delivery.dead,
            }
            for name, delivery in held.waiting.items()
        ],
    }


def _show(signals: list[dict[str, Any]]) -> None:
    if not signals:
        say("no signal waits")
        return
    now = SystemClock().now()
    # an id that is not too long stays in one line, so that it can be copied
    figures = ("level", "issued", *(["signal"] if max(len(one["signal_id"]) for one in signals) <= 40 else []))
    shown = table("signal", "level", "issued", "reason", "waits for", figures=figures)
    for one in signals:
        age_s = (now - datetime.fromisoformat(one["issued_at"])).total_seconds()
        waits_for = ", ".join(_delivery(delivery) for delivery in one["deliveries"])
        shown.add_row(*cells(one["signal_id"], one["level"], f"{age_s:.0f} s ago", one["reason"], waits_for))
    PlainConsole().print(shown)


def _delivery(one: dict[str, Any]) -> str:
    if one["state"] == "dead":
        return f"{one['subscriber']} (dead letter after {one['attempts']} attempts: {one['why']})"
    return f"{one['subscriber']} ({one['attempts']} attempts)" if one["attempts"] else str(one["subscriber"])


def _because(why: str) -> str:
    return f": {why}" if why else ""


def _end(run_dir: Path, ids: list[str], answers: tuple[Any, ...], *, as_json: bool) -> int:
    """Print the results of a request, and return the exit code. `answers` were returned by `send`, `retry` or
    `drop`.
    """
    states = Counter(answer.outcome.value for answer in answers)
    whys = [answer.why for answer in answers if answer.why]
    state = next((one for one in ("refused", "unknown", "waiting", "taken") if states[one]), "taken")
    if as_json:
        print_json({"run_dir": str(run_dir), "signals": ids, "state": state, "why": "; ".join(whys)})
    else:
        say(f"signals: {len(ids)}; {state}{_because('; '.join(whys))}")
    return STRICT_FAILURE if state in ("refused", "unknown") else DONE
