"""Measures shape, causality and sample independence of a seed for the gate G0.

If a seed reads a later position or another sample, it can read the answer and appears to learn well. This is a leak.
The last layer of a new seed is zero, so no leak would show. Therefore leaks are measured on a double-precision copy
with random parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.errors import DependencyViolationError, EvidenceMissing, SeedBuildFailed
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.fallbacks import fallbacks_told, heard
from esper.kasmina.blueprints.padded import takes_padding
from esper.kasmina.blueprints.precision import as_slot, named
from esper.kasmina.host.perturbation import with_noise
from esper.leyline.slots import SlotSpec
from esper.user_code.their_code import their_code

MODES: tuple[bool, ...] = (True, False)
SAMPLES = 4
"""Number of samples that are perturbed in the whole batch, one at a time."""
OTHER_DRAWS: tuple[Callable[[Tensor], Tensor], ...] = (torch.neg, torch.abs)
"""Changes of the random parameters for further measurements, in evaluation mode and on `SAMPLES` samples, because each
takes time. A gate such as `relu(weight)` is shut for parameters below 0, and a product of two such gates for all but
those above 0."""
COPIES = 64
"""Number of positions that are perturbed in one forward, each in a separate copy. This limits the memory if T is large.
"""

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SeedSanity:
    """The measurements of one seed."""

    shape: tuple[int, ...]
    """Shape of one sample's output. If the two modes differ, this is the shape that does not fit the slot."""
    slot_shape: tuple[int, ...]
    """Shape of one sample of the slot's output. This output is the seed's input."""
    dtype: str
    parameters: int
    parameter_bytes: int
    parameters_finite: bool
    causality_leak: float | None
    """Largest change of the output before a perturbed position, divided by the largest output. None: the slot is not
    causal, or the shape is wrong."""
    sample_leak: float | None
    """Largest change of another sample's output, divided by the largest output. None: the host mixes samples, or the
    shape is wrong."""
    told: tuple[str, ...]
    """The fallbacks that the seed reported while it was built, and while shape and dtype were measured."""


def probe_seed(module: nn.Module, spec: SlotSpec, sample_h: Tensor, blueprint: str) -> SeedSanity:
    """Run copies of a seed on activations of its slot, in training and in evaluation mode.

    The module and all global random states are unchanged afterwards. Each forward starts from the same random state, so
    dropout causes no difference. A seed that mixes samples by batch statistics is found in training mode.

    Args:
        sample_h: A batch of the slot's output, [B, ...], two samples or more, in the slot's dtype and layout. Its
            length, height and width may differ from the spec.

    Raises:
        DependencyViolationError: `sample_h` does not have the channels or the dtype of the slot's output.
        EvidenceMissing: `sample_h` has only one sample, and the slot's samples are independent.
        SeedBuildFailed: the seed raised, or its output cannot be measured. `__cause__` is the error.
    """
    h = sample_h.detach()
    if not spec.fits(tuple(h.shape[1:])) or str(h.dtype) != spec.dtype:
        planned = f"an activation of its shape and type, as the plan saw it: {spec.dtype}"
        mend = "a slot must return the same number of channels and the same type in every step"
        raise DependencyViolationError(f"slot {spec.path}", planned, f"got {tuple(h.shape)} {h.dtype}; {mend}")
    if any(_must_keep_samples_apart(spec, training) for training in MODES) and len(h) < 2:
        raise EvidenceMissing("G0", "samples in the batch that tests independence", len(h), 2)
    try:
        with their_code(f"blueprint {blueprint}", f"forward at {spec.path}"):
            return _probe(module, spec, h)
    except Exception as error:
        raise SeedBuildFailed(blueprint, spec.path, "forward") from error


def _probe(module: nn.Module, spec: SlotSpec, h: Tensor) -> SeedSanity:
    parameters, slot_shape = list(module.parameters()), tuple(h.shape[1:])
    told = dict.fromkeys(fallbacks_told(module))
    shape, dtype = _interface(module, spec, h, told)
    causality = sample = None
    if shape == slot_shape:
        masked = (False, True) if takes_padding(module) else (False,)
        drawn = [(_with_random_parameters(module), MODES, h.double())]
        drawn += [(_with_random_parameters(module, other), (False,), h[:SAMPLES].double()) for other in OTHER_DRAWS]
        cases = [
            (training, _forward(moved, training, padded=padded), x)
            for moved, modes, x in drawn
            for training in modes
            for padded in masked
        ]
        if spec.causal and (time := spec.kind.time) is not None:
            causality = max(causality_leak(_by_time(run, time), x[0].movedim(time, 0)) for _, run, x in cases)
        unmixed = [(run, x) for training, run, x in cases if _must_keep_samples_apart(spec, training)]
        sample = max((sample_leak(run, x) for run, x in unmixed), default=None)
    return SeedSanity(
        shape=shape,
        slot_shape=slot_shape,
        dtype=dtype,
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        parameters_finite=all(bool(p.isfinite().all()) for p in parameters),
        causality_leak=causality,
        sample_leak=sample,
        told=tuple(told),
    )


def _must_keep_samples_apart(spec: SlotSpec, training: bool) -> bool:
    """Return whether samples are independent in the host in this mode. If they are, a seed must not mix them."""
    return spec.samples_independent or (not training and spec.samples_independent_evaluated)


def _interface(module: nn.Module, spec: SlotSpec, h: Tensor, told: dict[str, None]) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of one sample's output.

    If the output of one mode does not fit the slot, its shape and dtype are returned.

    Args:
        told: Mapping to which the seed's fallbacks are added.

    Raises:
        TypeError: the output is not a tensor.
        ValueError: the number of output rows is not the number of samples.
    """
    found = []
    for training in MODES:
        output = _forward(module, training, spec.autocast, told)(h)
        if not isinstance(output, Tensor):
            raise TypeError(f"the output is a {type(output).__name__}, not a tensor")
        if output.shape[:1] != h.shape[:1]:
            raise ValueError(f"{len(h)} samples in, an output of shape {tuple(output.shape)} out")
        found.append((tuple(output.shape[1:]), str(output.dtype)))
    return next((seen for seen in found if seen != (tuple(h.shape[1:]), spec.dtype)), found[0])


def _forward(
    module: nn.Module,
    training: bool,
    autocast: str | None = None,
    told: dict[str, None] | None = None,
    *,
    padded: bool = False,
) -> Forward:
    """Return a function that runs one forward of a new copy. Each call begins with the same random state.

    The copy is new in each call, so that no state (batch statistics, for example) passes from call to call.

    Args:
        autocast: Dtype to which the host's autocast casts at the slot. None: the host uses no autocast there.
        told: Mapping to which the copy's fallbacks are added. None: fallbacks do not count, because the copy runs in
            double precision, and no plan requires double precision.
        padded: Whether every third position is padded, for a seed that takes padding.
    """

    def forward(h: Tensor) -> Tensor:
        lower = named(autocast) if autocast is not None else None
        context = torch.autocast(h.device.type, lower, enabled=lower is not None)
        with temporary_rng(0, (h.device,)), torch.no_grad(), context:
            copy = deepcopy(module).train(training)
            output: Tensor = heard(copy, h.clone(), _every_third(h) if padded else None)
            if told is not None:
                told.update(dict.fromkeys(fallbacks_told(copy)))
            return as_slot(output, h)

    return forward


def _by_time(forward: Forward, time: int) -> Forward:
    """Return `forward` as a function of [B, T, C]. `time` is the index of the time in one sample of its input."""
    return lambda x_BTC: forward(x_BTC.movedim(1, time + 1).contiguous()).movedim(time + 1, 1)


def _every_third(h_BTC: Tensor) -> Tensor:
    batch, time = h_BTC.shape[:2]
    return (torch.arange(time, device=h_BTC.device) % 3 == 2).expand(batch, -1)


def _with_random_parameters(module: nn.Module, change: Callable[[Tensor], Tensor] = torch.clone) -> nn.Module:
    """Return a double-precision copy. All its parameters are replaced by draws from N(0, 1/fan_in), as `change` returns
    them.
    """
    copy, generator = deepcopy(module).double(), torch.Generator().manual_seed(0)
    for p in copy.parameters():
        fan_in = p[0].numel() if p.dim() > 1 else 1
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data.copy_(change(noise / fan_in**0.5))
    return copy


def causality_leak(forward: Forward, x_TC: Tensor) -> float:
    """Perturb every position t > 0, each in a separate copy. Return the largest relative change at positions < t."""
    other_TC, worst = with_noise(x_TC), 0.0
    for start in range(1, len(x_TC), COPIES):
        positions = torch.arange(start, min(start + COPIES, len(x_TC)), device=x_TC.device)
        x_PTC = x_TC.expand(len(positions), -1, -1).clone()
        base_PTC = forward(x_PTC)
        copies = torch.arange(len(positions), device=x_TC.device)
        x_PTC[copies, positions] = other_TC[positions]
        earlier_PT = torch.arange(len(x_TC), device=x_TC.device) < positions[:, None]
        worst = max(worst, _movement(base_PTC, forward(x_PTC), earlier_PT))
    return worst


def sample_leak(forward: Forward, x: Tensor) -> float:
    """Perturb `SAMPLES` samples, one at a time. Return the largest relative change of the output of another sample."""
    base, other, samples = forward(x), with_noise(x), torch.arange(len(x), device=x.device)
    rows = range(min(SAMPLES, len(x)))
    changed = (torch.where((samples == i).view(-1, *[1] * (x.dim() - 1)), other, x) for i in rows)
    return max(_movement(base, forward(x_i), samples != i) for i, x_i in enumerate(changed))


def _movement(base: Tensor, after: Tensor, where: Tensor) -> float:
    """Return the largest absolute difference at `where`, over the largest entry of `base`.

    Raises:
        FloatingPointError: an output is not finite, so it cannot be compared.
    """
    if not (base.isfinite().all() and after.isfinite().all()):
        raise FloatingPointError("the output is not finite for random parameters")
    moved = (after - base).abs()[where].max()
    return float(moved / base.abs().max().clamp(min=torch.finfo(base.dtype).tiny))
