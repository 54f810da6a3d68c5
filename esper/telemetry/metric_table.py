"""The table of all metrics of a run: names, labels with all their values, and the bounds of histograms.

Names are those of OpenTelemetry. On the endpoint `esper.severe_events` is `esper_severe_events_total`, and a histogram
ends in `_seconds`. No label is an id, so the number of series of a run is fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.telemetry.events import NAMES

Labels = tuple[tuple[str, str], ...]
"""Labels of one series: (name, value) pairs, sorted by name. Empty for the series without labels."""

SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds in seconds for one step, call or copy."""
LONG_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Bounds in seconds for rounds and whole recoveries."""

ROLES = ("emergency", "kasmina", "tamiyo", "tolaria")
"""The components that have an actor on Ray."""
STAGES = (
    "BLENDING",
    "CULLED",
    "DORMANT",
    "EMBARGOED",
    "FOSSILIZED",
    "GERMINATED",
    "PROBATIONARY",
    "RESETTING",
    "SHADOWING",
    "TERMINATED",
    "TRAINING",
)
MALFORMED = "malformed"
"""Reason of a rejection for a command that lacks a required part, or has a wrong one. The event names the part."""
REASONS = (
    "future",
    MALFORMED,
    "nonce_replayed",
    "old_generation",
    "signature_invalid",
    "signature_missing",
    "stage_conflict",
    "stale",
    "wrong_run",
)
PHASES = ("decide", "detect", "first_step", "restore", "start", "stop")
"""The phases of a recovery; see `esper.archive.recovery_record.Recovery`."""


@dataclass(frozen=True)
class Metric:
    """A counter or a gauge."""

    what: str
    """What it counts or measures, for a reader."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Label -> all its values."""

    def series(self) -> tuple[Labels, ...]:
        """Return the labels of every series of this metric."""
        names = sorted(self.labels)
        values = itertools.product(*(self.labels[name] for name in names))
        return tuple(tuple(zip(names, one, strict=True)) for one in values)


@dataclass(frozen=True)
class HistogramMetric(Metric):
    """A histogram of durations."""

    bounds_s: tuple[float, ...] = SHORT_S
    """Upper bounds of the buckets in seconds, ascending. A last bucket without a bound follows."""


COUNTERS: Mapping[str, Metric] = {
    "esper.policy.decisions": Metric("decisions of the policy that took effect or held"),
    "esper.policy.failures": Metric("calls of the policy that raised, were late or chose nothing possible"),
    "esper.command.admissions": Metric("commands that Kasmina admitted", {"duplicate": ("false", "true")}),
    "esper.command.rejections": Metric("commands that were refused; nothing was changed", {"reason": REASONS}),
    "esper.gate.evaluations": Metric(
        "judgements of a gate", {"gate": ("G0", "G1", "G2", "G3", "G4", "G5"), "passed": ("false", "true")}
    ),
    "esper.seed.transitions": Metric("changes of a seed's stage", {"after": STAGES}),
    "esper.signal.published": Metric("emergency signals that the queue took"),
    "esper.signal.delivered": Metric("deliveries of a signal that a subscriber confirmed"),
    "esper.signal.rejected": Metric("emergency signals that the queue refused"),
    "esper.signal.retried": Metric("failed attempts to deliver a signal that will be repeated"),
    "esper.signal.dead_lettered": Metric("deliveries that were given up"),
    "esper.signal.dropped": Metric("signals that left the queue before all subscribers confirmed them"),
    "esper.load.errors": Metric("damaged entries of a store", {"store": ("emergency_queue", "field_reports")}),
    "esper.guard.trips": Metric("steps with a loss or gradient that was not finite"),
    "esper.rollbacks": Metric("rollbacks of the whole run", {"tier": ("fast", "full")}),
    "esper.actor.restarts": Metric("processes of actors that were started again", {"role": ROLES}),
    "esper.fallbacks": Metric("fallbacks that a gate saw; must stay 0", {"source": ("command", "evidence", "status")}),
    "esper.faults.fired": Metric("faults that were injected on purpose"),
    "esper.severe_events": Metric("severe events", {"event": tuple(sorted(NAMES))}),
    "esper.severe_events.lost": Metric("severe events that are not in the log, because it could not be written"),
    "esper.spans.lost": Metric("spans that could not be written or exported"),
    "esper.log_records.lost": Metric("log records that could not be exported"),
}
"""Every counter, by name."""

HISTOGRAMS: Mapping[str, HistogramMetric] = {
    "esper.step.duration": HistogramMetric(
        "one optimizer step; role tolaria: of the live host, role kasmina: of a fork", {"role": ("kasmina", "tolaria")}
    ),
    "esper.round.duration": HistogramMetric("one round with its fence", bounds_s=LONG_S),
    "esper.decision.duration": HistogramMetric("one decision of Tamiyo, with the policy"),
    "esper.admission.duration": HistogramMetric("admission or refusal of one command"),
    "esper.graft.duration": HistogramMetric("application of one plan to the live host"),
    "esper.signal.delivery.duration": HistogramMetric(
        "from the issue of a signal to the confirmation of one subscriber", bounds_s=(*SHORT_S, 60.0, 300.0, 1800.0)
    ),
    "esper.checkpoint.stall.duration": HistogramMetric("pause of the training for one checkpoint"),
    "esper.checkpoint.duration": HistogramMetric("one checkpoint, from its begin to its commit", bounds_s=LONG_S),
    "esper.rollback.duration": HistogramMetric("one rollback", {"tier": ("fast", "full")}, bounds_s=LONG_S),
    "esper.recovery.duration": HistogramMetric(
        "one phase of the recovery from a death", {"phase": PHASES}, bounds_s=LONG_S
    ),
}
"""Every histogram, by name. The unit is seconds."""

GAUGES: Mapping[str, Metric] = {
    "esper.queue.depth": Metric("emergency signals that are not delivered to all subscribers yet"),
    "esper.seeds.live": Metric("seeds in the live host that can still be removed"),
    "esper.parameters": Metric("parameters of the live host with its seeds"),
    "esper.actor.up": Metric("actors that are up, by role; a run in one process has none", {"role": ROLES}),
}
"""Every gauge, by name."""
