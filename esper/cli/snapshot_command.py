"""`esper snapshot`: copies the files that are needed to resume a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esper.archive.backup import default_place, take
from esper.cli.options import JsonOption, RunArgument
from esper.cli.output import print_json, say
from esper.ground.workplace import fixed


def snapshot(
    run_dir: RunArgument,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="default: beside RUN, named by fence")] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a run to a new folder, and verify the copy."""
    run_dir = fixed(run_dir).resolve()
    place = to if to is not None else default_place(run_dir)
    fences = [written.fence for written in take(run_dir, place)]
    if as_json:
        print_json({"run_dir": str(run_dir), "snapshot": str(place), "fences": fences})
    else:
        say(f"{place}: checkpoints of fence {', '.join(map(str, fences))}, verified")
