"""`esper checkpoint`: shows a run's checkpoints and whether they load. It changes nothing and imports no task.

Exit codes: 0 all load; 1 one does not; 2 no run there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from esper.execution import print_json
from esper.history import read_past
from esper.run_directory import checkpoints_folder
from esper.tolaria.checkpoint import verify_all

DAMAGED = 1

app = typer.Typer(help="Look at the checkpoints of a run.", no_args_is_help=True)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object, last on standard output")]


@app.command("list")
def list_all(run_dir: RunArgument, as_json: JsonOption = False) -> None:
    """Show the checkpoints that a run could go on from, oldest first."""
    commits = read_past(run_dir).commits
    if as_json:
        print_json({"checkpoints": [written.model_dump(mode="json") for written in commits]})
        return
    table = Table("file", "fence", "step", "generation", "MiB", "written in s")
    for one in commits:
        size, seconds = f"{one.length / 2**20:.2f}", f"{one.seconds:.3f}"
        table.add_row(one.file, str(one.fence), str(one.step), str(one.generation), size, seconds)
    Console().print(table)


@app.command()
def verify(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Check that every checkpoint of a run is to the bit what was written, and loads."""
    found: list[dict[str, Any]] = verify_all(checkpoints_folder(run_dir), read_past(run_dir).commits)
    if as_json:
        print_json({"checkpoints": found})
    else:
        for one in found:
            print(f"{one['file']}: {'ok' if one['ok'] else one['reason']}")
    return 0 if all(one["ok"] for one in found) else DAMAGED
