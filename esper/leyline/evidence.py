"""Measured evidence: what gates judge. `None` means "was not measured", never "fine"."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from esper.leyline.base import Message
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage


class SampleLosses(Message):
    """Losses of one network on one slice of a shard, sample by sample, in the slice's order."""

    shard: str
    fence: int
    losses: tuple[float, ...]
    groups: tuple[int, ...] | None = None
    """Group of each sample where samples are correlated; None: every sample stands alone."""


class PairedLosses(Message):
    """`d = control - seeded`, paired by sample (averaged per group where there are groups)."""

    shard: str
    fence: int
    count: int
    """Pairs, or groups of pairs."""
    grouped: bool
    mean: float
    sd: float
    """Sample standard deviation (n - 1)."""
    z: float
    """`mean / sqrt(sd^2 / count)`; 0 where sd is 0 (no difference is no improvement)."""
    control_mean: float

    @property
    def relative_gain(self) -> float:
        """`mean / |control_mean|`: the share of the control's loss that the seed took away; of no loss, none."""
        if self.control_mean == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / abs(self.control_mean)


class PerformanceStatus(StrEnum):
    """How a seed runs, measured against what was asked."""

    NOMINAL = "nominal"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FALLBACK = "fallback"


class Marks(Message):
    """What every gate looks at first."""

    recorded_stage: Stage
    evidence_stage: Stage
    command_fallbacks: tuple[str, ...] = ()
    """As the command carries them; empty where no command asked for the judgement."""
    evidence_fallbacks: tuple[str, ...] | None = None
    """What ran otherwise than asked while the evidence was taken; None: no run of the seed was looked at."""


class SanityProbe(Message):
    """What was measured of a candidate's module on the slot's own activations."""

    parameters: int
    parameter_bytes: int
    parameters_finite: bool
    output_shape: tuple[int, ...]
    """Of one sample, without the batch."""
    slot_shape: tuple[int, ...]
    """Of one sample of the slot's output that the module was given."""
    output_dtype: str
    causality_leak: float | None
    """Largest relative movement before a perturbed position; None where the slot is not causal."""
    sample_leak: float | None
    """Largest relative movement of another sample; None where the host itself mixes samples."""


class SanityEvidence(Message):
    """For G0."""

    marks: Marks
    ids: dict[str, str]
    blueprint_known: bool
    probe: SanityProbe | None
    """None where the blueprint is not known."""
    spec: SlotSpec | None
    """None where the slot is not known."""
    added_parameters: int
    """This seed's and those of every seed that is in the host or on its way."""
    parameter_budget: int
    memory_ratio: float | None
    """Parameter bytes of the seed over the host's; None where there is no probe."""
    memory_budget: float


class GradientProbe(Message):
    """Backward passes through one grafted seed, one per probe batch, in its isolated form, without an update."""

    batches: int
    nonfinite: int
    """Entries of the seed's gradients that are not finite."""
    norm: float
    """Largest global norm of the seed's gradients over the batches."""
    reachable_host_parameters: tuple[str, ...]


class GradientEvidence(Message):
    """For G1."""

    marks: Marks
    probe: GradientProbe | None


class StabilityEvidence(Message):
    """For G2."""

    marks: Marks
    steps: int
    required_steps: int
    rank: int | None
    """Place in its tournament by mean paired gain on the pick shard; 1 is first; None: it left at the halving."""
    pairs: PairedLosses | None
    loss_variation: float | None
    """Scatter of the fork's training loss over its mean, second half of the probe."""
    carried: PairedLosses | None = None
    """A replica's: the G2 evidence of the winner it repeats."""
    carried_from: str | None = None
    carried_age_fences: int | None = None


class SeedObservation(Message):
    """What the trainer saw of one grafted seed since the last fence."""

    seed_id: str
    slot: str
    stage: Stage | None = None
    """The stage that was recorded when the observation was asked for."""
    alpha: float
    alpha_target: float
    calls: Annotated[int, Field(ge=0)]
    output_shape: tuple[int, ...] | None
    """Of the last call."""
    slot_shape: tuple[int, ...] | None = None
    """Of one sample of the slot's own output in the last call."""
    output_dtype: str | None
    """Of every call; several, joined by "and", where calls differed. So are the next two."""
    device: str | None
    """Of the output and of the seed's own tensors."""
    path: str | None
    """Code path that ran: "eager" or "compiled"."""
    asked_dtype: str
    """The slot's."""
    asked_device: str
    asked_path: str
    """How the host itself is called at the slot."""
    isolated: bool
    """The seed's input is detached, so that its isolation can be audited."""
    isolation_leaks: tuple[str, ...] | None = None
    """Host parameters that the audits found within its reach; None: none was made."""

    @property
    def fallbacks(self) -> tuple[str, ...] | None:
        """In what it ran otherwise than asked, each beside what was asked; None: it was not seen running."""
        if self.output_dtype is None or self.device is None or self.path is None:
            return None
        ran = (
            ("dtype", self.output_dtype, self.asked_dtype),
            ("device", _device(self.device), _device(self.asked_device)),
            ("path", self.path, self.asked_path),
        )
        return tuple(f"{what} {seen}, asked {asked}" for what, seen, asked in ran if seen != asked)


def _device(name: str) -> str:
    return name.removesuffix(":0")  # "cuda" asked and "cuda:0" seen are one device


class HostObservation(Message):
    """What the trainer measured of the live host at a fence."""

    fence: int
    registered_layers: tuple[str, ...]
    """Paths of the modules that the host has at this fence."""
    seeds: tuple[SeedObservation, ...]


class InterfaceEvidence(Message):
    """For G3."""

    marks: Marks
    alpha: float
    alpha_target: float
    output_shape: tuple[int, ...] | None
    expected_shape: tuple[int, ...] | None
    output_dtype: str | None
    expected_dtype: str
    device: str | None
    expected_device: str
    required_mesh: tuple[str, ...]
    registered_layers: tuple[str, ...]
    isolation_leaks: tuple[str, ...] | None = None
    """Host parameters that audits of the live host found within reach of the seed; None: it never was isolated."""


class ImpactEvidence(Message):
    """For G4."""

    marks: Marks
    status: PerformanceStatus | None
    twin_kept: bool
    twin_zs: tuple[float, ...] | None
    """z of (twin - live) at each fence since the seed's alpha reached its target; None where no twin is kept."""
    cost_ratio: float
    """Modelled FLOPs of the seed over the host's."""
    cost_budget: float
    memory_ratio: float
    """Parameter bytes of the seed over the host's."""
    memory_budget: float
    isolation_leaks: tuple[str, ...] | None
    """As for G3."""


class ResetProbe(Message):
    """The host after a removal beside a host rebuilt without the seed."""

    seed_left: bool
    """The seed's tensors are still among the host's."""
    optimizers_left: int
    hooks_left: int
    """Forward hooks at the slot beyond those that belong there."""
    output_equal: bool
    """The slot's output on the next batch, bit for bit."""
    flags_equal: bool
    """`requires_grad` of every host parameter."""
    names_equal: bool
    """Names of modules and of the state dict."""


class ResetEvidence(Message):
    """For G5. No command asks for it and no seed runs: there are no marks to look at."""

    probe: ResetProbe | None
