"""Counts the modelled FLOPs of code with torch's counter. Some of torch's counts are corrected."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.module_tracker import ModuleTracker


def _conv_backward_flops(
    grad_out: list[int],
    x: list[int],
    w: list[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: list[bool],
    **_: object,
) -> int:
    """Count each computed gradient (of the input, of the weight) like a forward pass.

    The formula of torch 2.13 ignores `groups`. For a depthwise convolution over 32 channels, it counts the backward
    pass as 33 forward passes, not as 2.
    """
    return conv_flop_count(x, w, grad_out, transposed) * (wanted[0] + wanted[1])


def _cpu_attention_flops(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
    """Count the CPU's attention kernel. Torch's counter does not include it."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _cpu_attention_backward_flops(
    grad_out: list[int], query: list[int], key: list[int], value: list[int], *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(grad_out, query, key, value))  # type: ignore[no-untyped-call]


def _cpu_lstm_flops(x: list[int], w_input: list[int], w_hidden: list[int], *_: object, **__: object) -> int:
    """Count one layer and direction of the CPU's LSTM kernel. Torch's counter counts it as 0."""
    rows = math.prod(x[:-1])  # time steps times samples
    return 2 * rows * (math.prod(w_input) + math.prod(w_hidden))


def _cpu_lstm_backward_flops(x: list[int], w_input: list[int], w_hidden: list[int], *_: object, **__: object) -> int:
    return 2 * _cpu_lstm_flops(x, w_input, w_hidden)


CORRECTED_FLOPS = {
    torch.ops.aten.mkldnn_rnn_layer: _cpu_lstm_flops,
    torch.ops.aten.mkldnn_rnn_layer_backward: _cpu_lstm_backward_flops,
    torch.ops.aten.convolution_backward: _conv_backward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}


class _Untracked(ModuleTracker):
    """Replaces torch's module tracker and installs no hooks.

    Torch's hooks forbid `torch.autograd.grad` in a forward.
    """

    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> _Untracked:
        """Install no hook."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove no hook."""


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the FLOPs of its body, with `CORRECTED_FLOPS`. Counts per module are not valid."""
    counter = FlopCounterMode(display=False, custom_mapping=CORRECTED_FLOPS)
    counter.mod_tracker = _Untracked()
    return counter
