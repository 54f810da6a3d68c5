"""Typed handles: each room's port, spoken through a mailbox. Which method, which arguments, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray

from actors.handles import Remote
from esper.errors import CallDeadlineExceeded, PolicyDeadlineExceeded
from esper.leyline.checkpoints import CheckpointWritten, Kept
from esper.leyline.commands import Command
from esper.leyline.decisions import Verdict
from esper.leyline.evidence import HostObservation, ResetProbe, SampleLosses
from esper.leyline.incubation import Birth, Changed, Compared, IncubationOrder, IncubationResult, Received
from esper.leyline.reports import FieldReport, GraftReceipt, HostPlan
from esper.leyline.signals import EmergencySignal
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView, RoundState, TrainingState
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count

Snapshot = list["ray.ObjectRef[object]"]


class TolariaHandle:
    """`LiveHost` across processes."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def untrained(self) -> TrainingState:
        """See `LiveHost`."""
        return cast(TrainingState, self.remote.ask("untrained"))

    def run_round(self, fence: int, last_step: int) -> TrainingState:
        """See `LiveHost`. Raises: TrainerRankLost."""
        return cast(TrainingState, self.remote.ask("run_round", fence, last_step))

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """See `LiveHost`."""
        return cast(SampleLosses, self.remote.ask("sample_losses", shard, fence))

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """See `LiveHost`."""
        return cast(HostObservation, self.remote.ask("observe", fence, stages))

    def snapshot(self) -> Snapshot:
        """A reference to the snapshot, in a list so that Ray passes it on unread. It outlives the trainer."""
        return self.remote.reference("snapshot")

    def apply(self, plan: HostPlan) -> GraftReceipt:
        """See `LiveHost`."""
        return cast(GraftReceipt, self.remote.ask("apply", plan))

    def compare_with_unseeded(self, seeds: Mapping[str, str]) -> Mapping[str, ResetProbe]:
        """See `LiveHost`."""
        return cast("Mapping[str, ResetProbe]", self.remote.ask("compare_with_unseeded", seeds))

    def shard_means(self, shard: str) -> dict[str, float]:
        """See `LiveHost`."""
        return cast("dict[str, float]", self.remote.ask("shard_means", shard))

    def weights_sha256(self) -> str:
        """See `LiveHost`."""
        return cast(str, self.remote.ask("weights_sha256"))

    def parameter_count(self) -> int:
        """See `LiveHost`."""
        return cast(int, self.remote.ask("parameter_count"))

    def first_step_at(self) -> float | None:
        """See `LiveHost`."""
        return cast("float | None", self.remote.ask("first_step_at"))

    def save(self, path: Path, rooms: Mapping[str, str], nursery: Mapping[str, Any]) -> None:  # Any: see `LiveHost`
        """See `LiveHost`. Snapshots in `nursery` are references."""
        self.remote.ask("save", path, rooms, nursery)

    def saved(self) -> CheckpointWritten:
        """See `LiveHost`: asked while the actor trains."""
        return cast(CheckpointWritten, self.remote.ask("saved", group="save"))

    def keep(self, fence: int) -> Kept:
        """See `LiveHost`."""
        return cast(Kept, self.remote.ask("keep", fence))

    def roll_back(self, generation: int) -> Kept | None:
        """See `LiveHost`."""
        return cast("Kept | None", self.remote.ask("roll_back", generation))

    def restore(self, snapshot: Snapshot, generation: int) -> None:
        """See `LiveHost`."""
        self.remote.ask("restore", snapshot, generation)


class TamiyoHandle:
    """`Decider` across processes; a policy that exceeds its deadline loses its process, whatever it is doing."""

    def __init__(self, remote: Remote, deadline_s: float) -> None:
        self.remote, self._deadline_s = remote, deadline_s

    def remember(self, report: FieldReport) -> None:
        """See `Decider`."""
        self.remote.ask("remember", report)

    def advance(self, state: RoundState) -> Command | None:
        """See `Decider`."""
        return cast("Command | None", self.remote.ask("advance", state))

    def decide(self, state: RoundState) -> Verdict:
        """See `Decider`.

        Raises:
            PolicyDeadlineExceeded: no answer within the deadline; the process is gone.
        """
        start = time.monotonic()
        with span("await tamiyo", role="conductor", fence=state.fence) as current:
            try:
                return cast(Verdict, self.remote.ask_within(self._deadline_s, "decide", state))
            except CallDeadlineExceeded as error:
                count("esper.policy.failures")
                span_id = f"{current.get_span_context().span_id:016x}"
                late = PolicyDeadlineExceeded(time.monotonic() - start, self._deadline_s, span_id)
                late.actor, late.process = error.actor, error.process
                reported(late, "policy_timeout", Severity.CRITICAL, deadline_s=self._deadline_s, pid=self.remote.pid)
                raise late from error

    def state(self) -> str:
        """See `Decider`."""
        return cast(str, self.remote.ask("state"))

    def restore(self, state: str, generation: int) -> None:
        """See `Decider`."""
        self.remote.ask("restore", state, generation)


class KasminaHandle:
    """`Registrar` across processes."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def view(self, fence: int) -> RegistryView:
        """See `Registrar`."""
        return cast(RegistryView, self.remote.ask("view", fence))

    def advance(self, command: Command, fence: int, observation: HostObservation) -> Changed:
        """See `Registrar`."""
        return cast(Changed, self.remote.ask("advance", command, fence, observation))

    def receive(self, command: Command, fence: int) -> Received:
        """See `Registrar`."""
        return cast(Received, self.remote.ask("receive", command, fence))

    def carry_out(self, command_id: str, fence: int, births: Sequence[Birth]) -> Changed:
        """See `Registrar`."""
        return cast(Changed, self.remote.ask("carry_out", command_id, fence, births))

    def conclude(self, result: IncubationResult, fence: int) -> Changed:
        """See `Registrar`."""
        return cast(Changed, self.remote.ask("conclude", result, fence))

    def compare(self, live: SampleLosses, twin: SampleLosses) -> Compared:
        """See `Registrar`."""
        return cast(Compared, self.remote.ask("compare", live, twin))

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Changed:
        """See `Registrar`."""
        return cast(Changed, self.remote.ask("reset", probes, fence))

    def state(self) -> str:
        """See `Registrar`."""
        return cast(str, self.remote.ask("state"))

    def restore(self, state: str, generation: int) -> None:
        """See `Registrar`."""
        self.remote.ask("restore", state, generation)

    def order(self) -> IncubationOrder | None:
        """See `Registrar`."""
        return cast("IncubationOrder | None", self.remote.ask("order"))


class EmergencyHandle:
    """The emergency queue across processes."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def publish(self, signal: EmergencySignal) -> int:
        """Take a signal; it shows in the word before this returns. Raises: EmergencyQueueFull, EmergencyUnavailable."""
        return cast(int, self.remote.ask("publish", signal, group="ctl"))

    def rebind(self, generation: int) -> None:
        """Have the word say a newer generation from now on."""
        self.remote.ask("rebind", generation)

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """Signals that a subscriber has not acknowledged, the most urgent first."""
        return cast("tuple[EmergencySignal, ...]", self.remote.ask("pending", subscriber))

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """A subscriber has dealt with signals."""
        self.remote.ask("acknowledge", subscriber, signal_ids)

    def close(self) -> None:
        """Take no new signal from now on."""
        self.remote.ask("close")
