"""`esper checkpoint`: lists or verifies the checkpoints of a run. It changes nothing and imports no task.

Exit codes: 0 every checkpoint is good; 1 a checkpoint is missing or does not load, or a part of the run cannot be read;
2 the folder has no run.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from esper.archive.history import Remains, committed, look_at
from esper.archive.inspection import missing
from esper.archive.run_directory import checkpoints_folder
from esper.cli.command_table import COMMANDS
from esper.cli.console import PlainConsole
from esper.cli.options import JsonOption, RunArgument
from esper.cli.output import print_json, say
from esper.cli.tables import cells, table

DAMAGED = 1

app = typer.Typer(help=COMMANDS["checkpoint"].help, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_all(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Show the checkpoints from which a run can be resumed, the oldest first."""
    found = look_at(run_dir)
    gone = missing(run_dir, found.commits)
    if as_json:
        _print_json([written.model_dump(mode="json") for written in found.commits], found)
    else:
        shown = table("file", "fence", "step", "generation", "MiB", "written in s")
        for one in found.commits:
            size, seconds = f"{one.length / 2**20:.2f}", f"{one.seconds:.3f}"
            shown.add_row(*cells(one.file, str(one.fence), str(one.step), str(one.generation), size, seconds))
        PlainConsole().print(shown)
        told = [*(f"{file}: is missing" for file in gone), *found.damages]
        say(*told)
    return DAMAGED if found.damaged or gone else 0


@app.command()
def verify(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Check that every checkpoint of a run has the bytes that were written, and loads."""
    from esper.archive.verification import verdicts  # imported here because it loads torch, which `list` does not need

    found = look_at(run_dir)
    checkpoints = [*verdicts(run_dir, found.commits), *_unvouched(run_dir, found)]
    if as_json:
        _print_json(checkpoints, found)
    else:
        for one in checkpoints:
            say(f"{one['file']}: {'ok' if one['ok'] else one['reason']}")
        say(*found.damages)
    return DAMAGED if found.damaged or not all(one["ok"] for one in checkpoints) else 0


def _unvouched(run_dir: Path, found: Remains) -> list[dict[str, Any]]:
    """Return a verdict for each checkpoint file of a damaged run, if no readable record names the file."""
    if not found.damaged:  # in a readable run, a file without a record was not committed
        return []
    named = {written.file for written in committed(found.entries)}
    files = sorted(file.name for file in checkpoints_folder(run_dir).glob("fence-*.pt") if file.name not in named)
    reason = "no valid, readable record describes it"
    return [{"file": file, "fence": None, "ok": False, "reason": reason} for file in files]


def _print_json(checkpoints: list[dict[str, Any]], found: Remains) -> None:
    print_json({"checkpoints": checkpoints, "damages": [asdict(damage) for damage in found.damages]})
