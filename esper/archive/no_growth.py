"""The reason why a run ended without a seed in its network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.archive.summary import SeedFate
from esper.leyline.stages import IN_HOST
from esper.setup.candidates import why_nothing_grows
from esper.setup.growth_log import GrowthLog, none_stayed
from esper.setup.survey import Survey
from esper.setup.verdicts import figures


def why_none_stayed(survey: Survey, log: GrowthLog, seeds: Sequence[SeedFate]) -> str | None:
    """Return why a run ended without a seed in its network. Return None if its network has a seed."""
    growth = survey.config.growth
    if any(seed.stage in IN_HOST for seed in seeds):
        return None
    if not growth.enabled:
        return "growth is off (growth.enabled, --no-growth)"
    if (short := why_nothing_grows(survey)) is not None:
        return f"no candidate was tried: {short}"
    return none_stayed(log, len(seeds), _best(seeds))


def _best(seeds: Sequence[SeedFate]) -> str:
    """Return in words the seed with the largest z at G2, with its figures. Return an empty text if G2 judged no seed,
    or if an older version judged it."""
    judged = [(seed.z, seed) for seed in seeds if seed.z is not None and not math.isnan(seed.z)]
    if not judged:
        return ""
    _, seed = max(judged, key=lambda one: one[0])
    return "" if seed.g2 is None else f"{seed.blueprint} at {seed.slot}, {figures(seed.g2)}"
