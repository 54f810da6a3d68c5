"""The entry point of `esper`. It dispatches a command line, prints an error in one line, and returns an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from esper.cli.command_table import COMMANDS, only_prints
from esper.cli.lazy_group import LazyGroup
from esper.cli.output import complain, guarded, hold_standard_descriptors, output_lost, refuse, say
from esper.errors import ConfigError, EsperError, text_of
from esper.ground import parent
from esper.ground.exit_codes import DONE, INTERRUPTED, STRICT_FAILURE, WRONG_INPUT
from esper.ground.installed_versions import versions
from esper.ground.workplace import from_here
from esper.user_code import plugins
from esper.user_code.their_code import any_of_their_code, refused_as_theirs, their_code

HELP = "Neural networks that grow while they train, by a runtime that never hides a failure."

app = typer.Typer(
    name="esper",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "[[faults]]" in a help text is not markup
)


def _show_version(asked: bool) -> None:
    if asked:
        here = versions()
        own = here.pop("esper-runtime")
        print(f"esper {own} ({', '.join(f'{name} {version}' for name, version in here.items())})")
        raise typer.Exit


@app.callback(help=HELP)
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the installed versions")
    ] = False,
) -> None:
    """Options of `esper` without a command."""
    del version  # the callback of this option prints the version


def main() -> None:
    """Entry point: run the command line and exit with its code.

    A run on actors is a child process. If the child process dies without a report, the parent process reports its
    death.
    """
    hold_standard_descriptors()
    words = sys.argv[1:]
    if words[:1] in (["run"], ["resume"]) and "--in-process" not in words:
        from esper.cli.run_command import in_child  # the only import of this file that loads torch

        with guarded():
            ended = in_child(as_json="--json" in words)
        if ended is not None:
            os._exit(ended)
    with guarded(goes_on=not only_prints(words)):
        code = _answered(lambda: _add_commands(words), words) or exit_code(words)
    parent.tell(code=code)
    sys.exit(code)


def exit_code(arguments: list[str]) -> int:
    """Run one command line and return its exit code. An error is printed in one line on standard error. If the command
    line has `--json`, the error is also printed as a JSON object on standard output.
    """
    with guarded(goes_on=not only_prints(arguments)), from_here():
        command = typer.main.get_command(app)
        code = _answered(lambda: command.main(arguments, prog_name="esper", standalone_mode=False), arguments)
        return STRICT_FAILURE if code == DONE and only_prints(arguments) and output_lost() else code


def _add_commands(words: list[str]) -> None:
    """Add the commands of installed packages, unless the command line names a command of esper.

    Raises:
        TaskError: a package raised.
    """
    if words and words[0] in COMMANDS:
        return
    for entry in plugins.entries("esper.commands"):
        with refused_as_theirs(), their_code(f"entry point {entry.name} of esper.commands", entry.value):
            entry.load()(app)


def _setting_of(option: str | None) -> str:
    """Return a hint for an unknown option whose name is the last part of a config key, such as `--epochs`. Return ""
    for other options.
    """
    from esper.config.joined import config_keys  # imported here because only this error needs it

    name = (option or "").lstrip("-").replace("-", "_")
    found = [key for key in config_keys() if name and key.endswith(f".{name}")]
    return f" Give a setting by its key: {' or '.join(f'--set {key}=VALUE' for key in found)}." if found else ""


def _answered(do: Callable[[], object], words: list[str]) -> int:
    """Call `do` and return its exit code. Print an error that it raises."""
    as_json = "--json" in words
    try:
        with any_of_their_code:
            answer = do()
    except typer.exceptions.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a private class of typer, whose message is the help text
            say(error.format_message(), error=True)
            return WRONG_INPUT
        told = error.format_message().replace("Value error, ", "")  # pydantic adds this prefix
        return refuse(error, told + _setting_of(vars(error).get("option_name")), WRONG_INPUT, as_json=as_json)
    except ConfigError as error:
        return refuse(error, str(error), WRONG_INPUT, as_json=as_json)
    except EsperError as error:
        return refuse(error, f"{type(error).__name__}: {error}", STRICT_FAILURE, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return complain("interrupted", INTERRUPTED)
    except Exception as error:  # an error of the user's code or a bug of esper, for which the traceback helps most
        traceback.print_exception(error)
        return refuse(error, f"{type(error).__name__}: {text_of(error)}", STRICT_FAILURE, as_json=as_json)
    return answer if isinstance(answer, int) else DONE
