"""The stages of a seed's life. The edges between them are Kasmina's (`esper.kasmina.registry.lifecycle`)."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Where a seed stands."""

    DORMANT = "DORMANT"
    GERMINATED = "GERMINATED"
    TRAINING = "TRAINING"
    BLENDING = "BLENDING"
    SHADOWING = "SHADOWING"
    PROBATIONARY = "PROBATIONARY"
    FOSSILIZED = "FOSSILIZED"
    CULLED = "CULLED"
    EMBARGOED = "EMBARGOED"
    RESETTING = "RESETTING"
    TERMINATED = "TERMINATED"


LIVE = (Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY)
"""Grafted into the live host and not yet a part of it for good."""

IN_HOST = (*LIVE, Stage.FOSSILIZED, Stage.TERMINATED)
"""Acting in the live host."""
