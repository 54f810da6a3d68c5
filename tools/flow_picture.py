"""Draws docs/flow.svg by `python tools/flow_picture.py`.

The picture shows the calls of two rounds of a real tiny run, in order. Every call of the line to a component, to the
journal and to the checkpoints is recorded. One round ends at the first fence at which a tournament begins. The other
round ends at the first fence at which a tournament is concluded.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from esper import run
from esper.flow import runner
from esper.flow.line import Line
from esper.testing import tiny_config, tiny_task

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "flow.svg"
T = TypeVar("T")

COMPONENTS = {
    "trainer": "Tolaria",
    "incubator": "incubation",
    "kasmina": "Kasmina's registry",
    "tamiyo": "Tamiyo",
    "inbox": "emergency queue",
    "journal": "journal",
    "checkpoints": "checkpoints",
}
"""Attribute of the line or of its components -> name of the column."""
COLUMN, ROW, MARGIN = 150, 19, 90


@dataclass(frozen=True)
class Call:
    """One call of the line: a key of `COMPONENTS`, and the method."""

    component: str
    method: str


@dataclass
class Recording:
    """Records the calls of a run in their order."""

    calls: list[Call] = field(default_factory=list)
    within: bool = False
    """True while a recorded call runs. Calls that it makes are not recorded."""
    thread: int = field(default_factory=threading.get_ident)
    """Id of the line's thread. Calls of other threads are not recorded, for example of the thread that ends a save."""

    def listen(self, component: str, called: T) -> T:
        """Record each later call of a public method of `called`. Return `called`."""
        for name in dir(type(called)):
            if not name.startswith("_") and callable(getattr(type(called), name)):
                object.__setattr__(called, name, self._recorded(Call(component, name), getattr(called, name)))
        return called

    def _recorded(self, call: Call, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def recorded(*given: Any, **named: Any) -> Any:
            if self.within or threading.get_ident() != self.thread:
                return method(*given, **named)
            self.calls.append(call)
            self.within = True
            try:
                return method(*given, **named)
            finally:
                self.within = False

        return recorded

    def rounds(self) -> list[list[Call]]:
        """Return the calls of each round. A round begins with `run_round`."""
        starts = [number for number, call in enumerate(self.calls) if call.method == "run_round"]
        return [self.calls[start:end] for start, end in zip(starts, [*starts[1:], len(self.calls)], strict=True)]


def recorded_run() -> Recording:
    """Run the tiny task in this process, and return the recording."""
    recording = Recording()

    class RecordedLine(Line):
        def __post_init__(self) -> None:
            super().__post_init__()
            for component in COMPONENTS:
                recording.listen(
                    component,
                    getattr(self.components, component)
                    if hasattr(self.components, component)
                    else getattr(self, component),
                )

    vars(runner)["Line"] = RecordedLine
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(tiny_task(), tiny_config(run__dir=f"{folder}/run"))
    finally:
        vars(runner)["Line"] = Line
    return recording


def shown(rounds: Sequence[list[Call]]) -> Iterator[tuple[str, list[Call]]]:
    """Yield the two rounds for the picture, each with its heading."""
    for heading, method in (("a tournament begins", "begin"), ("a tournament is concluded", "conclude")):
        yield heading, next(calls for calls in rounds if any(call.method == method for call in calls))


def svg(rounds: Sequence[tuple[str, list[Call]]]) -> str:
    """Return a sequence diagram with a column for each of `COMPONENTS` and a row for each call.

    Repeated calls share a row.
    """
    names = {"": "line", **COMPONENTS}
    at = {component: MARGIN + COLUMN * number for number, component in enumerate(names)}
    y, drawn = 40, []
    for heading, calls in rounds:
        y += 2 * ROW
        drawn.append(f'<text x="{MARGIN}" y="{y}" font-weight="bold">A round at whose end {escape(heading)}</text>')
        for call, same in groupby(calls):
            y += ROW
            times = len(list(same))
            label = call.method + (f" {times}x" if times > 1 else "")
            drawn.append(f'<path d="M{MARGIN} {y} H{at[call.component] - 4}" marker-end="url(#head)"/>')
            drawn.append(f'<text x="{at[call.component] + 5}" y="{y + 4}">{escape(label)}</text>')
    width, height = MARGIN + COLUMN * (len(COMPONENTS) + 1), y + 2 * ROW
    heads = [f'<text x="{x}" y="22" text-anchor="middle">{names[component]}</text>' for component, x in at.items()]
    lives = [f'<path class="life" d="M{x} 30 V{height - 10}"/>' for x in at.values()]
    style = (
        "text{font:12px sans-serif;fill:#222}path{stroke:#444;fill:none}.life{stroke:#bbb}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}path{stroke:#bbb}.life{stroke:#555}}"
    )
    tip = '<path d="M0 0 L6 3 L0 6"/>'
    head = f'<marker id="head" orient="auto" refX="6" refY="3" markerWidth="7" markerHeight="6">{tip}</marker>'
    body = "\n".join([f"<style>{style}</style><defs>{head}</defs>", *lives, *heads, *drawn])
    space = "http://www.w3.org/2000/svg"
    return f'<svg xmlns="{space}" viewBox="0 0 {width} {height}" width="{width}">\n{body}\n</svg>\n'


def main() -> None:
    """Record a run and draw it."""
    PICTURE.write_text(svg(list(shown(recorded_run().rounds()))), encoding="utf-8")


if __name__ == "__main__":
    main()
