"""Kasmina's record of a seed, and the events of a gate's judgement."""

from __future__ import annotations

from typing import ClassVar

from esper.kasmina.registry.lifecycle import check_edge
from esper.leyline.base import GrownMessage, Message
from esper.leyline.commands import BlendSpec
from esper.leyline.evidence import PairedLosses
from esper.leyline.incubation import ForkResult
from esper.leyline.reports import GateReport, Transition
from esper.leyline.stages import Stage
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count

CRITICAL_REASONS = frozenset(
    (
        "fallback_requested",
        "fallback_used",
        "fallback_status",
        "stage_mismatch",
        "isolation_violated",
        "reset_incomplete",
    )
)


class Graft(Message):
    """Facts about a seed's graft into the live host. Later decisions need these facts. The weights are in the host."""

    ordinal: int
    """Number of the seed among all seeds that were ever grafted into its slot, from 0."""
    start_step: int
    """The first optimizer step in which the seed takes part."""
    blend: BlendSpec
    confidence: float | None = None
    """The applied confidence of a CONFIDENCE blend, 0..1. None: the mode has no confidence."""


class SeedRecord(GrownMessage):
    """The history of one seed. The record is immutable: a change replaces it.

    A checkpoint contains the whole record.
    """

    LATER: ClassVar = frozenset({"copies", "judged_again_at"})

    seed_id: str
    slot: str
    blueprint_id: str
    command_id: str
    """Id of the GERMINATE command that named the seed."""
    policy_version: str
    replica_of: str | None
    required_mesh: tuple[str, ...]
    parameters: int
    parameter_bytes: int
    flops: int
    germinated_fence: int
    since_fence: int
    commanded: BlendSpec | None = None
    """The blend of the GERMINATE command. None: the command is from an earlier version of esper, and has no blend.
    """
    stage: Stage = Stage.DORMANT
    graft: Graft | None = None
    """The facts of the graft. None before the seed is grafted into the live host."""
    result: ForkResult | None = None
    twin_zs: tuple[float, ...] = ()
    """z of (twin loss - live loss) at each fence since alpha reached its target."""
    embargo_until: int = 0
    rate_scale: float = 1.0
    """Factor that multiplies the learning rates of the seed's optimizer."""
    copies: int = 1
    """Number of modules of the blueprint in the seed."""
    judged_again_at: int | None = None
    """Fence at which G2 judges the seed again, because its tournament was refused and its fork trains on. None: its
    fork did not train on."""

    @property
    def judged(self) -> PairedLosses | None:
        """The seed's paired losses on the gate shard. None: the seed was not the first of its tournament."""
        return self.result.gate if self.result is not None else None

    @property
    def blend(self) -> BlendSpec | None:
        """The seed's blend. None: the GERMINATE command had no blend, and the seed is not grafted yet."""
        return self.graft.blend if self.graft is not None else self.commanded

    @property
    def start_step(self) -> int:
        """The first optimizer step with the seed in the live host. 0 before its graft."""
        return self.graft.start_step if self.graft is not None else 0

    def bound(self, fence: int) -> bool:
        """Return whether the embargo on the seed's pair still applies at this fence."""
        return self.embargo_until > fence

    def moved(self, after: Stage, fence: int, cause: str, command_id: str) -> tuple[SeedRecord, Transition]:
        """Return the record at the stage `after`, and the transition.

        Raises:
            IllegalTransition: the lifecycle does not allow this transition.
        """
        check_edge(self.seed_id, self.stage, after)
        count("esper.seed.transitions", after=str(after))
        step = Transition(
            seed_id=self.seed_id,
            slot=self.slot,
            blueprint_id=self.blueprint_id,
            before=self.stage,
            after=after,
            fence=fence,
            cause=cause,
            command_id=command_id,
        )
        return self.model_copy(update={"stage": after, "since_fence": fence}), step


def tell_gate(report: GateReport, seed: SeedRecord) -> None:
    """Count a judgement. A failed judgement also reports the severe events for its reasons."""
    count("esper.gate.evaluations", gate=str(report.gate), passed=str(report.passed).lower())
    if report.passed:
        return
    where = {"seed_id": seed.seed_id, "slot": seed.slot, "blueprint": seed.blueprint_id, "gate": str(report.gate)}
    measured = {check.name: check.measured for check in report.checks if not check.passed}
    if "fallback_requested" in report.reasons:
        severe("tamiyo_fallback_requested", Severity.CRITICAL, **where, **measured)
        count("esper.fallbacks", source="command")
    if "fallback_used" in report.reasons:
        count("esper.fallbacks", source="evidence")
    if "fallback_status" in report.reasons:
        severe("fallback_status_rejected", Severity.CRITICAL, **where, **measured)
        count("esper.fallbacks", source="status")
    severity = Severity.CRITICAL if CRITICAL_REASONS & set(report.reasons) else Severity.WARNING
    severe("gate_failure", severity, reasons=list(report.reasons), **where, **measured)
