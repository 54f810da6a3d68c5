"""Which code path a module's calls take, read from torch itself: eager, or compiled by `torch.compile`."""

from __future__ import annotations

import torch
from torch import nn

EAGER, COMPILED = "eager", "compiled"


def asked_path(host: nn.Module, slot: str) -> str:
    """The path that a host asks for at one of its modules: compiled if that module, or one around it, is."""
    steps = slot.split(".")
    around = [host, *(host.get_submodule(".".join(steps[:end])) for end in range(1, len(steps) + 1))]
    return COMPILED if any(map(is_compiled, around)) else EAGER


def path_of_this_call(module: nn.Module) -> str:
    """The path of the call that is running, as `module` is about to be called by it."""
    return COMPILED if torch.compiler.is_compiling() or is_compiled(module) else EAGER


def is_compiled(module: nn.Module) -> bool:
    """Its calls go to a compiled callable: by `module.compile()`, or because it is what `torch.compile` returned."""
    wrapped = type(module).__module__ == "torch._dynamo.eval_frame"  # not imported here: that takes seconds
    return wrapped or module._compiled_call_impl is not None
