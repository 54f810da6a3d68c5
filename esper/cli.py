"""The command line: words in, exit codes out. What is done is done elsewhere; errors become one clear line each.

Exit codes: 0 done; 1 a check failed; 2 wrong input; 3 strict failure; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from esper.config import RunConfig, as_toml, load_config, parse_override
from esper.durable.log import LoadError, iterate
from esper.errors import ConfigError, EsperError
from esper.forecast import forecast
from esper.inspection import inspect_run
from esper.journal import Entry, Kind, read
from esper.loop import GENERATION, torch_threads
from esper.loop import run as run_loop
from esper.progress import Terminal, heading
from esper.prospect import survey
from esper.references import load_task
from esper.run_directory import journal_file
from esper.summary import failure

DEFAULT_TASK = "esper.tasks.stdlib_text:task"
DONE, CHECK_FAILED, WRONG_INPUT, STRICT_FAILURE, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="esper",
    help="Neural networks that grow while they train, by a runtime that never hides a failure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
log_app = typer.Typer(help="Read the framed logs of a run.", no_args_is_help=True)
app.add_typer(log_app, name="log")

TaskArgument = Annotated[str, typer.Argument(metavar="[TASK]", help="module:attribute or path/to/file.py:attribute")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="run seed; short for --set run.seed=N")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="a TOML file; see `esper config`")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="one config key; may be repeated")
]
NoGrowthOption = Annotated[bool, typer.Option("--no-growth", help="train the host alone; growth.enabled=false")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object, last on standard output")]


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
    in_process: Annotated[
        bool, typer.Option("--in-process", help="one process, without Ray (for now always so)")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train a network and let it grow."""
    del in_process  # there is no other way yet
    console = Console(stderr=as_json)
    resolved = _config(config, settings, seed=seed, no_growth=no_growth, run_dir=run_dir)
    loaded, reference = load_task(task)
    terminal = Terminal(console)
    try:
        result = run_loop(loaded, resolved, reference=reference, progress=terminal)
    except ConfigError:
        raise
    except KeyboardInterrupt as interrupt:
        terminal.close()
        kept = f"; its journal is kept: esper inspect {terminal.path}" if terminal.path is not None else ""
        raise typer.Exit(_complain(f"interrupted{kept}", INTERRUPTED)) from interrupt
    except Exception as error:
        terminal.close()
        _say_failure(error, terminal.path, as_json=as_json)
        raise typer.Exit(STRICT_FAILURE) from error
    finally:
        terminal.close()
    if as_json:
        _print_json(result.as_json())


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
    with torch_threads(resolved.run.threads):
        prospect = survey(loaded, resolved)
        found = forecast(prospect)
    if as_json:
        _print_json(found)
        return
    console = Console()
    for line in heading(prospect, None):
        console.print(line, soft_wrap=True)
    table = Table("slot", "blueprint", "parameters", "cost / host", "risk", "first tournament")
    for row in found["candidates"]:
        chosen = "yes" if row["in_first_tournament"] else ""
        cost = f"{row['cost_ratio']:.2f}"
        table.add_row(row["slot"], row["blueprint"], f"{row['parameters']:,}", cost, f"{row['risk']:.2f}", chosen)
    console.print(table)
    window = found["germinates_at_fences"]
    console.print(f"germinates at fences {window[0]} to {window[1]}" if window else "nothing can germinate in this run")
    console.print(
        f"modelled: host {found['host_gflops']:.2f} GFLOP, twin {found['twin_gflops']:.2f} GFLOP, first tournament"
        f" {found['tournament_gflops']:.2f} GFLOP and {found['tournament_bytes'] / 2**20:.2f} MiB of weights, gradients"
        " and moments",
        soft_wrap=True,
    )


@app.command()
def inspect(run_dir: RunArgument, as_json: JsonOption = False) -> None:
    """Say where a run stands, also while it goes on."""
    found = inspect_run(run_dir)
    if as_json:
        _print_json(found)
        return
    console = Console()
    loss = found["train_loss"]
    console.print(
        f"{found['run_dir']}: {found['state']}, fence {found['fence']}, step {found['steps']}/{found['total_steps']}"
        + (f", loss {loss:.4f}" if loss is not None else "")
    )
    table = Table("seed", "slot", "blueprint", "stage", "gain", "z")
    for seed in found["seeds"]:
        gain, z = seed["gain"], seed["z"]
        figures = ("", "") if gain is None else (f"{gain:+.2%}", f"{z:+.1f}")
        table.add_row(seed["seed_id"][:8], seed["slot"], seed["blueprint"], seed["stage"], *figures)
    console.print(table)


@app.command("config")
def show_config(as_json: JsonOption = False) -> None:
    """Print the whole default config as commented TOML."""
    if as_json:
        _print_json(RunConfig().model_dump(mode="json"))
    else:
        print(as_toml(RunConfig()), end="")


@log_app.command("dump")
def log_dump(
    path: Annotated[Path, typer.Argument(help="a framed log", exists=True, dir_okay=False)], as_json: JsonOption = False
) -> None:
    """Print every record of a framed log, and every place that cannot be read."""
    frames, damaged = [], []
    for found in iterate(path):
        if isinstance(found, LoadError):
            damaged.append({"offset": found.offset, "length": found.length, "reason": found.reason})
            print(f"{found.offset:>10} damaged, {found.length} bytes: {found.reason}", file=sys.stderr)
            continue
        row = {"offset": found.offset, "sequence": found.sequence, "kind": found.kind, "payload": _text(found.payload)}
        frames.append(row)
        if not as_json:
            print(f"{found.offset:>10} #{found.sequence:<6} kind {found.kind:<3} {json.dumps(row['payload'])}")
    if as_json:
        _print_json({"path": str(path), "frames": frames, "errors": damaged})


def main() -> None:
    """Entry point: run the command line and leave with its exit code."""
    sys.path.insert(0, str(Path.cwd()))  # `module:attribute` means a module here, as under `python -m`
    for entry in entry_points(group="esper.commands"):
        entry.load()(app)
    sys.exit(exit_code(sys.argv[1:]))


def exit_code(arguments: list[str]) -> int:
    """Run one command line. Says what went wrong, in one line, on standard error."""
    try:
        answer = typer.main.get_command(app).main(arguments, prog_name="esper", standalone_mode=False)
    except typer.exceptions.TyperException as error:
        return _complain(error.format_message(), WRONG_INPUT)
    except ConfigError as error:
        return _complain(str(error), WRONG_INPUT)
    except EsperError as error:
        return _complain(f"{type(error).__name__}: {error}", STRICT_FAILURE)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:  # the user's own code, or a bug of ours: where it happened is what helps
        traceback.print_exception(error)
        return _complain(f"{type(error).__name__}: {error}", STRICT_FAILURE)
    return answer if isinstance(answer, int) else DONE


def _complain(text: str, code: int) -> int:
    if text:  # a command without arguments has shown its help and says no more
        print(f"esper: {' '.join(text.split())}", file=sys.stderr)
    return code


def _config(
    file: Path | None,
    settings: list[str] | None,
    *,
    seed: int | None = None,
    no_growth: bool = False,
    run_dir: Path | None = None,
) -> RunConfig:
    overrides = dict(parse_override(text) for text in settings or [])
    if seed is not None:
        overrides["run.seed"] = seed
    if no_growth:
        overrides["growth.enabled"] = False
    if run_dir is not None:
        overrides["run.dir"] = str(run_dir)
    return load_config(file, overrides)


def _say_failure(error: Exception, run_dir: Path | None, *, as_json: bool) -> None:
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
    if not isinstance(error, EsperError):  # the user's own code: its traceback is what helps
        traceback.print_exception(error)
    for name, value in told.items():
        if value:
            print(f"{name}: {value}", file=sys.stderr)
    if as_json:
        _print_json(told)


def _last_failure(run_dir: Path | None) -> Entry | None:
    if run_dir is None:
        return None
    entries, _ = read(journal_file(run_dir, GENERATION))
    return next((entry for entry in reversed(entries) if entry.kind is Kind.RUN_FAILED), None)


def _text(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:  # not JSON: shown as hex, which loses nothing
        return payload.hex()


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found))
