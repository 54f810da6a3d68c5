"""The table of the commands of `esper`, with module, help text and flags of each. It imports no command.

`esper --help` prints this table. Only the command on the command line is imported.
"""

from __future__ import annotations

from typing import NamedTuple


class CommandSpec(NamedTuple):
    """One row of the table. It describes a command without loading its module."""

    place: str
    """`module:attribute` of its function, or of the typer app that has its sub-commands."""
    help: str
    only_prints: bool = False
    """True if printing is the only effect of the command. The command then fails if its output cannot be written."""
    loads_task: bool = False
    """True if the command runs code of the user. `PYTHONHASHSEED` is then set first (docs/adr/0007-hash-seed.md)."""


COMMANDS: dict[str, CommandSpec] = {
    "run": CommandSpec(
        "esper.cli.task_commands:run",
        "Train a network and let it grow: on Ray actors, or in this process.",
        loads_task=True,
    ),
    "plan": CommandSpec(
        "esper.cli.task_commands:plan",
        "Print what a run would try and cost, without running it.",
        only_prints=True,
        loads_task=True,
    ),
    "resume": CommandSpec(
        "esper.cli.task_commands:resume",
        "Resume a run from its last fence, with the same bits as if it had never stopped.",
        loads_task=True,
    ),
    "snapshot": CommandSpec(
        "esper.cli.snapshot_command:snapshot",
        "Copy a run's config, journals and checkpoints, and verify the copy.",
    ),
    "prove": CommandSpec(
        "esper.cli.task_commands:prove",
        "Run a run's config again, undisturbed, and compare every step's loss and every fence's weights.",
        only_prints=True,
        loads_task=True,
    ),
    "inspect": CommandSpec(
        "esper.cli.inspect_command:inspect",
        "Show the state of a run, which may be in progress, and which parts of it cannot be read.",
        only_prints=True,
    ),
    "signal": CommandSpec(
        "esper.cli.emergency_commands:signal",
        "Send an emergency signal to a run: HALT stops it at the next step.",
    ),
    "queue": CommandSpec(
        "esper.cli.emergency_commands:app", "List, retry or drop the emergency signals that wait in a run's queue."
    ),
    "trace": CommandSpec(
        "esper.cli.trace_commands:app",
        "List, show, search, export or check the traces of a run, which may be in progress.",
        only_prints=True,
    ),
    "events": CommandSpec(
        "esper.cli.events_command:events",
        "Show the severe events of a run, the newest last.",
        only_prints=True,
    ),
    "config": CommandSpec(
        "esper.cli.config_command:config", "Print the whole default config as commented TOML.", only_prints=True
    ),
    "export": CommandSpec(
        "esper.cli.export_commands:export_network",
        "Write the grown network to a file that needs no esper.",
        loads_task=True,
    ),
    "log": CommandSpec("esper.cli.log_commands:app", "Read framed logs, such as those of a run.", only_prints=True),
    "checkpoint": CommandSpec(
        "esper.cli.checkpoint_commands:app", "List or verify the checkpoints of a run.", only_prints=True
    ),
}
"""The commands, in the order of the help. Installed packages may add commands; see `esper.user_code.plugins`."""


def only_prints(words: list[str]) -> bool:
    """Return whether printing is the only effect of a command line. Return True also for options without a command
    (`--version`).
    """
    if not words or words[0].startswith("-"):
        return True
    return words[0] in COMMANDS and COMMANDS[words[0]].only_prints


def may_load_task(words: list[str]) -> bool:
    """Return whether a command line may run code of the user. True for the command of a package, because its effects
    are unknown."""
    name = next((word for word in words if not word.startswith("-")), None)  # `esper -- run` is the command `run`, too
    return name is not None and (name not in COMMANDS or COMMANDS[name].loads_task)
