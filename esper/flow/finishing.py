"""The end of a run with `growth.finish=better`: the better of live host and twin is the network of the run.

Both are measured on the same samples of the pick and gate shards. Both stay in the last checkpoint, so a resume with
more epochs continues with both, and chooses again at its end. This module changes no component.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from esper.flow.crew import Components
from esper.leyline.finish import EndLosses, Finish
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RegistryView


@dataclass(frozen=True)
class Ending:
    """Sizes of the measurements with which a run chooses its network."""

    samples: int
    """Measured samples of the pick and gate shards together."""
    most: int
    """Largest number of samples of each shard."""
    batch_size: int
    host_flops: int
    """Modelled FLOPs of one optimizer step of the twin."""

    def flops(self, view: RegistryView) -> int:
        """Return the modelled FLOPs of measuring the live host, and the twin if there is one. The forward pass of a
        batch counts as a third of a step."""
        twin = self.host_flops if view.has_twin else 0
        return round(self.samples / self.batch_size / 3 * (view.step_flops + twin))


def choose(components: Components, view: RegistryView, fence: int, most: int) -> Finish:
    """Measure the live host and its twin at the last fence, and choose the network of the run.

    The twin is chosen if no seed is left in the live host, or if its mean loss is lower.

    Args:
        most: Largest number of samples of each shard.
    """
    trainer, incubator = components.trainer, components.incubator
    live = _measured(partial(trainer.shard_means, most=most), trainer.weights_sha256())
    if not view.has_twin:
        return Finish(fence=fence, network="live", why="the run has no twin", live=live, twin=None)
    twin = _measured(partial(incubator.twin_means, most=most), incubator.twin_report().weights_sha256)
    grown = any(seed.stage in IN_HOST for seed in view.seeds)
    network, why = better(live, twin, grown=grown)
    return Finish(fence=fence, network=network, why=why, live=live, twin=twin)


def better(live: EndLosses, twin: EndLosses, *, grown: bool) -> tuple[Literal["live", "twin"], str]:
    """Return the better network, and why it is better. Of equal losses, the live host is better.

    Args:
        grown: The live host has a seed.
    """
    if not grown:
        return "twin", "no seed is left in the live host"
    if math.isnan(live.mean) and not math.isnan(twin.mean):
        return "twin", "the mean loss of the live host is not a number"
    if twin.mean < live.mean:
        return "twin", f"its mean loss over pick and gate is lower: {twin.mean:.6g}, live host {live.mean:.6g}"
    return "live", f"its mean loss over pick and gate is not higher: {live.mean:.6g}, twin {twin.mean:.6g}"


def _measured(shard_means: Callable[[str], Mapping[str, float]], weights_sha256: str) -> EndLosses:
    pick, gate = (shard_means(shard)["loss"] for shard in ("pick", "gate"))
    return EndLosses(pick=pick, gate=gate, mean=(pick + gate) / 2, weights_sha256=weights_sha256)
