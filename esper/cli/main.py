"""The command line: words in, exit codes out. What is done is done elsewhere; errors become one clear line each."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from esper.archive.backup import default_place, take
from esper.archive.history import Damage
from esper.archive.identity import versions
from esper.archive.inspection import inspect_run
from esper.cli import checkpoint_commands, export_commands, inspect_view, log_commands, plan_view
from esper.cli.output import PlainConsole, guarded, hold_standard_descriptors, output_lost, print_json, say
from esper.cli.run_command import (
    complain,
    execute,
    execute_resume,
    in_child,
    leaving_on_sigterm,
    way_to_run,
)
from esper.cli.terminal import Terminal, heading
from esper.config.joined import RunConfig, add_override, as_toml, load_config, parse_overrides
from esper.errors import ConfigError, EsperError, text_of
from esper.flow.replay import prove
from esper.ground import parent
from esper.ground.exit_codes import CHECK_FAILED, DONE, INTERRUPTED, STRICT_FAILURE, WRONG_INPUT
from esper.ground.workplace import fixed, from_here
from esper.setup.forecast import forecast
from esper.setup.survey import survey
from esper.user_code import plugins
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task
from esper.user_code.their_code import any_of_their_code, refused_as_theirs, their_code

DEFAULT_TASK = "esper.tasks.stdlib_text:task"

ONLY_PRINT = frozenset({"plan", "prove", "inspect", "config", "log", "checkpoint"})
"""Commands of esper that make nothing but output. Packages may add commands of another kind."""

HELP = "Neural networks that grow while they train, by a runtime that never hides a failure."

app = typer.Typer(
    name="esper",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "[[faults]]" in a help text is no markup
)

app.add_typer(log_commands.app, name="log")
app.add_typer(checkpoint_commands.app, name="checkpoint")
app.command("export")(export_commands.export_network)

TaskArgument = Annotated[str, typer.Argument(metavar="[TASK]", help="module:attribute or path/to/file.py:attribute")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="run seed; short for --set run.seed=N")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="a TOML file; see `esper config`")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="one config key; may be repeated")
]
NoGrowthOption = Annotated[bool, typer.Option("--no-growth", help="train the host alone; growth.enabled=false")]
InProcessOption = Annotated[bool, typer.Option("--in-process", help="one process, without Ray; the same bits")]
FaultsOption = Annotated[
    Path | None, typer.Option("--faults", help="TOML with [[faults]]: break it on purpose; see docs/faults.md")
]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object, last on standard output")]


def _show_version(asked: bool) -> None:
    if asked:
        here = versions()
        own = here.pop("esper-runtime")
        print(f"esper {own} ({', '.join(f'{name} {version}' for name, version in here.items())})")
        raise typer.Exit


@app.callback(help=HELP)
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show what is installed here")
    ] = False,
) -> None:
    """What can be asked of `esper` without a command."""
    del version  # answered by its callback


@app.command()
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
    launch = way_to_run(in_process=in_process)  # before the task: a project may have packages of our names
    loaded, reference = load_task(task)
    result = execute(launch, loaded, resolved, reference, as_json=as_json)
    if as_json:
        print_json(result.as_json())


@app.command()
def plan(
    task: TaskArgument = DEFAULT_TASK,
    seed: SeedOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run would try and cost, without running it."""
    resolved = _config(config, settings, seed=seed)
    loaded, _ = load_task(task)
    with process_state(resolved.run.threads):
        prospect = survey(loaded, resolved)
        found = forecast(prospect)
    if as_json:
        print_json(found)
        return
    console = PlainConsole()
    for line in heading(prospect, None):
        console.print(line, soft_wrap=True)
    console.print(plan_view.candidates(found))
    for line in plan_view.lines(found):
        console.print(Text(line), soft_wrap=True)


@app.command()
def resume(
    run_dir: RunArgument,
    settings: SetOption = None,
    in_process: InProcessOption = False,
    faults: FaultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run from its last fence: the same bits as if it had never stopped."""
    overrides = parse_overrides(settings or [])
    result = execute_resume(run_dir, overrides, faults, in_process=in_process, as_json=as_json)
    if as_json:
        print_json(result.as_json())


@app.command("snapshot")
def take_snapshot(
    run_dir: RunArgument,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="default: beside RUN, named by fence")] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a run's config, journals and checkpoints to keep, and verify the copy."""
    run_dir = fixed(run_dir).resolve()
    place = to if to is not None else default_place(run_dir)
    fences = [written.fence for written in take(run_dir, place)]
    if as_json:
        print_json({"run_dir": str(run_dir), "snapshot": str(place), "fences": fences})
    else:
        say(f"{place}: checkpoints of fence {', '.join(map(str, fences))}, verified")


@app.command("prove")
def prove_run(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Run a run's config again, undisturbed, and compare every step's loss and every fence's weights."""
    terminal = Terminal(PlainConsole(stderr=as_json))
    try:
        with leaving_on_sigterm():
            proof = prove(run_dir, terminal)
    finally:
        terminal.close()
    if as_json:
        print_json(proof.as_json())
    elif (found := proof.divergence) is None:
        say(f"the same: {proof.steps} losses of {proof.total_steps}, weights at {proof.fences} fences")
    else:
        where = f"step {found.step}" if found.step is not None else f"fence {found.fence}"
        say(f"another {found.what} at {where}: {found.recorded} recorded, {found.repeated} repeated")
    return DONE if proof.divergence is None else CHECK_FAILED


@app.command()
def inspect(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Say where a run stands, also while it goes on, and what of it cannot be read."""
    found = inspect_run(run_dir)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return CHECK_FAILED if found["damaged"] or found["missing_checkpoints"] else DONE


def _show(found: dict[str, Any]) -> None:
    console = PlainConsole()
    console.print(Text(inspect_view.place(found)), soft_wrap=True)
    for part in (inspect_view.losses(found), inspect_view.seeds(found)):
        if part.row_count:
            console.print(part)
    if beaten := inspect_view.beaten(found):
        console.print(Text(beaten), soft_wrap=True)
    for file in found["missing_checkpoints"]:
        console.print(f"{file}: is missing", soft_wrap=True)
    for damage in found["damages"]:
        console.print(str(Damage(**damage)), soft_wrap=True)


@app.command("config")
def show_config(as_json: JsonOption = False) -> None:
    """Print the whole default config as commented TOML."""
    if as_json:
        print_json(RunConfig().model_dump(mode="json"))
    else:
        print(as_toml(RunConfig()), end="")


def main() -> None:
    """Entry point: run the command line and leave with its exit code.

    A run on actors is a child process, whose parent says how it ended if the child could not.
    """
    hold_standard_descriptors()
    words = sys.argv[1:]
    if words[:1] in (["run"], ["resume"]) and "--in-process" not in words:
        with guarded():
            ended = in_child(as_json="--json" in words)
        if ended is not None:
            os._exit(ended)
    with guarded():
        code = _answered(_add_commands) or exit_code(words)
    parent.tell(code=code)
    sys.exit(code)


def exit_code(arguments: list[str]) -> int:
    """Run one command line. Says what went wrong, in one line, on standard error."""
    with guarded(), from_here():
        code = _answered(lambda: typer.main.get_command(app).main(arguments, prog_name="esper", standalone_mode=False))
        return STRICT_FAILURE if code == DONE and _only_prints(arguments) and output_lost() else code


def _only_prints(arguments: list[str]) -> bool:
    """True for a command of `ONLY_PRINT`, and where there is no command but an option, as in `esper --version`."""
    return not arguments or arguments[0].startswith("-") or arguments[0] in ONLY_PRINT


def _add_commands() -> None:
    """Add the commands of installed packages. Raises: TaskError: a package raised."""
    for entry in plugins.entries("esper.commands"):
        with refused_as_theirs(), their_code(f"entry point {entry.name} of esper.commands", entry.value):
            entry.load()(app)


def _answered(do: Callable[[], object]) -> int:
    """The exit code of what is done; what went wrong in it is said."""
    try:
        with any_of_their_code:
            answer = do()
    except typer.exceptions.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer keeps the class to itself; its message is the help
            say(error.format_message(), error=True)
            return WRONG_INPUT
        return complain(error.format_message().replace("Value error, ", ""), WRONG_INPUT)  # pydantic's words
    except ConfigError as error:
        return complain(str(error), WRONG_INPUT)
    except EsperError as error:
        return complain(f"{type(error).__name__}: {error}", STRICT_FAILURE)
    except (KeyboardInterrupt, typer.Abort):
        return complain("interrupted", INTERRUPTED)
    except Exception as error:  # the user's own code, or a bug of ours: where it happened is what helps
        traceback.print_exception(error)
        return complain(f"{type(error).__name__}: {text_of(error)}", STRICT_FAILURE)
    return answer if isinstance(answer, int) else DONE


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
