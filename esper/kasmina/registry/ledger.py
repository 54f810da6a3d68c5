"""The facts about earlier commands and seeds that admission needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esper.leyline.commands import BlendSpec
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage


@dataclass(frozen=True)
class Ledger:
    """The facts that admission reads. The mappings are not copies of the registry's records."""

    run_id: str
    generation: int
    nonces: Mapping[str, str]
    """Nonce -> id of each admitted command. Commands of an older generation count only if they were carried out."""
    bodies: Mapping[str, bytes]
    """Id of each command in `nonces` -> its signed bytes."""
    fence: int
    """The present fence."""
    stages: Mapping[str, Stage]
    earliest: Mapping[str, int]
    """Id of each seed in `stages` -> first fence at which the seed may pass to its next stage."""
    pairs: Mapping[str, tuple[str, str]]
    """Id of each seed in `stages` -> its (slot, blueprint)."""
    slots: Mapping[str, SlotSpec]
    blends: Mapping[str, BlendSpec | None]
    """Id of each seed in `stages` -> the blend that was commanded for the seed. None: an earlier version of esper
    recorded no blend."""
    closed: frozenset[str]
    """The slots that are closed for further seeds."""
    order_in_flight: str | None
    """Id of the GERMINATE command whose tournament is running. None: no tournament is running."""
    checkpoints: tuple[int, ...] = ()
    """The fences to which a command may roll the run back, in ascending order."""
