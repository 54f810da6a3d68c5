"""Parses the expression of a path of spans, such as `esper round > gate evaluate[role=kasmina]@gate_failure`.

    path   = step, then any number of: ">" step (a child) or ">>" step (a child, or a span below it)
    step   = the name of a span, or * for any name, then any number of conditions:
             [key=value]   an attribute; role, ended (true or false) and status are known of every span
             !  or !Class  the span failed; it failed with an error of this class
             @event        the span has an event of this name

A value in double quotes may have any characters; \\" and \\\\ are a quote and a backslash.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from esper.errors import ConfigError

_PART = re.compile(
    r'\s*(?:(?P<arrow>>>?)|\[\s*(?P<key>[^\]=\[>"]+?)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\]"]*?)\s*\]'
    r'|!(?P<error>\w*)|@(?P<event>[\w.]+)|(?P<name>[^>\[\]!@"=]+))'
)
HELP = "write NAME > NAME >> NAME, each NAME with [key=value], !, !Class or @event (docs/traces.md)"


@dataclass(frozen=True)
class Step:
    """The conditions of one span of a path."""

    name: str
    """"*": any name."""
    below: bool = False
    """True: any span below the one before it. False: a child of it; for the first step of a path, any span."""
    attributes: tuple[tuple[str, str], ...] = ()
    error: str | None = None
    """Class of the error. "": any error. None: no condition."""
    events: tuple[str, ...] = ()

    def __str__(self) -> str:
        pairs = "".join(f"[{key}={value}]" for key, value in self.attributes)
        error = f"!{self.error}" if self.error is not None else ""
        return f"{self.name}{pairs}{error}{''.join(f'@{event}' for event in self.events)}"


def parse(expression: str) -> tuple[Step, ...]:
    """Return the steps of a path, the outermost first.

    Raises:
        ConfigError: the expression is not a path.
    """
    steps: list[dict[str, Any]] = []
    at, below, wanted = 0, False, True
    while at < len(expression.rstrip()):
        part = _PART.match(expression, at)
        if part is None:
            raise ConfigError("PATH", expression, f"character {at + 1} is not expected; {HELP}")
        kind, text = part.lastgroup, part[part.lastgroup or 0]
        if wanted != (kind == "name"):
            what = "a name is expected" if wanted else "a condition, > or >> is expected"
            raise ConfigError("PATH", expression, f"{what} at character {at + 1}; {HELP}")
        if kind == "name":
            steps.append({"name": text.strip(), "below": below, "attributes": (), "events": ()})
            wanted = False
        elif kind == "arrow":
            below, wanted = text == ">>", True
        elif kind == "value":
            steps[-1]["attributes"] += ((part["key"], _unquoted(text, expression)),)
        elif kind == "event":
            steps[-1]["events"] += (text,)
        else:
            steps[-1]["error"] = text
        at = part.end()
    if wanted:
        raise ConfigError("PATH", expression, f"a name is expected at the end; {HELP}")
    return tuple(Step(**step) for step in steps)


def _unquoted(text: str, expression: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise ConfigError("PATH", expression, f"{text} is not a quoted text; {HELP}") from error
