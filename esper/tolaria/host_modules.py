"""Refuses models that cannot be trained, copied and grown. The checks do not change the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from esper.errors import TaskError


def check_modules(model: nn.Module) -> None:
    """Refuse a newly built model that cannot be trained, copied and grown.

    Raises:
        TaskError: the model has no trainable parameter; a module is compiled, scripted or wrapped to run in parallel; a
            tensor is lazy, on the meta device or not dense; or elements of a tensor share memory.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError("task.model", type(model).__name__, "leave requires_grad on for the parameters to train")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if (fault := _fault(tensor)) is not None:
            raise TaskError("task.model", name, fault)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TaskError("task.model", type(model).__name__, "a scripted module calls no seed; give the module itself")
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            mend = f"it calls copies of {name or 'the model'} that have no seeds; give the module that it wraps"
            raise TaskError("task.model", type(module).__name__, mend)
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            mend = "leave torch.compile out; run.compile=true compiles the model, and again after each graft"
            raise TaskError("task.model", f"{name or type(model).__name__}, compiled", mend)


def _fault(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "a lazy module has no weights yet; give its sizes, or run one batch through the model in the factory"
    if tensor.is_meta:
        return "it lies on the meta device and has no values; build it on the CPU"
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}"
        return f"it is {kind}, and a dense one is needed: register its parts as buffers, build it in the forward"
    if has_overlap(tensor):
        return "its elements share memory (expand?); make it contiguous"
    return None


def has_overlap(tensor: Tensor) -> bool:
    """Return whether elements share memory (stride 0, as after `expand`).

    No tensor can be copied into shared elements.
    """
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def check_gradients(model: nn.Module) -> None:
    """Refuse a model whose gradients, after a backward pass, cannot be clipped and summed.

    Raises:
        TaskError: no trainable parameter has a gradient, or a gradient is sparse.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not gradients:
        mend = "no trainable parameter has a gradient after a backward pass; is something detached, or under no_grad?"
        raise TaskError("task.model", type(model).__name__, mend)
    for name, gradient in gradients.items():
        if gradient.layout is not torch.strided:
            mend = f"its gradient is {gradient.layout}; dense ones are supported: build it with sparse=False"
            raise TaskError("task.model", name, mend)
