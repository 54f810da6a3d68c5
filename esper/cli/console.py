"""The console of rich on which tables and live views are drawn. No text is parsed as markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from esper.cli.output import printable

NARROWEST = 20
"""Least width of the console, in columns: rich shows nothing in fewer, as with COLUMNS=0."""


class PlainConsole(Console):
    """A console that prints every text literally: no markup, no emoji codes, no control sequences."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if self.width < NARROWEST:
            self.width = NARROWEST

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, with control characters in texts written as escapes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def can_redraw(console: Console) -> bool:
    """True where the output is a terminal that can redraw lines: neither a dumb one nor a file under FORCE_COLOR."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
