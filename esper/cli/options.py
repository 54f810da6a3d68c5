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
