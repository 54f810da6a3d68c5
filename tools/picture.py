"""Draws docs/run.svg by `python tools/picture.py`. It shows a terminal after a real run of the default task."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from esper import run
from esper.cli.task_commands import DEFAULT_TASK
from esper.cli.terminal import Terminal
from esper.config.joined import load_config
from esper.user_code.task_reference import load_task

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "run.svg"


def main() -> None:
    """Run the default task as `esper run` does. Save the printed lines and the last frame of the live view."""
    console = Console(record=True, file=io.StringIO(), width=124)  # not a terminal: one frame is printed
    task, reference = load_task(DEFAULT_TASK)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        console.print("[bold]$ esper run --run-dir runs/first[/bold]")
        config = load_config(None, {"run.dir": "runs/first"})
        run(task, config, reference=reference, progress=Terminal(console, live=True))
    console.save_svg(str(PICTURE), title="esper", theme=MONOKAI)


if __name__ == "__main__":
    main()
