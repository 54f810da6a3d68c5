"""Ports: what one room asks of another without importing it.

`Any` stands where torch's types would: this room may not name torch. The rooms on both sides give the exact type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from esper.leyline.checkpoint_record import CheckpointWritten, MemoryCopy
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
from esper.leyline.reports import FieldReport, GraftPlan, GraftReceipt, HostPlan, Weights
from esper.leyline.signals import EmergencySignal
from esper.leyline.stages import Stage
from esper.leyline.state import RegistryView, RoundState, TrainingState


class Policy(Protocol):
    """Decides what to try. A pure function of what it is given."""

    name: str
    version: str

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Name some of the eligible pairs, or hold with a reason."""
        ...


class HostEditor(Protocol):
    """Kasmina's hands inside the trainer: attaches seeds to one host and detaches them without a trace."""

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed. The caller has verified that its weights have the plan's digest."""
        ...

    def join(self, seed_id: str) -> None:
        """End a seed's isolation."""
        ...

    def remove(self, seed_id: str) -> None:
        """Detach a seed without a trace."""
        ...

    def release(self) -> None:
        """Make every seed an ordinary part of the host. The editor is not to be used again."""
        ...

    def set_alphas(self, step: int) -> None:
        """Set every seed's alpha for optimizer step `step`."""
        ...

    def topology(self) -> tuple[GraftPlan, ...]:
        """The plans that rebuild what is grafted now, in graft order, as they stand now."""
        ...

    def parameters_of(self, seed_id: str) -> Sequence[Any]:  # Any: torch.nn.Parameter
        """A seed's trainable parameters, in name order."""
        ...

    def tensors(self) -> Mapping[str, Any]:  # Any: torch.Tensor
        """All tensors of all seeds, parameters and buffers, by names that do not depend on the run's id."""
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
        """Ids of the isolated seeds whose branch of the last forward pass is kept; a skipped slot leaves none."""
        ...

    def watch(self, on: bool) -> None:
        """Keep (or stop keeping) the branches of the next forward pass, for `audit`."""
        ...

    def observations(self) -> tuple[SeedObservation, ...]:
        """What was seen of each seed since the last call; counting starts again."""
        ...


class Fork(Protocol):
    """A host in training that is not the live one: a control, a seeded fork, or the twin. It may be in any process.

    Call order: `graft`, if a candidate is tried, comes before all other methods.
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
        """What the host shows of its seeds since it was last observed, and of its layers."""
        ...

    def shard_means(self, shard: str) -> dict[str, float]:
        """Mean loss ("loss") and metrics over a whole shard."""
        ...

    def weights_sha256(self) -> str:
        """Digest of all weights and buffers."""
        ...

    def snapshot(self) -> Any:  # Any: a HostSnapshot of Tolaria, or a reference to it; its holder does not look inside
        """Everything that the fork's future depends on."""
        ...


class ProbedFork(Fork, Protocol):
    """A fork in this process, on which candidates are measured one after the other: `graft`, measure, `remove`."""

    def remove(self, seed_id: str) -> None:
        """Detach a candidate; another may be grafted then."""
        ...

    def activation(self, slot: str) -> Any:  # Any: torch.Tensor
        """The slot's output, seeds included, on the next training batch; the host is not changed."""
        ...

    def probe_gradients(self, seed_id: str, batches: int) -> GradientProbe:
        """Backward passes on the next training batches, without an update."""
        ...


AnyFork = TypeVar("AnyFork", bound=Fork, covariant=True)


class ForkFactory(Protocol[AnyFork]):
    """Makes forks from snapshots."""

    def __call__(self, snapshot: Any) -> AnyFork:  # Any: as `Fork.snapshot`
        ...


# -- the four that the line goes through: in one process the objects themselves, across processes their handles ----


class LiveHost(Protocol):
    """Tolaria, as the line calls it: the host whose training the run is for.

    Call order of a round: `run_round`; at the fence after it `sample_losses` and `observe`, each at most once, then
    `apply` for each plan, and `save` last. `saved` follows each `save`, before the next one. `roll_back` and `restore`
    are called between fences, when every process is up; `first_step_at` counts from the last of them.
    """

    def untrained(self) -> TrainingState:
        """The state at fence 0."""
        ...

    def run_round(self, fence: int, last_step: int) -> TrainingState:
        """Train up to step `last_step`, which ends at fence `fence`."""
        ...

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """Losses on the slice of a shard that belongs to a fence."""
        ...

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """What the host shows of its seeds and layers."""
        ...

    def snapshot(self) -> Any:  # Any: as `Fork.snapshot`, or a reference to it
        """Everything that the host's future depends on; for the nursery, unseen by others."""
        ...

    def apply(self, plan: HostPlan, weights: Weights) -> GraftReceipt:
        """Apply a plan, once. Only a graft reads its weights."""
        ...

    def compare_with_unseeded(self, seeds: Mapping[str, str]) -> Mapping[str, ResetProbe]:
        """Each removed seed's slot beside the same slot of a host that never had the seed."""
        ...

    def shard_means(self, shard: str) -> dict[str, float]:
        """Mean loss ("loss") and metrics over a whole shard."""
        ...

    def weights_sha256(self) -> str:
        """Digest of all weights and buffers."""
        ...

    def parameter_count(self) -> int:
        """Elements of all parameters, the seeds' included."""
        ...

    def first_step_at(self) -> float | None:
        """Unix time at which the first step since it was made or restored was done; None: none was yet."""
        ...

    def save(self, path: Path, rooms: Mapping[str, str], nursery: Mapping[str, Any]) -> None:  # Any: Nursery.state
        """Begin to write the present state, with that of the other rooms, to a file never used before."""
        ...

    def saved(self) -> CheckpointWritten:
        """The record of the last save, once it is durable; may be asked while a round runs."""
        ...

    def keep(self, fence: int) -> MemoryCopy:
        """Copy the present state into memory, for `roll_back`."""
        ...

    def roll_back(self, generation: int) -> MemoryCopy | None:
        """Restore what was last kept or saved, from memory, in a newer generation; None: nothing was."""
        ...

    def restore(self, snapshot: Any, generation: int) -> None:  # Any: as `snapshot`
        """Become what the snapshot was taken of, in a generation that is not older."""
        ...


class Decider(Protocol):
    """Tamiyo, as the line calls it.

    Call order at a fence: `advance` until it answers None, then `decide` once; both are given the state after every
    change that came before. `remember` is called for each field report, before the next of these. `state` comes last.
    """

    def remember(self, report: FieldReport) -> None:
        """Add a field report to what the policy sees of the past."""
        ...

    def advance(self, state: RoundState) -> Command | None:
        """The command for the first seed whose next gate is due."""
        ...

    def decide(self, state: RoundState) -> Verdict:
        """What to germinate at this fence."""
        ...

    def state(self) -> str:
        """All that decides what will be decided, as text."""
        ...

    def restore(self, state: str, generation: int) -> None:
        """Become what `state` says."""
        ...


class Registrar(Protocol):
    """Kasmina's registry, as the line calls it.

    Call order at a fence: `view` once, at its beginning. Then `conclude` where the view is due, `compare` where it
    compares with the twin, `advance` for each seed that is due, `reset` where seeds are resetting, and `receive` and
    `carry_out` for the command that germinates. `compare` and `receive` change nothing that a view shows; each of the
    others answers with the view after it, so that `view` is not asked again at this fence. `state` comes last, for the
    checkpoint. A command is in the journal before it is sent.

    After `restore`, which is called between fences, `order` gives what has to be begun again.
    """

    def view(self, fence: int) -> RegistryView:
        """All that the line must know of the registry at a fence."""
        ...

    def advance(self, command: Command, fence: int, observation: HostObservation) -> Changed:
        """Admit a command for one seed and do what it asks, as far as the gates let it.

        Args:
            observation: Of the live host at this fence.
        """
        ...

    def receive(self, command: Command, fence: int) -> Received:
        """Admit a command to germinate. Call it before `carry_out` of that command."""
        ...

    def carry_out(self, command_id: str, fence: int, probes: Sequence[CandidateProbe]) -> Changed:
        """Germinate, as an admitted command asks and as far as the gates let it.

        Args:
            probes: What was measured of the plans that `receive` gave.
        """
        ...

    def conclude(self, result: IncubationResult, fence: int) -> Changed:
        """Enter a tournament's results. Call it at the fence at which the view is due, before any command."""
        ...

    def compare(self, live: SampleLosses, twin: SampleLosses) -> Compared:
        """Enter a fence's comparison of the live host with its twin. Call it before the commands of that fence."""
        ...

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Changed:
        """G5 for every seed in the view's `resetting`."""
        ...

    def state(self) -> str:
        """All that decides what the registry will answer, as text."""
        ...

    def restore(self, state: str, generation: int) -> None:
        """Become what `state` says, in a generation that is not older."""
        ...

    def order(self) -> InFlight | None:
        """The order in flight, to be begun again after a restore."""
        ...


class Inbox(Protocol):
    """The queue of emergency signals, as the conductor reads it: `pending`, then the journal, then `acknowledge`."""

    def pending(self) -> tuple[EmergencySignal, ...]:
        """Some signals that were not acknowledged yet, the most urgent first; none: the queue is empty."""
        ...

    def acknowledge(self, signal_ids: Sequence[str]) -> None:
        """These signals are durable elsewhere and need not come again."""
        ...

    def close(self) -> None:
        """Take no new signal from now on; `pending` still gives what was taken before."""
        ...


class Nursery(Protocol):
    """Kasmina's incubation, as the line calls it: forks, off the live host, and the twin.

    Call order of a tournament: `probe_candidates`, `begin` at the same fence, `collect` at the fence at which it is
    due, and `keep_twin` before the next `begin`, if its control is to live on. The twin is trained by `advance_twin`
    once a round, before `twin_losses` of that fence. `state` is called at a fence, after all of these; `restore`
    between fences, before the `begin` of an order that was in flight.
    """

    def probe_candidates(
        self,
        plans: Sequence[GraftPlan],
        weights: Weights,
        snapshot: Any,  # Any: from LiveHost.snapshot
    ) -> Sequence[CandidateProbe]:
        """Measure candidates before they may train."""
        ...

    def begin(self, order: IncubationOrder, weights: Weights, snapshot: Any) -> None:  # Any: from LiveHost.snapshot
        """Take an order; it may run from now on, and `collect` waits for it."""
        ...

    def collect(self) -> IncubationResult:
        """The result of the order that was begun."""
        ...

    def keep_twin(self) -> None:
        """The last tournament's control becomes the run's twin."""
        ...

    def advance_twin(self, step: int) -> None:
        """Let the twin train up to an optimizer step; it may do so from now on, and the next two wait for it."""
        ...

    def twin_losses(self, fence: int) -> SampleLosses:
        """The twin's losses on this fence's slice of the gate shard."""
        ...

    def twin_report(self) -> TwinReport:
        """What the twin came to."""
        ...

    def state(self, fence: int) -> Mapping[str, Any]:  # Any: plain values and snapshots
        """`twin`: a snapshot of it, or None; `twin_steps`; `origin`: what the tournament in flight began from, None
        if it began at this fence or there is none."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:  # Any: as `state`
        """Keep the twin of `state`, if it has one. What was in flight is given up; an order is begun by `begin`."""
        ...
