"""The commands `esper drill list` and `esper drill run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drills.drill import Drill
    from drills.report import Outcome

app = typer.Typer(
    help="Break a run on purpose, and check everything that must follow.", no_args_is_help=True, rich_markup_mode=None
)
LOCAL = "local"
"""Value of `--on`: start a Ray for the drills."""
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object, last on standard output")]


def add(to: typer.Typer) -> None:
    """Add `esper drill` to the command line. The entry point of the group `esper.commands`."""
    to.add_typer(app, name="drill")


@app.command("list")
def list_drills(as_json: JsonOption = False) -> None:
    """List the drills of the catalogue, with those that esper cannot run yet."""
    from drills.catalogue import CATALOGUE
    from esper.cli.output import print_json, say

    if as_json:
        rows = [
            {"number": one.number, "name": one.name, "what": one.what, "place": one.place, "needs": one.needs or None}
            for one in CATALOGUE
        ]
        print_json({"drills": rows})
        return
    width = max(len(one.name) for one in CATALOGUE)
    for one in CATALOGUE:
        say(f"{one.number:2} {one.name:{width}} {f'NEEDS {one.needs}' if one.needs else one.what}")


@app.command("run")
def run_drills(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="names or numbers")] = None,
    every: Annotated[bool, typer.Option("--all", help="every drill that esper can run")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="run seed; default: that of --config, or 0")] = None,
    task: Annotated[str | None, typer.Option("--task", help="drill this task; default: a tiny one")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="a TOML file for --task")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="one config key")] = None,
    file: Annotated[str | None, typer.Option("--file", help="a drill of your own: path/to/file.py:attribute")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="FILE.json, FILE.xml or FILE.html")] = None,
    soak: Annotated[float, typer.Option("--soak", min=0.0, help="seconds of drill 29, the random schedule")] = 60.0,
    episode: Annotated[int | None, typer.Option("--episode", min=0, help="this episode of drill 29 only")] = None,
    on: Annotated[str, typer.Option("--on", metavar="ADDRESS", help="local, or a Ray that runs here")] = LOCAL,
    keep: Annotated[Path | None, typer.Option("--keep", help="folder in which the run directories stay")] = None,
    as_json: JsonOption = False,
) -> int:
    """Run drills. Exit code 1 if any expectation of a drill was not met."""
    from drills.choosing import chosen
    from drills.drill_context import Soak
    from drills.drill_runner import DrillRunner
    from drills.report import as_json as json_of
    from drills.reporting import checked_report, write
    from drills.task_under_drill import TaskUnderDrill
    from esper.cli.output import print_json, say
    from esper.config.joined import parse_overrides
    from esper.ground.exit_codes import CHECK_FAILED, DONE

    checked_report(report)
    drills = chosen(names or [], every=every, file=file)
    given = parse_overrides(settings or [])
    tiny = TaskUnderDrill.tiny
    subject = TaskUnderDrill.named(task, config, given, seed) if task is not None else tiny(seed or 0)
    run_seed = subject.config({}).run.seed
    schedule = Soak(soak, episode or 0, only=episode is not None)
    with DrillRunner(
        subject,
        keep=keep,
        soak=schedule,
        say=lambda told: say(told, error=as_json),
        address=on if on != LOCAL else None,
    ) as runner:
        outcomes = runner.run(drills, lambda outcome: say(line(outcome), error=as_json))
        undisturbed = runner.compared_with
    write(report, outcomes, run_seed, undisturbed)
    if as_json:
        print_json(json_of(outcomes, run_seed, undisturbed))
    else:
        say(total(outcomes))
    return DONE if all(outcome.passed for outcome in outcomes) else CHECK_FAILED


def line(outcome: Outcome) -> str:
    """Return one outcome in a line."""
    number = f"{outcome.drill.number:2} " if outcome.drill.number else ""
    word = "passed" if outcome.passed else "FAILED"
    return f"{number}{outcome.drill.name}: {word} in {outcome.wall_s:.1f} s{': ' * bool(outcome.why)}{outcome.why}"


def total(outcomes: Sequence[Outcome]) -> str:
    """Return the number of drills that passed, and the names of those that failed."""
    failed: list[Drill] = [outcome.drill for outcome in outcomes if not outcome.passed]
    names = f"; failed: {', '.join(one.name for one in failed)}" if failed else ""
    return f"{len(outcomes) - len(failed)} of {len(outcomes)} drills passed{names}"
