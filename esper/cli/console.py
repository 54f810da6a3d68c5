"""The rich console for tables and live views. No text is parsed as markup."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from esper.cli.output import printable

NARROWEST = 20
"""Smallest width of the console, in columns. With a width near 0 (COLUMNS=0) rich would show no text."""


WIDE = 160
"""Width of the console in columns, if the output is not a terminal and COLUMNS is not set. With the default of rich, 80
columns, tables would wrap long names."""


class PlainConsole(Console):
    """A console that prints every text literally. It interprets no markup, emoji codes or control sequences."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = WIDE
        if self.width < NARROWEST:
            self.width = NARROWEST

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, but write control characters as escapes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def can_redraw(console: Console) -> bool:
    """Whether the output is a terminal that can redraw lines. False for a file with FORCE_COLOR, and for a terminal
    with TERM=dumb.
    """
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
