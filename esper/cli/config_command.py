"""`esper config`: prints the default config."""

from __future__ import annotations

from esper.cli.options import JsonOption
from esper.cli.output import print_json
from esper.config.joined import RunConfig, as_toml


def config(as_json: JsonOption = False) -> None:
    """Print every key of the config with its default and its description."""
    if as_json:
        print_json(RunConfig().model_dump(mode="json"))
    else:
        print(as_toml(RunConfig()), end="")
