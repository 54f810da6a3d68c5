"""Arranges the spans of one trace as trees, with self times and the critical path.

The spans may be wrong in any way: parents that are not on disk, cycles, ends before starts. Every span is in exactly
one place of the trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from esper.trace.otlp_json import Span


@dataclass(eq=False)
class Node:
    """A span in its tree."""

    span: Span
    children: list[Node] = field(default_factory=list)
    """In the order of their starts."""
    depth: int = 0
    parent: Node | None = None
    orphan: bool = False
    """True: the span has a parent, and this parent is not on disk."""
    in_cycle: bool = False
    """True: the span is its own ancestor. It is shown as a root."""
    self_ns: int = 0
    """Time in which no child ran. 0 if the span never ended."""
    critical_ns: int = 0
    """Part of the critical path that is in this span and in none of its children."""
    critical: bool = False
    """True: the span is on the critical path of its root."""

    @property
    def duration_ns(self) -> int | None:
        """None: the span never ended. A span that ends before it starts has the duration 0."""
        return None if self.span.end_ns is None else max(0, self.span.end_ns - self.span.start_ns)

    @property
    def end_ns(self) -> int:
        """Unix time of the end; of a span that never ended, the last time that is known of it and of what it began."""
        return self._end_ns

    @property
    def last_ns(self) -> int:
        """Unix time of the last end of the span and of all spans below it, which may end after it."""
        return self._last_ns

    _end_ns: int = 0
    _last_ns: int = 0


def trees(spans: Sequence[Span]) -> list[Node]:
    """Return the roots of one trace, in the order of their starts. `spans` has each span once."""
    nodes = {span.span_id: Node(span) for span in sorted(spans, key=lambda one: one.start_ns)}
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent_id)
        if parent is None or parent is node:
            node.orphan, node.in_cycle = parent is None and node.span.parent_id != "", parent is node
            roots.append(node)
        else:
            node.parent = parent
            parent.children.append(node)
    roots += _cut_cycles(nodes, roots)
    for root in roots:
        _measure(root)
        _mark_critical(root)
    return sorted(roots, key=lambda one: one.span.start_ns)


def walk(roots: Sequence[Node]) -> Iterator[Node]:
    """Yield every node, each before its children, in the order of starts."""
    todo = list(reversed(roots))
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(node.children)


def _cut_cycles(nodes: dict[str, Node], roots: list[Node]) -> list[Node]:
    """Make a root of one span of each cycle, the first that started. Return these roots."""
    reached = {id(node) for node in walk(roots)}
    cut: list[Node] = []
    for node in nodes.values():
        if id(node) in reached:
            continue
        in_cycle = _cycle_above(node)
        first = min(in_cycle, key=lambda one: one.span.start_ns)
        assert first.parent is not None, "a span of a cycle has a parent"
        first.parent.children.remove(first)
        first.parent, first.in_cycle = None, True
        cut.append(first)
        reached |= {id(below) for below in walk([first])}
    return cut


def _cycle_above(node: Node) -> list[Node]:
    """Return the spans of the cycle to which the parents of a span lead."""
    seen: dict[int, int] = {}
    chain: list[Node] = []
    here: Node | None = node
    while here is not None and id(here) not in seen:
        seen[id(here)] = len(chain)
        chain.append(here)
        here = here.parent
    assert here is not None, "the parents of a span that no root reaches are a cycle"
    return chain[seen[id(here)] :]


def _measure(root: Node) -> None:
    """Set depths, ends, last ends and self times."""
    order = list(walk([root]))
    for node in order:
        node.depth = node.parent.depth + 1 if node.parent is not None else 0
    for node in reversed(order):  # each after its children
        ends = (child.end_ns for child in node.children)
        node._end_ns = node.span.end_ns if node.span.end_ns is not None else max(ends, default=node.span.start_ns)
        node._end_ns = max(node._end_ns, node.span.start_ns)
        node._last_ns = max([node._end_ns, *(child.last_ns for child in node.children)])
        if node.span.end_ns is not None:
            node.self_ns = max(0, node.end_ns - node.span.start_ns - _covered(node))


def _covered(node: Node) -> int:
    """Return the time of a span in which at least one child ran: the length of the union of their intervals."""
    total, until = 0, node.span.start_ns
    for child in node.children:  # in the order of their starts
        start, end = max(child.span.start_ns, until), min(child.end_ns, node.end_ns)
        if end > start:
            total += end - start
            until = end
    return total


def _mark_critical(root: Node) -> None:
    """Mark the critical path: from the last end backwards, always the child with the last end in it or below it."""
    todo = [(root, root.span.start_ns, root.last_ns)]
    while todo:
        node, first, until = todo.pop()
        node.critical = True
        first, at = max(first, node.span.start_ns), min(until, node.last_ns)
        for child in sorted(node.children, key=lambda one: one.last_ns, reverse=True):
            if child.last_ns <= first:
                break
            end = min(child.last_ns, at)
            if child.span.start_ns < end and at > first:
                node.critical_ns += at - end
                todo.append((child, first, end))
                at = max(child.span.start_ns, first)
        node.critical_ns += max(0, at - first)
