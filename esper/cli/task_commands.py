"""The commands that run the code of a task: run, plan, resume, prove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from esper.archive.history import read_past
from esper.archive.resuming import task_for
from esper.cli import null_view, plan_view
from esper.cli.console import PlainConsole
from esper.cli.options import JsonOption, RunArgument, SetOption, TaskOfRunOption
from esper.cli.output import print_json, say
from esper.cli.run_command import execute, execute_resume, leaving_on_sigterm, place_of_run
from esper.cli.terminal import Terminal, heading
from esper.config.joined import RunConfig, add_override, load_config, parse_overrides
from esper.errors import ConfigError
from esper.flow.proof import prove as repeat
from esper.ground.exit_codes import CHECK_FAILED, DONE
from esper.setup.forecast import forecast
from esper.setup.null_trial import null_trial
from esper.setup.survey import Survey, survey_of
from esper.tolaria.compiling import announced
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import given_task, load_task

TOURNAMENTS = 20
"""Number of tournaments of `--null`, if neither `--tournaments` nor `--runs` is given."""
DEFAULT_TASK = "esper.tasks.stdlib_text:task"

TaskArgument = Annotated[str, typer.Argument(metavar="[TASK]", help="module:attribute or path/to/file.py:attribute")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="run seed; short for --set run.seed=N")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="a TOML file; see `esper config`")]
NoGrowthOption = Annotated[bool, typer.Option("--no-growth", help="train the host alone; growth.enabled=false")]
InProcessOption = Annotated[bool, typer.Option("--in-process", help="one process, without Ray; the same bits")]
NullOption = Annotated[
    bool, typer.Option("--null", help="hold tournaments of useless seeds, and tell the share that G2 accepts")
]
TournamentsOption = Annotated[
    int | None,
    typer.Option("--tournaments", min=1, metavar="N", help=f"number of tournaments of --null; default: {TOURNAMENTS}"),
]
RunsOption = Annotated[
    int | None,
    typer.Option("--runs", min=1, metavar="N", help="instead: N runs of --null, each with all tournaments of a run"),
]
FaultsOption = Annotated[
    Path | None, typer.Option("--faults", help="TOML with [[faults]]: break it on purpose; see docs/faults.md")
]


def run(
    task: TaskArgument = DEFAULT_TASK,
    seed: SeedOption = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="absent or empty; default: new, under runs/")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    no_growth: NoGrowthOption = False,
    in_process: InProcessOption = False,
    faults: FaultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network and let it grow: on Ray actors, or in this process."""
    resolved = _config(config, settings, seed=seed, no_growth=no_growth, run_dir=run_dir, faults=faults)
    on = place_of_run(in_process=in_process)
    loaded, reference = load_task(task)
    result = execute(on, loaded, resolved, reference, as_json=as_json)
    if as_json:
        print_json(result.as_json())


def plan(
    task: TaskArgument = DEFAULT_TASK,
    seed: SeedOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    null: NullOption = False,
    tournaments: TournamentsOption = None,
    runs: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a run would try and cost, without running it."""
    _check_counts(tournaments, runs, null=null)
    resolved = _config(config, settings, seed=seed)
    loaded, _ = load_task(task)
    if resolved.run.compile:
        say(announced(resolved.run.compile_backend), error=True)
    with process_state(resolved.run.threads):
        survey = survey_of(loaded, resolved)
        if null:
            _null(survey, tournaments, runs, as_json=as_json)
            return
        found = forecast(survey)
    if as_json:
        print_json(found)
        return
    console = PlainConsole()
    for line in heading(survey, None):
        console.print(line, soft_wrap=True)
    console.print(plan_view.candidates(found))
    for line in plan_view.lines(found):
        console.print(Text(line), soft_wrap=True)


def resume(
    run_dir: RunArgument,
    settings: SetOption = None,
    in_process: InProcessOption = False,
    faults: FaultsOption = None,
    task: TaskOfRunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Resume a run from its last fence, with the same bits as if it had never stopped."""
    overrides = parse_overrides(settings or [])
    result = execute_resume(run_dir, task, overrides, faults, in_process=in_process, as_json=as_json)
    if as_json:
        print_json(result.as_json())


def prove(
    run_dir: RunArgument,
    task: TaskOfRunOption = None,
    null: NullOption = False,
    tournaments: TournamentsOption = None,
    runs: RunsOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run a run's config again, undisturbed, and compare every step's loss and every fence's weights."""
    _check_counts(tournaments, runs, null=null)
    if null:
        identity = read_past(run_dir).identity
        config = identity.config
        loaded, _ = task_for(identity, given_task(task)[0] if task is not None else None)
        with process_state(config.run.threads):
            _null(survey_of(loaded, config), tournaments, runs, as_json=as_json)
        return DONE
    terminal = Terminal(PlainConsole(stderr=as_json))
    try:
        with leaving_on_sigterm():
            proof = repeat(run_dir, task, progress=terminal)
    finally:
        terminal.close()
    if as_json:
        print_json(proof.as_json())
    elif (found := proof.divergence) is None:
        ends = f", and the network of the run: {proof.network}" if proof.network is not None else ""
        say(f"the same: {proof.steps} losses of {proof.total_steps}, weights at {proof.fences} fences{ends}")
    else:
        where = f"step {found.step}" if found.step is not None else f"fence {found.fence}"
        say(f"another {found.what} at {where}: {found.recorded} recorded, {found.repeated} repeated")
    return DONE if proof.divergence is None else CHECK_FAILED


def _check_counts(tournaments: int | None, runs: int | None, *, null: bool) -> None:
    """Check the options that belong to `--null`. Raises: ConfigError: they have no effect, or exclude each other."""
    for name, count in (("--tournaments", tournaments), ("--runs", runs)):
        if count is not None and not null:
            raise ConfigError(name, count, "it has an effect only with --null; give --null, too, or leave it out")
    if tournaments is not None and runs is not None:
        raise ConfigError("--runs", runs, f"it takes the place of --tournaments {tournaments}; give only one of them")


def _null(survey: Survey, tournaments: int | None, runs: int | None, *, as_json: bool) -> None:
    """Hold tournaments of useless seeds, and print the share that G2 accepts."""
    count = runs or tournaments or TOURNAMENTS
    found = null_trial(survey, count, lambda one: say(null_view.line(one), error=True), whole=runs is not None)
    if as_json:
        print_json(found.as_json())
    else:
        say(null_view.summary(found))


def _config(
    file: Path | None,
    settings: list[str] | None,
    *,
    seed: int | None = None,
    no_growth: bool = False,
    run_dir: Path | None = None,
    faults: Path | None = None,
) -> RunConfig:
    overrides = parse_overrides(settings or [])
    if seed is not None:
        add_override(overrides, "run.seed", seed)
    if no_growth:
        add_override(overrides, "growth.enabled", False)
    if run_dir is not None:
        add_override(overrides, "run.dir", str(run_dir))
    return load_config(file, overrides, faults)
