"""Finds out whether a slot's output of three dimensions is [B, C, T] or [B, T, C].

The shape does not tell which dimension has the channels. Some layers of torch tell: the output of a convolution over
time is [B, C, T], and that of a linear layer is [B, T, C]. The rule:

- Of all such layers that ran until the slot returned, the last one whose output has the layout of the slot's output
  decides. It is a layer in the slot, or, if the slot has none (an activation function, for example), a layer before it.
- If there is no such layer, the last layer whose output was transposed on its way to the slot's output decides: the
  slot then has the opposite layout.
- If there is no such layer either, the last layer whose output may or may not have been transposed decides, as if it
  was not.
- If no layer can be compared with the slot's output, the slot is [B, T, C].

The layouts of two outputs are compared by their two sizes after the batch. If the sizes do not tell, because there are
as many channels as positions, the correlation of the values tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor, nn

from esper.ground.slot_output import part_of
from esper.kasmina.host.code_path import is_compiled
from esper.leyline.slots import Kind

FIRST: tuple[type[nn.Module], ...] = (
    *(nn.Conv1d, nn.ConvTranspose1d, nn.Upsample, nn.Dropout1d),
    *(nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.GroupNorm, nn.LocalResponseNorm),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.MaxUnpool1d),
    *(nn.ConstantPad1d, nn.ZeroPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
)
"""Layers with outputs [B, C, T]. A lazy layer is an instance of one of them, too."""
LAST: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm),
    *(nn.MultiheadAttention, nn.RNNBase),
)
"""Layers with outputs [B, T, C]."""

CHANNELS = ("out_channels", "num_features", "num_channels")
"""Attributes by which layers of FIRST name the number of their channels."""


CLEAR = 0.25
"""Correlation from which the values of two outputs tell whether one was transposed. Outputs of other content have about
one over the root of the number of values."""


class _Order(Enum):
    """The order of the channels and the time in a slot's output, compared with their order in a layer's output."""

    SAME = auto()
    TRANSPOSED = auto()
    EITHER = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class _Ran:
    """A layer of known layout that ran."""

    output: Tensor
    channels_first: bool
    own: bool
    """Whether its forward is the user's, which may transpose what torch returns."""


@contextmanager
def layouts_noted(model: nn.Module, found: MutableMapping[str, Kind]) -> Iterator[None]:
    """Run the body, a forward of the model, with hooks. They replace the kind of each slot in `found` whose output has
    three dimensions by NCT or NTC. Compiled modules run eagerly, so that torch does not compile the hooks.

    Args:
        found: Path of a slot -> its kind. The paths do not change.
    """
    ran: list[_Ran] = []

    def note_layer(layer: nn.Module, _args: object, whole: object) -> None:
        output = _of_three_dimensions(whole)
        if output is not None and _as_torch_returns_it(layer, output):
            own = not type(layer).forward.__module__.startswith("torch.")
            ran.append(_Ran(output, isinstance(layer, FIRST), own))

    def slot_noter(path: str) -> Callable[..., None]:
        def note_slot(_module: nn.Module, _args: object, whole: object) -> None:
            output = _of_three_dimensions(whole)
            if output is not None:
                found[path] = _decided(output, ran)

        return note_slot

    layers = [layer for layer in model.modules() if isinstance(layer, FIRST + LAST)]
    handles = [layer.register_forward_hook(note_layer) for layer in layers]
    handles += [model.get_submodule(path).register_forward_hook(slot_noter(path)) for path in found]
    compiled = any(map(is_compiled, model.modules()))
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _of_three_dimensions(whole: object) -> Tensor | None:
    """Return the part of an output on which seeds would act. None: it is not a floating tensor of three dimensions."""
    output = part_of(whole)
    if not isinstance(output, Tensor) or output.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(output):
        return None
    return output.detach() if output.dim() == 3 and output.is_floating_point() else None


def _as_torch_returns_it(layer: nn.Module, output: Tensor) -> bool:
    """Return whether an output has the channels where torch has them. A class of the user may transpose them."""
    named = [getattr(layer, name) for name in CHANNELS if hasattr(layer, name)]
    return not isinstance(layer, FIRST) or not named or output.shape[1] == named[0]


def _decided(output: Tensor, ran: list[_Ran]) -> Kind:
    """Return NCT or NTC for a slot's output, by the layers that ran until then; see the rule above."""
    for order in (_Order.SAME, _Order.TRANSPOSED, _Order.EITHER):
        for layer in reversed(ran):
            if _order(layer, output) is order:
                return Kind.NCT if layer.channels_first is not (order is _Order.TRANSPOSED) else Kind.NTC
    return Kind.NTC


def _order(ran: _Ran, slot: Tensor) -> _Order:
    """Compare a slot's output with a layer's output."""
    layer = ran.output
    (one, two), (first, second) = layer.shape[1:], slot.shape[1:]
    same, transposed = float((one == first) + (two == second)), float((one == second) + (two == first))
    if not same and not transposed:
        return _Order.UNKNOWN
    if one == two and ran.own:
        return _Order.EITHER
    if same == transposed and layer.shape == slot.shape:
        same, transposed = _correlation(layer, slot), _correlation(layer.transpose(1, 2), slot)
        if not max(same, transposed) >= CLEAR:  # also true for nan
            return _Order.EITHER
    if same == transposed:
        return _Order.EITHER
    return _Order.SAME if same > transposed else _Order.TRANSPOSED


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the absolute correlation of two tensors of one shape. It is nan if a tensor is constant."""
    both = torch.stack([tensor.reshape(-1).to("cpu", torch.float64) for tensor in (one, other)])
    return float(both.corrcoef()[0, 1].abs())
