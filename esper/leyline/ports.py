"""Ports: what one room asks of another without importing it.

`Any` stands where torch's types would: this room may not name torch. The rooms on both sides give the exact type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from esper.leyline.decisions import Decision, Pair
from esper.leyline.evidence import GradientProbe, SampleLosses, SeedObservation
from esper.leyline.reports import FieldReport, GraftPlan
from esper.leyline.state import RoundState


class Policy(Protocol):
    """Decides what to try. A pure function of what it is given."""

    name: str
    version: str

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Name some of the eligible pairs, or hold with a reason."""
        ...


class HostEditor(Protocol):
    """Kasmina's hands inside the trainer: attaches seeds to one host and detaches them without a trace."""

    def graft(self, plan: GraftPlan) -> None:
        """Attach a seed; its weights are the plan's, verified by the caller."""
        ...

    def join(self, seed_id: str) -> None:
        """End a seed's isolation."""
        ...

    def remove(self, seed_id: str) -> None:
        """Detach a seed without a trace."""
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

    def watch(self, on: bool) -> None:
        """Keep (or stop keeping) the branches of the next forward pass, for `audit`."""
        ...

    def observations(self) -> tuple[SeedObservation, ...]:
        """What was seen of each seed since the last call; counting starts again."""
        ...


class Fork(Protocol):
    """A host in training that is not the live one: a control, a seeded fork, or the twin."""

    def graft(self, plan: GraftPlan) -> None:
        """Attach a candidate."""
        ...

    def remove(self, seed_id: str) -> None:
        """Detach a candidate."""
        ...

    def activation(self, slot: str) -> Any:  # Any: torch.Tensor
        """The slot's output, seeds included, on the next training batch; the host is not changed."""
        ...

    def probe_gradients(self, seed_id: str, batches: int) -> GradientProbe:
        """Backward passes on the next training batches, without an update."""
        ...

    def train_to(self, step: int) -> tuple[float, ...]:
        """Train up to optimizer step `step` (of the run); returns the loss of each step."""
        ...

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """Losses on the slice of a shard that belongs to a fence."""
        ...

    def shard_means(self, shard: str) -> dict[str, float]:
        """Mean loss ("loss") and metrics over a whole shard."""
        ...

    def weights_sha256(self) -> str:
        """Digest of all weights and buffers."""
        ...

    def snapshot(self) -> Any:  # Any: esper.tolaria.snapshot.HostSnapshot; whoever holds it does not look inside
        """Everything that its future depends on."""
        ...


class ForkFactory(Protocol):
    """Makes forks from snapshots."""

    def __call__(self, snapshot: Any) -> Fork:  # Any: as `Fork.snapshot`
        ...
