"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="one config key; may be repeated")
]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object, last on standard output")]
TaskOfRunOption = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="file.py:name of the run's task; needed if run.json does not name it"),
]
