"""Gives each span of a role a lane, so that the spans of a lane are nested: no two of them overlap in part."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from esper.trace.span_tree import Node


def lanes_of(nodes: Sequence[Node]) -> dict[int, int]:
    """Return the lane of each span by the `id` of its node; the lanes of each role begin at 1.

    Args:
        nodes: In the order of their starts; of spans that start together, the longest is first.
    """
    of_role: defaultdict[str, _Lanes] = defaultdict(_Lanes)
    lanes: dict[int, int] = {}
    for node in nodes:
        mine, above = of_role[node.span.role], node.parent
        same_role = above is not None and above.span.role == node.span.role
        beside = lanes[id(above)] if same_role and id(above) in lanes else 0  # a wrong parent may start later
        lanes[id(node)] = mine.place(node, beside)
    return lanes


@dataclass
class _Lanes:
    """The lanes of one role. The time of a placement grows with the logarithm of the number of lanes."""

    open_until: list[list[int]] = field(default_factory=list)
    """For each lane, the ends of the spans that are open, the innermost last."""
    busy: list[tuple[int, int]] = field(default_factory=list)
    """(end of the innermost open span, lane) of each lane with an open span, sorted."""
    idle: list[int] = field(default_factory=list)
    """Heap of the lanes without an open span."""

    def place(self, node: Node, parents: int) -> int:
        """Return the lane of the next span. `parents`: the lane of its parent, which is taken if it is possible."""
        if node.span.end_ns is None:  # it has a lane of its own
            self.open_until.append([])
            return len(self.open_until)
        self._close_until(node.span.start_ns)
        if parents and (ends := self.open_until[parents - 1]) and ends[-1] >= node.end_ns:
            del self.busy[bisect_left(self.busy, (ends[-1], parents))]
            lane = parents
        elif (fits := bisect_left(self.busy, (node.end_ns, 0))) < len(self.busy):
            lane = self.busy.pop(fits)[1]
        elif self.idle:
            lane = heappop(self.idle)
        else:
            self.open_until.append([])
            lane = len(self.open_until)
        self.open_until[lane - 1].append(node.end_ns)
        insort(self.busy, (node.end_ns, lane))
        return lane

    def _close_until(self, now_ns: int) -> None:
        """Close the spans that ended at this time or before."""
        place = bisect_left(self.busy, (now_ns + 1, 0))
        closing, self.busy[:place] = self.busy[:place], []
        for _, lane in closing:
            ends = self.open_until[lane - 1]
            while ends and ends[-1] <= now_ns:
                ends.pop()
            if ends:
                insort(self.busy, (ends[-1], lane))
            else:
                heappush(self.idle, lane)
