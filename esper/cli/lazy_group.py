"""The group of all commands for typer. A command's module is loaded when the command line names it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from esper.cli.command_table import COMMANDS, CommandSpec

if TYPE_CHECKING:
    from typer import _click


class Unloaded(TyperCommand):
    """A placeholder in the list of commands. It has a name and a help text, and cannot run."""

    def __init__(self, name: str, spec: CommandSpec) -> None:
        super().__init__(name=name, help=spec.help)
        self._spec = spec

    def load(self) -> _click.Command:
        """Import the module of the command and return the command."""
        module, _, attribute = self._spec.place.partition(":")
        found: Any = getattr(import_module(module), attribute)  # Any: a function of any arguments, or an app
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
            found.command(self.name, help=self._spec.help)(function)
        command = typer.main.get_command(found)
        command.name = self.name
        return command


class LazyGroup(TyperGroup):
    """The commands of `COMMANDS`, followed by the commands that packages added under other names."""

    def __init__(self, **attributes: Any) -> None:  # Any: the attributes of TyperGroup
        super().__init__(**attributes)
        added = dict(self.commands)
        self.commands = {name: Unloaded(name, spec) for name, spec in COMMANDS.items()}
        self.commands.update((name, command) for name, command in added.items() if name not in COMMANDS)

    def resolve_command(
        self, ctx: _click.Context, args: list[str]
    ) -> tuple[str | None, _click.Command | None, list[str]]:
        """Return the name, the loaded command, and the words after it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Unloaded) else command, rest
