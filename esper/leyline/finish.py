"""The network with which a run ends: the live host or its twin, with the losses that decide between them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from esper.leyline.base import Message
from esper.leyline.reports import Figure


class EndLosses(Message):
    """Losses of one network at the end of a run, and its weights."""

    pick: Figure
    """The task's loss over the pick shard, or over `growth.finish_samples` of its samples."""
    gate: Figure
    """The same over the gate shard."""
    mean: Figure
    """Mean of both losses. It decides."""
    weights_sha256: str


class Finish(Message):
    """The choice between the live host and its twin at the last fence of a run."""

    fence: int
    network: Literal["live", "twin"]
    """The network of the run."""
    why: str
    """The reason for the choice, in one line."""
    live: EndLosses
    twin: EndLosses | None
    """None: the run has no twin."""


class _Kept(BaseModel):
    model_config = ConfigDict(extra="ignore")

    finish: Finish | None = None


def finish_in(line_state: str) -> Finish | None:
    """Return the choice that the line's part of a checkpoint contains.

    None: the checkpoint is not of the end of a run that chooses.

    Raises:
        ValueError: the text is not a line's part of a checkpoint.
    """
    return _Kept.model_validate_json(line_state).finish
