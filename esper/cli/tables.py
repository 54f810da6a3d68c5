"""Tables whose cells wrap on a narrow terminal, so that no text is cut off."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from esper.cli.output import printable


def table(*headers: str, figures: Sequence[str] = (), title: str | None = None, caption: str | None = None) -> Table:
    """Return a table with a line under its headers.

    Args:
        figures: Headers of columns that never wrap, because their cells have numbers or short words.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", caption=caption)
    made.caption_justify = "left"
    for header in headers:
        made.add_column(header, overflow="fold", no_wrap=header in figures, min_width=len(header))
    return made


def grid() -> Table:
    """Return a table of two columns, name and text, without headers."""
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    return made


def cells(*texts: str) -> list[Text]:
    """Return texts as cells that are not parsed as markup.

    Control characters become escapes here, so that the width of the cell is that of the printed text.
    """
    return [Text(printable(text)) for text in texts]
