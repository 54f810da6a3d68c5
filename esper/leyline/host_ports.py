"""Ports inside a process that trains a host. Through these ports Kasmina edits Tolaria's host, and measures on
Tolaria's forks.

Types of torch are written `Any`, because this room may not import torch. The exact types are in the rooms that use the
ports.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from esper.leyline.evidence import GradientProbe, HostObservation, SampleLosses, SeedObservation
from esper.leyline.reports import Amendment, GraftPlan, Weights
from esper.leyline.stages import Stage
from esper.leyline.state import BlendReport


class HostEditor(Protocol):
    """Attaches seeds to one host, and detaches them without a trace. Kasmina implements this port, and Tolaria calls
    it.
    """

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed. The caller has verified that the weights have the digest in the plan."""
        ...

    def amend(self, change: Amendment) -> None:
        """Change a seed that stays in the host. Afterwards `topology` returns the changed plan of the seed."""
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

    def blend_reports(self) -> tuple[BlendReport, ...]:
        """Return, for each seed, a summary of the alphas that were set since the last call."""
        ...

    def topology(self) -> tuple[GraftPlan, ...]:
        """Return the current plans of all grafted seeds, in graft order. A fresh host to which these plans are applied
        has the same seeds as this host.
        """
        ...

    def parameters_of(self, seed_id: str) -> Sequence[Any]:  # Any: torch.nn.Parameter
        """Return a seed's trainable parameters, in name order."""
        ...

    def tensors(self) -> Mapping[str, Any]:  # Any: torch.Tensor
        """Return all parameters and buffers of all seeds by name. The names do not depend on the run's id, so two runs
        with the same growth have the same names."""
        ...

    def blend_tensors(self, step: int) -> Mapping[str, Any]:  # Any: torch.Tensor
        """Return the alpha at an optimizer step and the vector of each seed, as the seed's plan determines them. The
        names are those in `tensors`."""
        ...

    def modules(self) -> Mapping[str, Any]:  # Any: torch.nn.Module
        """Return the module of each seed. The key is the first part of the names that the seed's tensors have in
        `tensors`."""
        ...

    def set_training(self, training: bool) -> None:
        """Put every seed into training or evaluation mode."""
        ...

    def audit(self) -> None:
        """Report what the seeds have changed outside themselves since the last call, and walk the autograd graph of the
        last watched forward pass.

        Raises:
            IsolationViolation: a seed reached or changed the host or another seed.
        """
        ...

    def watched(self) -> tuple[str, ...]:
        """Return the ids of the seeds that `audit` can judge. A seed whose slot was not called is left out."""
        ...

    def watch(self, on: bool, batch: Any = None, leave_out: Collection[str] = ()) -> None:  # Any: a batch of the task
        """Start or stop recording forward passes of `batch` for `audit`. The seeds in `leave_out` are not recorded."""
        ...

    def record(self) -> Mapping[str, Any]:  # Any: a digest
        """Return the digests of everything in the host and its seeds that a candidate must not change, by name."""
        ...

    def calls(self, seed_id: str) -> int:
        """Return the number of a seed's calls since the last call of `observations`."""
        ...

    def observations(self) -> tuple[SeedObservation, ...]:
        """Return what was observed of each seed since the last call of this method."""
        ...


class Fork(Protocol):
    """A copy of the host in training, in this or another process: a control, a fork with a candidate, or the twin.
    `graft` attaches a candidate and must be called before every other method.
    """

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a candidate."""
        ...

    def train_to(self, step: int) -> tuple[float, ...]:
        """Train up to optimizer step `step` of the run. Return the loss of each step."""
        ...

    def sample_losses(self, shard: str, fence: int, units: int | None = None) -> SampleLosses:
        """Return the losses on the slice of a shard that belongs to a fence.

        Args:
            units: Number of samples, or of groups, in the slice. A smaller slice is the first part of a larger one.
                None: the number that a fence draws.
        """
        ...

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """Return the observations of the seeds since the last call, and the paths of the host's layers."""
        ...

    def shard_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """Return the mean loss ("loss") and the metrics over a shard, or over `most` of its samples."""
        ...

    def weights_sha256(self) -> str:
        """Return the digest of all weights and buffers."""
        ...

    def snapshot(self) -> Any:  # Any: a HostSnapshot of Tolaria, or a reference; opaque to the caller
        """Return the whole state on which the fork's further training depends."""
        ...


class ProbedFork(Fork, Protocol):
    """A fork in this process that measures candidates one after the other. Call order for each: `graft`, the
    measurements, `remove`."""

    def remove(self, seed_id: str) -> None:
        """Detach the candidate, so that the next candidate can be grafted."""
        ...

    def activation(self, slot: str) -> Any:  # Any: torch.Tensor
        """Return the output of the slot, seeds included, on the next training batch. The host is not changed."""
        ...

    def held(self) -> Mapping[str, Any]:  # Any: a digest
        """Return the digests of everything in the fork that a candidate must not change, by name."""
        ...

    def changed_since(self, before: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of everything that has changed since `held` returned `before`."""
        ...

    def probe_gradients(self, seed_id: str, batches: int) -> GradientProbe:
        """Run backward passes on the next training batches, without an update."""
        ...


AnyFork = TypeVar("AnyFork", bound=Fork, covariant=True)


class ForkFactory(Protocol[AnyFork]):
    """A function that makes forks from snapshots."""

    def __call__(self, snapshot: Any) -> AnyFork:  # Any: as `Fork.snapshot`
        ...
