"""Compiles a host's forward with `torch.compile`, and compiles it again after its seeds have changed.

A compiled forward ignores hooks that are added later, so it would never call a new seed. Compilation does not change
the modules, the tensor names and the class of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from esper.errors import ConfigError, in_a_line

MOST_GRAPHS = 64
"""Largest number of compiled versions of one forward. A version is needed for each combination of shape, mode, and
gradients on or off.
"""
SETTINGS = {
    "accumulated_recompile_limit": 2**31,  # no limit per process, because it compiles many forks
    "fail_on_recompile_limit_hit": True,  # otherwise torch would warn and run the host eagerly
    "skip_fwd_side_effects_in_bwd_under_checkpoint": True,  # a seed must not count a recomputed forward
}
"""Settings of torch's compiler during a forward of a compiled host."""


def announced(backend: str) -> str:
    """Return the line that is shown before the first compilation, which may take minutes without another line."""
    often = "it is repeated for each copy that is trained and after each graft (docs/performance.md)"
    return f"compiling the network with {backend} (run.compile): this may take minutes, and {often}"


def compile_host(host: nn.Module, backend: str) -> None:
    """Discard the compiled versions of a host's forward. The next forward is compiled again.

    Every shape is compiled separately. With torch's dynamic shapes, the bits of a step would depend on the shapes of
    earlier steps, and a resumed run would have other bits.
    """
    host.compile(backend=backend, dynamic=False, isolate_recompiles=True, recompile_limit=MOST_GRAPHS)


@contextmanager
def compiling(backend: str) -> Iterator[None]:
    """Run the body, a forward of a compiled host, with `SETTINGS`.

    Raises:
        ConfigError: torch cannot compile the forward, or the forward has more than `MOST_GRAPHS` versions.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        with config.patch(SETTINGS):
            yield
    except FailOnRecompileLimitHit as error:
        mend = f"the model would be compiled more than {MOST_GRAPHS} times, for inputs of other shapes or other paths"
        raise ConfigError("run.compile", True, f"{mend}: pad the inputs to a few shapes, or leave it out") from error
    except TorchDynamoException as error:
        mend = f"torch cannot compile the model with {backend}: {in_a_line(error)}; leave run.compile out"
        raise ConfigError("run.compile", True, mend) from error


@contextmanager
def uncompiled(host: nn.Module) -> Iterator[None]:
    """Run the body with the host's eager forward, because the compiled forward does not call new hooks."""
    compiled = host._compiled_call_impl
    if compiled is None:
        yield
        return
    host._compiled_call_impl = None
    try:
        yield
    finally:
        host._compiled_call_impl = compiled


def check_backend(name: str) -> None:
    """Compile and run a small function. Raises: ConfigError: the function fails, for example without a C++ compiler."""
    try:
        torch.compile(_doubled, backend=name, dynamic=False)(torch.ones(2))
    except Exception as error:  # the class of the error depends on backend and machine
        mend = f"torch cannot compile with it here: {in_a_line(error)}"
        raise ConfigError("run.compile_backend", name, mend) from error


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
