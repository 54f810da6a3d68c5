"""Ports are the interfaces of the components, which the loop over fences calls. Another port is the interface of
Tamiyo's policy. In one process the components implement the ports. On Ray, handles of the components implement the
ports.

Types of torch are written `Any`, because this room may not import torch. The exact types are in the rooms that use the
ports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from esper.leyline.checkpoint_record import CheckpointWritten, StateCopied
from esper.leyline.commands import Command
from esper.leyline.decisions import Decision, Pair, Verdict
from esper.leyline.evidence import HostObservation, ResetProbe, SampleLosses
from esper.leyline.incubation import (
    CandidateProbe,
    Changed,
    Compared,
    IncubationOrder,
    IncubationResult,
    InFlight,
    Received,
    TwinReport,
)
from esper.leyline.reports import AdoptPlan, ChangePlan, FieldReport, GraftPlan, GraftReceipt, Weights
from esper.leyline.signals import EmergencySignal
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView, RoundState, SeedState, TrainingState


class LiveHost(Protocol):
    """Tolaria's port: the live host, the network that the run trains.

    Call order of a round: `run_round`; at the fence after it `sample_losses` and `observe`, each at most once, then
    `apply` for each plan, and `save` last. `saved` is called after each `save`, before the next `save`. `roll_back` and
    `restore` are called between fences, when every process is running.
    """

    def untrained(self) -> TrainingState:
        """Return the training state at fence 0, before the first step."""
        ...

    def run_round(self, fence: int, last_step: int) -> TrainingState:
        """Train up to step `last_step`, which ends at fence `fence`."""
        ...

    def sample_losses(self, shard: str, fence: int, units: int | None = None) -> SampleLosses:
        """Return the losses on a fence's slice of a shard.

        Args:
            units: Number of samples, or of groups, in the slice. None: the number that a fence draws.
        """
        ...

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """Return the observations of the seeds, and the paths of the host's layers."""
        ...

    def snapshot(self) -> Any:  # Any: as `Fork.snapshot`, or a reference to it
        """Return the whole state on which the host's further training depends. Only the incubation may read its
        content.
        """
        ...

    def apply(self, plan: ChangePlan, weights: Weights) -> GraftReceipt:
        """Apply a plan. Each plan is applied only once. Only the plan of a graft needs weights.

        Raises:
            IsolationViolation: the seed of a graft shares memory with the host. The host was not changed.
        """
        ...

    def adopt(self, plan: AdoptPlan, snapshot: Any) -> GraftReceipt:  # Any: from Incubation.winner
        """Continue with the state of a fork. Each plan is carried out only once.

        Raises:
            AdoptionMismatch: the host is not the control of the tournament (it was not changed), or the adopted state
                is not the state of the fork.
            IsolationViolation: the seed shares memory with the host. The host was not changed.
        """
        ...

    def compare_with_unseeded(self, seeds: Mapping[str, str]) -> Mapping[str, ResetProbe]:
        """Compare the slot of each removed seed with the same slot of a host that never had the seed."""
        ...

    def shard_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """Return the mean loss ("loss") and the metrics over a shard, or over `most` of its samples."""
        ...

    def weights_sha256(self) -> str:
        """Return the digest of all weights and buffers."""
        ...

    def parameter_count(self) -> int:
        """Return the number of elements of all parameters, seeds included."""
        ...

    def first_step_at(self) -> float | None:
        """Return the Unix time at the end of the first step since the host was built or restored. None: no step has
        ended yet.
        """
        ...

    def save(
        self, path: Path, states: Mapping[str, str], incubation: Mapping[str, Any]
    ) -> None:  # Any: Incubation.state
        """Begin to write the present state, with the states of the other components, to a new file."""
        ...

    def saved(self) -> CheckpointWritten:
        """Wait until the last save is durable and return its record. May be called while a round runs."""
        ...

    def copy_state(self, fence: int) -> StateCopied:
        """Copy the present state into memory, for `roll_back`."""
        ...

    def roll_back(self, generation: int) -> StateCopied | None:
        """Restore the copy that `copy_state` or `save` made last, in a newer generation. Return None if there is no
        copy."""
        ...

    def restore(self, snapshot: Any, generation: int) -> None:  # Any: as `snapshot`
        """Restore the state of a snapshot, in the same or a newer generation."""
        ...


class Policy(Protocol):
    """Decides which seeds to try. Its answers depend only on the arguments."""

    name: str
    version: str

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Return the eligible pairs to try, or a hold with its reason. The decision may also change learning rates, or
        name a fence to go back to.

        The method is called at every fence of a run that grows. `eligible` is empty if no seed may germinate there.
        With empty `eligible`, a decision has an effect only if it changes a rate or goes back.
        """
        ...

    def logits(self, state: RoundState, seed: SeedState, past: Sequence[FieldReport]) -> tuple[float, ...]:
        """Return the policy's logits for a seed whose next gate is due. Called only if the blend of the seed is
        CONFIDENCE.
        """
        ...


class Decider(Protocol):
    """Tamiyo's port.

    Call order at a fence: `advance` until it returns None, then `decide` once, `state` last. The argument of each call
    is the state after all earlier changes. A field report is given to `remember` before the next call.
    """

    def remember(self, report: FieldReport) -> None:
        """Store a field report, which later decisions of the policy use."""
        ...

    def advance(self, state: RoundState) -> Command | None:
        """Return the command for the first seed whose next gate is due. None: no gate is due."""
        ...

    def decide(self, state: RoundState) -> Verdict:
        """Decide what to germinate at this fence."""
        ...

    def state(self) -> str:
        """Return the state on which later decisions depend, as text."""
        ...

    def restore(self, state: str, generation: int) -> None:
        """Restore a state that `state` returned."""
        ...


class Registrar(Protocol):
    """The port of Kasmina's registry.

    Call order at a fence: `view` once, first. Then `conclude` if the view's `due` is set, `compare` if its
    `compares_with_twin` is set, `advance` for each seed that is due, `reset` if it has `resetting` seeds, and `receive`
    and `carry_out` for the command that germinates. If the answer to a call grafts a seed and the live host refuses the
    seed, `not_attached` is called next. `compare` and `receive` do not change the view. Each other call returns the new
    view, so that `view` is called once per fence. `state` comes last, for the checkpoint. A command is journaled before
    it is sent. A command to go back is sent by `permit` instead of `receive`; the next call is then `restore`.

    `restore` is called between fences. After a restore, `order` returns the tournament that must be begun again.
    """

    def view(self, fence: int) -> RegistryView:
        """Return the view of the registry at a fence."""
        ...

    def advance(self, command: Command, fence: int, observation: HostObservation | None) -> Changed:
        """Admit a command for one seed and carry it out as far as the gates allow.

        Args:
            observation: Observation of the live host at this fence. None if no gate judges the command.
        """
        ...

    def not_attached(self, seed_id: str, leaks: tuple[str, ...], fence: int) -> Changed:
        """Cull a seed that the last answer grafts but the live host did not attach, because its isolation is violated.

        Args:
            leaks: The tensors whose memory the seed shares.
        """
        ...

    def permit(self, command: Command, fence: int, checkpoints: Sequence[int]) -> str:
        """Admit a command to go back, and return its id. The caller then restores every component; the registry is not
        changed here.

        Args:
            checkpoints: The earlier fences that have a checkpoint.
        """
        ...

    def receive(self, command: Command, fence: int) -> Received:
        """Admit a command to germinate. Call it before `carry_out` of that command."""
        ...

    def carry_out(self, command_id: str, fence: int, probes: Sequence[CandidateProbe]) -> Changed:
        """Germinate the candidates of an admitted command as far as the gates allow.

        Args:
            probes: Measurements of the plans that `receive` returned, in their order.
        """
        ...

    def conclude(self, result: IncubationResult, fence: int) -> Changed:
        """Record a tournament's results. Call this method at the fence at which `due` of the view is set, before any
        command.
        """
        ...

    def compare(self, live: SampleLosses, twin: SampleLosses) -> Compared:
        """Record a fence's comparison of the live host with its twin. Call it before the commands of that fence."""
        ...

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Changed:
        """Judge G5 for every seed in the view's `resetting`."""
        ...

    def state(self) -> str:
        """Return the whole state of the registry, as text."""
        ...

    def restore(self, state: str, generation: int) -> None:
        """Restore a state that `state` returned, in the same or a newer generation."""
        ...

    def order(self) -> InFlight | None:
        """Return the order of the tournament in flight, which must begin again after a restore. None: no tournament is
        in flight.
        """
        ...


class Inbox(Protocol):
    """The conductor's port to the emergency queue. Call `pending`, journal the signals, then `acknowledge`."""

    def pending(self) -> tuple[EmergencySignal, ...]:
        """Return some signals that are not acknowledged, the most urgent first. Empty: the queue is empty."""
        ...

    def acknowledge(self, signal_ids: Sequence[str]) -> None:
        """Remove signals from the queue. The caller has already made these signals durable."""
        ...

    def close(self) -> None:
        """Refuse new signals from now on. `pending` still returns signals that were accepted before."""
        ...


class Incubation(Protocol):
    """The port of Kasmina's incubation: forks of the live host, and the twin.

    Call order of a tournament: `probe_candidates` and `begin` at one fence; `collect` at the fence at which the result
    is due; then `keep_twin`, if the control becomes the twin, `winner`, if its fork is adopted, `go_on`, if some forks
    train on, and `drop_winner`, before the next `begin`. `advance_twin` trains the twin once a round, before
    `twin_losses` at the fence. `state` is called last at a fence. `restore` is called between fences. The caller then
    begins the order that was in flight again, by a call of `begin`.
    """

    def probe_candidates(
        self,
        plans: Sequence[GraftPlan],
        weights: Weights,
        snapshot: Any,  # Any: from LiveHost.snapshot
    ) -> Sequence[CandidateProbe]:
        """Measure candidates before their training."""
        ...

    def begin(self, order: IncubationOrder, weights: Weights, snapshot: Any) -> None:  # Any: from LiveHost.snapshot
        """Begin an order. The work may run in the background; `collect` waits for its end."""
        ...

    def collect(self) -> IncubationResult:
        """Wait for the order that was begun, and return its result."""
        ...

    def go_on(self, order: IncubationOrder, weights: Weights) -> None:
        """Train on with the control, the placebos and some forks of the last tournament. This is as `begin` with the
        snapshot of that tournament."""
        ...

    def keep_twin(self) -> None:
        """Make the last tournament's control the run's twin."""
        ...

    def winner(self) -> Any:  # Any: as `Fork.snapshot`
        """Return the snapshot of the fork of rank 1 of the last tournament. The order of the tournament adopts. The
        fork is kept until `drop_winner`."""
        ...

    def drop_winner(self) -> None:
        """Drop the fork that `winner` returns, and all forks that could have gone on and do not. Call it at the end of
        each fence at which a tournament ended."""
        ...

    def advance_twin(self, step: int) -> None:
        """Train the twin up to an optimizer step. The training may run in the background; `twin_losses`,
        `twin_means` and `twin_report` wait for its end.
        """
        ...

    def twin_losses(self, fence: int) -> SampleLosses:
        """Return the twin's losses on this fence's slice of the gate shard."""
        ...

    def twin_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """Return the twin's mean loss ("loss") and the metrics over a shard, or over `most` of its samples."""
        ...

    def twin_report(self) -> TwinReport:
        """Return the twin's number of steps and digest of weights. No shard is measured."""
        ...

    def state(self, fence: int) -> Mapping[str, Any]:  # Any: plain values and snapshots
        """Return a dict with three keys. `twin`: the snapshot of the twin, or None. `twin_steps`: the number of steps
        of the twin. `origin`: the snapshot from which the tournament in flight began. None: the tournament began at
        this fence, or no tournament is in flight."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: as `state`
        """Restore the twin of `state`, if it has one. A tournament in flight is abandoned. The caller begins it again,
        by a call of `begin`."""
        ...
