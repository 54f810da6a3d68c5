"""Folds equal siblings of a tree of spans, so that a trace of thousands of spans fits on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from esper.trace.span_tree import Node, walk

FOLD_FROM = 4
"""Smallest number of equal siblings that are folded."""


@dataclass(frozen=True)
class Row:
    """A span, or several equal siblings, of which the first stands for all."""

    node: Node
    count: int
    """Number of equal siblings, with the first."""
    total_ns: int
    """Sum of their durations."""
    longest_ns: int
    """The longest duration."""
    self_ns: int
    """Sum of their self times."""
    below: int
    """Number of spans below them."""
    critical: bool
    """True: at least one of them is on the critical path."""
    last: bool
    """True: no sibling follows."""


def rows(roots: Sequence[Node], *, fold: bool = True, critical_only: bool = False) -> Iterator[Row]:
    """Yield the rows of trees, each before the rows below it.

    Siblings are equal if they have the same role and name, none of them failed or never ended, none has an event, and
    the spans below them are equal in the same sense. They are shown at the place of the first, without the spans below.
    """
    order = list(walk(roots))
    shapes = _shapes(order)
    sizes = _sizes(order)
    todo = list(reversed(_grouped(roots, shapes, sizes, fold=fold, critical_only=critical_only)))
    while todo:
        row = todo.pop()
        yield row
        if row.count == 1:
            todo += reversed(_grouped(row.node.children, shapes, sizes, fold=fold, critical_only=critical_only))


def _grouped(
    siblings: Sequence[Node], shapes: dict[int, int], sizes: dict[int, int], *, fold: bool, critical_only: bool
) -> list[Row]:
    groups: dict[int, list[Node]] = {}
    for place, node in enumerate(siblings):
        if node.critical or not critical_only:
            shape = shapes[id(node)]
            groups.setdefault(shape if fold and shape else -1 - place, []).append(node)
    made: list[tuple[Node, list[Node]]] = []
    for alike in groups.values():
        made += [(alike[0], alike)] if len(alike) >= FOLD_FROM else [(node, [node]) for node in alike]
    made.sort(key=lambda one: one[0].span.start_ns)
    return [_row(first, alike, sizes, last=place == len(made) - 1) for place, (first, alike) in enumerate(made)]


def _row(first: Node, alike: list[Node], sizes: dict[int, int], *, last: bool) -> Row:
    return Row(
        first,
        len(alike),
        sum(node.duration_ns or 0 for node in alike),
        max(node.duration_ns or 0 for node in alike),
        sum(node.self_ns for node in alike),
        sum(sizes[id(node)] - 1 for node in alike),
        any(node.critical for node in alike),
        last,
    )


def _shapes(order: list[Node]) -> dict[int, int]:
    """Return a number for each node; equal nodes have equal numbers. 0: the node is not folded."""
    numbers: dict[tuple[object, ...], int] = {}
    shapes: dict[int, int] = {}
    for node in reversed(order):  # each after its children
        below = tuple(shapes[id(child)] for child in node.children)
        span = node.span
        plain = not (span.failed or span.end_ns is None or span.events or 0 in below)
        key = (span.role, span.name, tuple(sorted(set(below))))
        shapes[id(node)] = numbers.setdefault(key, len(numbers) + 1) if plain else 0
    return shapes


def _sizes(order: list[Node]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for node in reversed(order):
        sizes[id(node)] = 1 + sum(sizes[id(child)] for child in node.children)
    return sizes
