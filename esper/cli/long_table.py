"""A table of many rows. Rich needs half a millisecond for a row of its own tables, and this one needs some
microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from esper.cli.output import printable

GAP = "  "


class LongTable:
    """A table that looks like those of `esper.cli.tables`. One column wraps, so that no text is cut off. If the other
    columns leave it too little width, each row is a block with a line for each cell.
    """

    def __init__(self, *headers: str, wraps: str) -> None:
        """Args: wraps: Header of the column that wraps on a narrow terminal."""
        self._wraps = headers.index(wraps)
        self._rows: list[tuple[Sequence[str], str]] = [(headers, "table.header")]

    def add_row(self, *texts: str, style: str = "") -> None:
        """Add a row. Control characters become escapes. No text is parsed as markup."""
        self._rows.append(([printable(text) for text in texts], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render as rich asks for it."""
        widths = self._widths(options.max_width)
        if len(" ") + sum(widths) + len(GAP) * (len(widths) - 1) > options.max_width:
            yield from self._blocks(console, options.max_width)
            return
        styles = {name: console.get_style(name) for _, name in self._rows if name}
        line, head = Segment.line(), Segment(" " + "─" * (sum(widths) + len(GAP) * (len(widths) - 1)))
        for number, (texts, style) in enumerate(self._rows):
            for part in self._parts(texts, widths, console):
                yield Segment(part, styles.get(style))
                yield line
            if not number:
                yield head
                yield line

    def _blocks(self, console: Console, width: int) -> RenderResult:
        """Render each row as lines `header: text`, which wrap. Empty cells are left out."""
        (headers, _), *rows = self._rows
        for number, (texts, name) in enumerate(rows):
            style = console.get_style(name) if name else None
            if number:
                yield Segment.line()
            for header, text in zip(headers, texts, strict=True):
                for part in Text(f"{header}: {text}").wrap(console, width, overflow="fold") if text else ():
                    yield Segment(part.plain.rstrip(), style)
                    yield Segment.line()

    def _widths(self, most: int) -> list[int]:
        """Return the width of each column. The column that wraps gets what the others leave, at least its header."""
        widths = [max(map(cell_len, column)) for column in zip(*(texts for texts, _ in self._rows), strict=True)]
        others = sum(widths) - widths[self._wraps] + len(GAP) * len(widths)
        header = cell_len(self._rows[0][0][self._wraps])
        widths[self._wraps] = max(header, min(widths[self._wraps], most - others))
        return widths

    def _parts(self, texts: Sequence[str], widths: Sequence[int], console: Console) -> list[str]:
        """Return the lines of one row."""
        if cell_len(texts[self._wraps]) <= widths[self._wraps]:
            return [_padded(texts, widths)]
        wrapped = Text(texts[self._wraps]).wrap(console, widths[self._wraps], overflow="fold")
        parts = []
        for place, part in enumerate(wrapped):
            cells = list(texts) if place == 0 else [""] * len(texts)
            cells[self._wraps] = part.plain
            parts.append(_padded(cells, widths))
        return parts


def _padded(texts: Sequence[str], widths: Sequence[int]) -> str:
    return (" " + GAP.join(map(set_cell_size, texts, widths))).rstrip()
