"""Runs a new seed once before it is attached.

So a seed that cannot run fails before the attachment, not in a training step.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from esper.errors import SeedBuildFailed
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.padded import seed_output
from esper.kasmina.blueprints.precision import as_slot, dtype_of, named
from esper.leyline.slots import SlotSpec
from esper.user_code.their_code import their_code

SAMPLES = 2
"""Number of samples of the drawn activations. Batch statistics need two samples."""

NEW = {
    "WeightNorm": "torch.nn.utils.parametrizations.weight_norm",
    "SpectralNorm": "torch.nn.utils.parametrizations.spectral_norm",
}
"""Class of a hook that computes a tensor -> the function of torch that replaces it."""
CHANGES_INPUT = "it changes its input, an activation of the host; let it work on a copy"


def prewarm(module: nn.Module, spec: SlotSpec, blueprint: str, backend: str | None) -> None:
    """Run a forward and a backward pass of a copy of a seed, in training mode, on random activations of its slot.

    The seed itself and the global random states are unchanged afterwards.

    Args:
        module: The seed, on the slot's device, with its weights.
        backend: The backend of `torch.compile` for the host, used for the copy, too. None: the host is not compiled.

    Raises:
        SeedBuildFailed: the seed cannot be compiled or run. `__cause__` is the error.
    """
    device = torch.device(spec.device)
    lower = named(spec.autocast) if spec.autocast is not None else None
    try:
        with (
            their_code(f"blueprint {blueprint}", f"prewarm at {spec.path}"),
            temporary_rng(0, (device,)),
            torch.enable_grad(),
            torch.autocast(device.type, lower, enabled=lower is not None),
        ):
            _refuse_computed(module)
            copy = deepcopy(module).train()
            h = torch.randn(SAMPLES, *spec.shape, dtype=dtype_of(spec), device=device, requires_grad=True)
            given = h.detach().clone()
            forward: Any = (
                copy if backend is None else torch.compile(copy, backend=backend, dynamic=False)
            )  # Any: a module, but torch types it as a function
            output = as_slot(seed_output(forward, h, None), h)
            if output.requires_grad:  # a seed without a gradient is refused by gate G1
                own = [p for p in copy.parameters() if p.requires_grad]
                torch.autograd.backward(output.sum(), inputs=[h, *own])  # the host's gradients stay unchanged
            if any(p.grad is not None and p.grad.layout is not torch.strided for p in copy.parameters()):
                raise TypeError("a parameter gets a sparse gradient; build its nn.Embedding with sparse=False")
            if not torch.equal(h, given):
                raise ValueError(CHANGES_INPUT)
    except Exception as error:
        raise SeedBuildFailed(blueprint, spec.path, "prewarm") from error


def _refuse_computed(module: nn.Module) -> None:
    """Refuse a seed with a tensor that a hook computes from parameters, because such a module cannot be copied.

    Raises:
        ValueError: an attribute is such a tensor, for example after the old `torch.nn.utils.weight_norm`.
    """
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                hooks = [type(hook).__name__ for hook in part._forward_pre_hooks.values()]
                by = f"the hook {hooks[-1]}" if hooks else "an operation on a parameter"
                known = next((NEW[hook] for hook in hooks if hook in NEW), None)
                mend = known or "torch.nn.utils.parametrize.register_parametrization"
                place = f"{path}.{name}" if path else name
                raise ValueError(f"its tensor {place} is computed by {by}, so the seed cannot be copied: use {mend}")
