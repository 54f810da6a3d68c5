"""`esper inspect`: shows the state of a run. It changes nothing and imports no task."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from esper.archive.damage import Damage
from esper.archive.inspection import inspect_run
from esper.cli import inspect_view
from esper.cli.console import PlainConsole
from esper.cli.options import JsonOption, RunArgument
from esper.cli.output import print_json
from esper.ground.exit_codes import CHECK_FAILED, DONE


def inspect(run_dir: RunArgument, as_json: JsonOption = False) -> int:
    """Print the state of a run. Return `CHECK_FAILED` if a part of it is missing or unreadable."""
    found = inspect_run(run_dir)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return CHECK_FAILED if found["damaged"] or found["missing_checkpoints"] else DONE


def _show(found: dict[str, Any]) -> None:
    console = PlainConsole()
    console.print(Text(inspect_view.place(found)), soft_wrap=True)
    for part in (inspect_view.losses(found), inspect_view.seeds(found), inspect_view.judged(found)):
        if part.row_count:
            console.print(part)
    if beaten := inspect_view.beaten(found):
        console.print(Text(beaten), soft_wrap=True)
    for file in found["missing_checkpoints"]:
        console.print(f"{file}: is missing", soft_wrap=True)
    for file in found["quarantined_checkpoints"]:
        console.print(f"{file}: did not load; it was moved to checkpoints/quarantine", soft_wrap=True)
    for damage in found["damages"]:
        console.print(str(Damage(**damage)), soft_wrap=True)
