"""The stages of a seed's lifecycle. The allowed transitions are in `esper.kasmina.registry.lifecycle`."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Stage of a seed."""

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
    """A culled seed left something behind (G5 failed). No further seed is grafted into its slot."""


LIVE = (Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY)
"""Stages of a seed that is grafted into the live host and can still be removed."""

IN_HOST = (*LIVE, Stage.FOSSILIZED)
"""Stages of a seed that is active in the live host."""
