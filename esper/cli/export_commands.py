"""`esper export`: writes the grown network of a run as a file. The run is only read; no file is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esper.cli.options import JsonOption, RunArgument, TaskOfRunOption
from esper.cli.output import print_json
from esper.cli.run_command import leaving_on_sigterm
from esper.export import exporting
from esper.export.exporting import Format

FormatOption = Annotated[
    Format,
    typer.Option(
        "--format", help="torch: a state dict and a Python file that needs no esper; export: torch.export; onnx"
    ),
]
ToOption = Annotated[
    Path | None, typer.Option("--to", metavar="DIR|FILE", help="a folder for torch, else a file; default: beside RUN")
]
FenceOption = Annotated[int | None, typer.Option("--fence", help="a fence with a checkpoint; default: the last fence")]
GenerationOption = Annotated[
    int | None,
    typer.Option(
        "--generation",
        help="the last checkpoint of this generation; each resume or restart of the run begins a new one, from 1",
    ),
]


def export_network(
    run_dir: RunArgument,
    format: FormatOption = Format.TORCH,
    to: ToOption = None,
    fence: FenceOption = None,
    generation: GenerationOption = None,
    task: TaskOfRunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the grown network to a file that needs no esper."""
    with leaving_on_sigterm():
        written = exporting.export_network(run_dir, format, to, task=task, fence=fence, generation=generation)
    files = [str(file) for file in written.files]
    if as_json:
        print_json(
            {
                "run_dir": str(run_dir),
                "format": str(format),
                "fence": written.fence,
                "seeds": written.seeds,
                "files": files,
            }
        )
    else:
        print(*files, sep="\n")
