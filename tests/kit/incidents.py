"""The paths of spans that the trace of an incident has, in one process and on actors alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esper.trace.paths import find

GRAFT = (
    "esper round[role=conductor] >> kasmina incubate >> esper step[role=kasmina]",
    "esper round >> command admit[role=kasmina]",
    "esper round >> gate evaluate[role=kasmina] > seed transition[after=BLENDING]",
    "esper round >> trainer apply[role=tolaria][kind=GraftPlan]",
    "esper round >> tamiyo decide[role=tamiyo] > policy[role=tamiyo]",
    "esper round > checkpoint save >> checkpoint commit",
)
GATE_FAILURE = (
    "esper round >> gate evaluate[role=kasmina]@gate_failure > seed transition[role=kasmina]",
    "esper round >> command admit[role=kasmina]",
)
POLICY_TIMEOUT = ("esper round[role=conductor][status=error] >> *!PolicyDeadlineExceeded@policy_timeout",)
HALT = ("esper round[role=conductor]!EmergencyStop >> esper step[role=tolaria]!EmergencyStop",)
DAMAGED_CHECKPOINT = (
    "esper resume[role=conductor]@checkpoint_rejected",
    "esper resume > esper start[role=conductor]",
    "esper resume >> checkpoint restore[role=conductor]",
)
RECOVERY = (
    "esper round[role=conductor][status=error] > esper recover[role=conductor] >> checkpoint restore",
    "esper round > esper recover > esper round[status=ok] >> esper step[role=tolaria][status=ok]",
)


def the_trace_of(run_dir: Path, paths: Sequence[str], trace_id: str = "") -> str:
    """The id of the one trace that has every path."""
    found = find(run_dir, *paths, trace_id=trace_id)
    assert found, found.reason
    assert not found.skipped.counts, found.skipped.sentences()
    return found.trace_ids[0]
