"""Records the effective alpha of one seed at each optimizer step of a round, and summarizes it."""

from __future__ import annotations

import numpy as np

from esper.kasmina.host.blending import Alpha
from esper.leyline.reports import GraftPlan
from esper.leyline.state import BlendReport

PERCENT = 95


class AlphaRecord:
    """The effective alphas of one seed since the last `take`, by optimizer step."""

    def __init__(self) -> None:
        self._alphas: dict[int, Alpha] = {}

    def add(self, step: int, alpha: Alpha) -> None:
        """Record the alpha of a step. A second call for the same step replaces the alpha of the first call."""
        self._alphas[step] = alpha

    def take(self, plan: GraftPlan) -> BlendReport | None:
        """Return the summary of all recorded steps, and delete the record. None: no step was recorded.

        For CHANNEL, the summarized values are alpha times each entry of the vector, at each step.
        """
        alphas, self._alphas = list(self._alphas.values()), {}
        if not alphas:
            return None
        values, counts = np.unique([alpha.effective for alpha in alphas], return_counts=True)
        vector = np.asarray(plan.blend.channels or (1.0,))
        clamped = [alpha.clamped for alpha in alphas if alpha.clamped is not None]
        return BlendReport(
            seed_id=plan.seed_id,
            mode=plan.blend.mode,
            mean=float(values @ counts / counts.sum() * vector.mean()),
            p95=_percentile(np.outer(values, vector).ravel(), np.repeat(counts, len(vector))),
            clamped=sum(clamped) / len(clamped) if clamped else None,
        )


def _percentile(values: np.ndarray, counts: np.ndarray) -> float:
    """Return the smallest value v for which at least `PERCENT` percent of all values are at most v.

    Args:
        counts: Number of occurrences of each value.
    """
    order = np.argsort(values, kind="stable")
    ranks = np.cumsum(counts[order])
    rank = -(-PERCENT * int(ranks[-1]) // 100)  # division that rounds up
    return float(values[order][np.searchsorted(ranks, rank)])
