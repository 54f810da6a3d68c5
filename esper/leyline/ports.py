"""Ports: the interfaces by which a room calls another room without importing it.

`Any` stands where torch's types would: this room may not name torch. The rooms on both sides give the exact type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from esper.leyline.checkpoint_record import CheckpointWritten, StateCopied
from esper.leyline.commands import Command
from esper.leyline.decisions import Decision, Pair, Verdict
from esper.leyline.evidence import (
    GradientProbe,
    HostObservation,
    ResetProbe,
    SampleLosses,
    SeedObservation,
)
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
from esper.leyline.reports import Amendment, FieldReport, GraftPlan, GraftReceipt, HostPlan, Weights
from esper.leyline.signals import EmergencySignal
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView, RoundState, TrainingState


class Policy(Protocol):
    """Decides which seeds to try. A pure function of its arguments."""

    name: str
    version: str

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Return some of the eligible pairs, or a hold with a reason."""
        ...


class HostEditor(Protocol):
    """Kasmina's part in the trainer process: attaches seeds to one host and detaches them without a trace."""

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed. The caller has verified that its weights have the plan's digest."""
        ...

    def amend(self, change: Amendment) -> None:
        """Change a seed that stays in the host. Its plan in `topology` shows the change."""
        ...

    def remove(self, seed_id: str) -> None:
        """Detach a seed without a trace."""
        ...

    def release(self) -> None:
        """Make every seed an ordinary part of the host. The editor must not be used afterwards."""
        ...

    def set_alphas(self, step: int) -> None:
        """Set every seed's alpha for optimizer step `step`."""
        ...

    def topology(self) -> tuple[GraftPlan, ...]:
        """Return the current plans of all grafted seeds, in graft order: they rebuild the present host."""
        ...

    def parameters_of(self, seed_id: str) -> Sequence[Any]:  # Any: torch.nn.Parameter
        """Return a seed's trainable parameters, in name order."""
        ...

    def tensors(self) -> Mapping[str, Any]:  # Any: torch.Tensor
        """Return all parameters and buffers of all seeds, by names that do not depend on the run's id."""
        ...

    def set_training(self, training: bool) -> None:
        """Put every seed into training or evaluation mode."""
        ...

    def audit(self) -> None:
        """Walk the autograd graph of the last forward pass.

        Raises:
            IsolationViolation: an isolated seed's branch reaches host parameters.
        """
        ...

    def watched(self) -> tuple[str, ...]:
        """Return the ids of the isolated seeds whose last branch is stored. A slot that was not called has none."""
        ...

    def watch(self, on: bool) -> None:
        """Start or stop storing the branches of forward passes, for `audit`."""
        ...

    def observations(self) -> tuple[SeedObservation, ...]:
        """Return the observations of each seed since the last call, and start new ones."""
        ...


class Fork(Protocol):
    """A copy of the host in training: a control, a seeded fork, or the twin. It may be in any process.

    Call order: `graft`, if there is a candidate, before all other methods.
    """

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a candidate."""
        ...

    def train_to(self, step: int) -> tuple[float, ...]:
        """Train up to optimizer step `step` (of the run); returns the loss of each step."""
        ...

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """Losses on the slice of a shard that belongs to a fence."""
        ...

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """Return the observations of the seeds since the last call, and the paths of the host's layers."""
        ...

    def shard_means(self, shard: str) -> dict[str, float]:
        """Mean loss ("loss") and metrics over a whole shard."""
        ...

    def weights_sha256(self) -> str:
        """Digest of all weights and buffers."""
        ...

    def snapshot(self) -> Any:  # Any: a HostSnapshot of Tolaria, or a reference; opaque to the caller
        """Return the whole state that the fork's further training depends on."""
        ...


class ProbedFork(Fork, Protocol):
    """A fork in this process, on which candidates are measured one after the other: `graft`, measure, `remove`."""

    def remove(self, seed_id: str) -> None:
        """Detach a candidate, so that another can be grafted."""
        ...

    def activation(self, slot: str) -> Any:  # Any: torch.Tensor
        """Return the slot's output, seeds included, on the next training batch. The host is not changed."""
        ...

    def probe_gradients(self, seed_id: str, batches: int) -> GradientProbe:
        """Run backward passes on the next training batches, without an update."""
        ...


AnyFork = TypeVar("AnyFork", bound=Fork, covariant=True)


class ForkFactory(Protocol[AnyFork]):
    """Makes forks from snapshots."""

    def __call__(self, snapshot: Any) -> AnyFork:  # Any: as `Fork.snapshot`
        ...


# -- ports of the fence loop: in one process the objects themselves, across processes their handles ----------------


class LiveHost(Protocol):
    """Tolaria's port: the live host, the network that the run trains.

    Call order of a round: `run_round`; at the fence after it `sample_losses` and `observe`, each at most once, then
    `apply` for each plan, and `save` last. `saved` follows each `save`, before the next one. `roll_back` and `restore`
    are called between fences, when every process is running; `first_step_at` refers to the time since the last of these
    calls.
    """

    def untrained(self) -> TrainingState:
        """Return the training state at fence 0, before the first step."""
        ...

    def run_round(self, fence: int, last_step: int) -> TrainingState:
        """Train up to step `last_step`, which ends at fence `fence`."""
        ...

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """Losses on the slice of a shard that belongs to a fence."""
        ...

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """Return the observations of the seeds, and the paths of the host's layers."""
        ...

    def snapshot(self) -> Any:  # Any: as `Fork.snapshot`, or a reference to it
        """Return the whole state that the host's further training depends on, for the incubation; opaque to others."""
        ...

    def apply(self, plan: HostPlan, weights: Weights) -> GraftReceipt:
        """Apply a plan, once. Only a graft reads its weights."""
        ...

    def compare_with_unseeded(self, seeds: Mapping[str, str]) -> Mapping[str, ResetProbe]:
        """Compare the slot of each removed seed with the same slot of a host that never had the seed."""
        ...

    def shard_means(self, shard: str) -> dict[str, float]:
        """Mean loss ("loss") and metrics over a whole shard."""
        ...

    def weights_sha256(self) -> str:
        """Digest of all weights and buffers."""
        ...

    def parameter_count(self) -> int:
        """Return the number of elements of all parameters, seeds included."""
        ...

    def first_step_at(self) -> float | None:
        """Return the Unix time of the end of the first step since the host was made or restored. None: no step yet."""
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
        """Restore the state last copied by `copy_state` or `save`, in a newer generation. None: there is no copy."""
        ...

    def restore(self, snapshot: Any, generation: int) -> None:  # Any: as `snapshot`
        """Restore the state of a snapshot, in the same or a newer generation."""
        ...


class Decider(Protocol):
    """Tamiyo's port.

    Call order at a fence: `advance` until it returns None, then `decide` once; both get the state after all earlier
    changes. `remember` is called for each field report, before the next of these. `state` comes last.
    """

    def remember(self, report: FieldReport) -> None:
        """Add a field report to the past that the policy gets."""
        ...

    def advance(self, state: RoundState) -> Command | None:
        """Return the command for the first seed whose next gate is due. None: no gate is due."""
        ...

    def decide(self, state: RoundState) -> Verdict:
        """Decide what to germinate at this fence."""
        ...

    def state(self) -> str:
        """Return the state on which further decisions depend, as text."""
        ...

    def restore(self, state: str, generation: int) -> None:
        """Restore a state that `state` returned."""
        ...


class Registrar(Protocol):
    """The port of Kasmina's registry.

    Call order at a fence: `view` once, first. Then `conclude` if the view's `due` is set, `compare` if its
    `compares_with_twin` is set, `advance` for each seed that is due, `reset` if it has `resetting` seeds, and `receive`
    and `carry_out` for the command that germinates. `compare` and `receive` do not change the view; each other call
    returns the view after it, so that `view` is not called again at this fence. `state` comes last, for the checkpoint.
    A command is journaled before it is sent.

    After `restore`, which is called between fences, `order` returns the tournament that must be begun again.
    """

    def view(self, fence: int) -> RegistryView:
        """Return the view of the registry at a fence."""
        ...

    def advance(self, command: Command, fence: int, observation: HostObservation | None) -> Changed:
        """Admit a command for one seed and carry it out as far as the gates allow.

        Args:
            observation: Observation of the live host at this fence. None for a command that no gate judges.
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
        """Record a tournament's results. Call it at the fence at which the view is due, before any command."""
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
        """Return the order in flight, to be begun again after a restore. None: there is no tournament in flight."""
        ...


class Inbox(Protocol):
    """The conductor's port to the emergency queue. Call `pending`, journal the signals, then `acknowledge`."""

    def pending(self) -> tuple[EmergencySignal, ...]:
        """Return some signals that are not acknowledged, the most urgent first. Empty: the queue is empty."""
        ...

    def acknowledge(self, signal_ids: Sequence[str]) -> None:
        """Remove signals from the queue: they are durable elsewhere."""
        ...

    def close(self) -> None:
        """Refuse new signals from now on; `pending` still returns those that were accepted before."""
        ...


class Incubation(Protocol):
    """The port of Kasmina's incubation: forks of the live host, and the twin.

    Call order of a tournament: `probe_candidates`, `begin` at the same fence, `collect` at the fence at which it is
    due, and `keep_twin` before the next `begin`, if its control becomes the twin. The twin is trained by `advance_twin`
    once a round, before `twin_losses` of that fence. `state` is called at a fence, after all of these; `restore`
    between fences, before the `begin` of an order that was in flight.
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
        """Accept an order. It may run in the background; `collect` waits for it."""
        ...

    def collect(self) -> IncubationResult:
        """Wait for the order that was begun, and return its result."""
        ...

    def keep_twin(self) -> None:
        """Make the last tournament's control the run's twin."""
        ...

    def advance_twin(self, step: int) -> None:
        """Train the twin up to an optimizer step, perhaps in the background; `twin_losses` and `twin_report` wait."""
        ...

    def twin_losses(self, fence: int) -> SampleLosses:
        """Return the twin's losses on this fence's slice of the gate shard."""
        ...

    def twin_report(self) -> TwinReport:
        """Return the report on the twin."""
        ...

    def state(self, fence: int) -> Mapping[str, Any]:  # Any: plain values and snapshots
        """Return `twin`: its snapshot or None; `twin_steps`; `origin`: the snapshot from which the tournament in flight
        began, None if it began at this fence or there is no tournament."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: as `state`
        """Restore the twin of `state`, if it has one. A tournament in flight is abandoned; `begin` begins it again."""
        ...
