"""The initial weights of a seed, as one blob, without the values of `get_extra_state`."""

from __future__ import annotations

from torch import Tensor, nn

from esper.ground.tensors import from_bytes, to_bytes

_EXTRA = "_extra_state"
"""Last part of the key of a `get_extra_state` value in a state dict."""


def weights_of(module: nn.Module) -> bytes:
    """Return the tensors in a module's state dict, serialized."""
    return to_bytes({name: value for name, value in module.state_dict().items() if not _is_extra(name)})


def load_weights(module: nn.Module, blob: bytes) -> None:
    """Load the blob of `weights_of`. The extra state of each module does not change.

    Raises:
        RuntimeError: the blob is of another module.
    """
    extra = {name: value for name, value in module.state_dict().items() if _is_extra(name)}
    tensors: dict[str, Tensor] = from_bytes(blob)
    module.load_state_dict({**tensors, **extra})


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == _EXTRA
