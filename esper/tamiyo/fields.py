"""Which pairs (slot, blueprint) a tournament of the default policy tries, if it cannot try all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from esper.leyline.decisions import Pair


def spread(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Return at most `most` pairs, in the order of their risk.

    If there are more pairs, each slot gets the same number of turns, as far as it has pairs. In each slot the
    blueprints are in the order of their risk. Each slot begins where the turns of the slot before it ended, so a host
    of many slots tries many blueprints, and not the one of the least risk in each slot. If there are more slots than
    turns, the slots that get one are spread evenly over all, in the order of their names.
    """
    by_slot: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=_by_risk):
        by_slot.setdefault(pair.slot, []).append(pair)
    names = sorted(by_slot)
    slots = (
        names if len(names) <= most else [names[(2 * place + 1) * len(names) // (2 * most)] for place in range(most)]
    )
    chosen, before = list[tuple[int, Pair]](), 0
    for place, slot in enumerate(slots):
        own = by_slot[slot]
        first = before % len(own)
        chosen += enumerate((*own[first:], *own[:first]))
        before += most // len(slots) + (place < most % len(slots))
    kept = sorted(chosen, key=lambda turn: (turn[0], turn[1].slot))[:most]
    return sorted((pair for _, pair in kept), key=_by_risk)


def in_turn(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (slot, blueprint) pairs in another order: the first of each slot, then the second of each, and so on.

    Seeds of the same slot often do the same, so the best of another slot adds more than the second best of this one.
    """
    turns = Counter[str]()
    keyed = []
    for place, (slot, blueprint) in enumerate(pairs):
        keyed.append((turns[slot], place, (slot, blueprint)))
        turns[slot] += 1
    return [pair for *_, pair in sorted(keyed)]


def _by_risk(pair: Pair) -> tuple[float, str, str]:
    return pair.risk, pair.slot, pair.blueprint_id
