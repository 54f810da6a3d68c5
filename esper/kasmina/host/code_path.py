"""Finds the code path of a module's calls: eager, or compiled by `torch.compile`. It reads the state of torch."""

from __future__ import annotations

import torch
from torch import nn

EAGER, COMPILED = "eager", "compiled"


def asked_path(host: nn.Module, slot: str) -> str:
    """Return the expected path of a module: compiled if the module or a module around it is compiled."""
    steps = slot.split(".")
    around = [host, *(host.get_submodule(".".join(steps[:end])) for end in range(1, len(steps) + 1))]
    return COMPILED if any(map(is_compiled, around)) else EAGER


def path_of_this_call(module: nn.Module) -> str:
    """Return the path of the running call. Call this function directly before `module`."""
    return COMPILED if torch.compiler.is_compiling() or is_compiled(module) else EAGER


def is_compiled(module: nn.Module) -> bool:
    """Return whether the module is compiled: by `module.compile()`, or as the result of `torch.compile(module)`."""
    wrapped = type(module).__module__ == "torch._dynamo.eval_frame"  # by name: importing torch._dynamo takes seconds
    return wrapped or module._compiled_call_impl is not None
