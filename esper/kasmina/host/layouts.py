"""Finds out whether a slot's output of three dimensions is [B, C, T] or [B, T, C].

The shape does not tell which dimension has the channels. Some layers of torch tell: the output of a convolution over
time is [B, C, T], and that of a linear layer is [B, T, C]. The rule, over the layers that ran until the slot returned:

- The last layer that can be compared with the slot's output decides: the slot has the layout of the layer, or, if the
  output was transposed after the layer, the opposite layout.
- A slot is [B, C, T] only if a convolution or a norm over its channels says so, without transposition. So a linear
  layer over positions does not make a slot of a mixer [B, C, T].
- If another layer in the slot, such as a layer norm, says that the slot is [B, T, C], it is: the convolution has the
  positions as its channels.
- If no layer can be compared, the slot is [B, T, C].

A layer and the slot's output are compared by the number of channels, then by the number of positions. If there are as
many channels as positions, the correlation of the values tells. Then a class with a forward of the user, which may
transpose, counts only if no class of torch can be compared. In a causal network the data may overrule all this; see
`esper.kasmina.host.dry_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn

from esper.ground.slot_output import part_of
from esper.kasmina.host.code_path import is_compiled
from esper.leyline.slots import Kind

FIRST: dict[type[nn.Module], str] = {
    nn.Conv1d: "out_channels",
    nn.ConvTranspose1d: "out_channels",
    nn.BatchNorm1d: "num_features",
    nn.SyncBatchNorm: "num_features",
    nn.InstanceNorm1d: "num_features",
    nn.GroupNorm: "num_channels",
}
"""Layer with outputs [B, C, T] -> its attribute that is C. A lazy layer is an instance of one of them, too."""
LAST: dict[type[nn.Module], str | None] = {
    nn.Linear: "out_features",
    nn.Bilinear: "out_features",
    nn.Embedding: "embedding_dim",
    nn.LayerNorm: "normalized_shape",
    nn.RMSNorm: "normalized_shape",
    nn.MultiheadAttention: "embed_dim",
    nn.RNNBase: None,
}
"""Layer with outputs [B, T, C] -> its attribute that is C. None: it has none."""

CLEAR = 0.25
"""Correlation from which the values of two outputs tell whether one was transposed. Outputs of other content have about
one over the root of the number of values."""


class _Order(Enum):
    """The order of the channels and the time in a slot's output, compared with their order in a layer's output."""

    SAME = auto()
    TRANSPOSED = auto()


@dataclass(frozen=True)
class _Ran:
    """A layer of known layout that ran."""

    first: bool
    """Whether its output is [B, C, T]. Else it is [B, T, C]."""
    shape: torch.Size
    values: Tensor | None
    """The output, if it has as many channels as positions."""
    own: bool
    """Whether it has as many channels as positions, and a forward of the user, which may transpose."""


@contextmanager
def layouts_noted(model: nn.Module, found: MutableMapping[str, Kind]) -> Iterator[None]:
    """Run the body, a forward of the model, with hooks. They replace the kind of each slot in `found` whose output has
    three dimensions by NCT or NTC. Compiled modules run eagerly, so that torch does not compile the hooks.

    Args:
        found: Path of a slot -> its kind. The paths do not change.
    """
    ran: list[_Ran] = []
    begun: dict[str, int] = {}

    def note_layer(layer: nn.Module, _args: object, whole: object) -> None:
        output = _of_three_dimensions(whole)
        first = isinstance(layer, tuple(FIRST))
        if output is not None and _channels_told(layer, output, first=first):
            square = output.shape[1] == output.shape[2]
            own = square and not type(layer).forward.__module__.startswith("torch.")
            ran.append(_Ran(first, output.shape, output if square else None, own))

    def beginning(path: str) -> Callable[..., None]:
        def note_begin(_module: nn.Module, _args: object) -> None:
            begun[path] = len(ran)

        return note_begin

    def slot_noter(path: str) -> Callable[..., None]:
        def note_slot(_module: nn.Module, _args: object, whole: object) -> None:
            output = _of_three_dimensions(whole)
            if output is not None:
                found[path] = _decided(output, ran, begun[path])

        return note_slot

    layers = [layer for layer in model.modules() if isinstance(layer, (*FIRST, *LAST))]
    handles: list[Any] = [layer.register_forward_hook(note_layer) for layer in layers]  # Any: torch's handles
    for path in found:
        slot = model.get_submodule(path)
        handles += [slot.register_forward_pre_hook(beginning(path)), slot.register_forward_hook(slot_noter(path))]
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


def _channels_told(layer: nn.Module, output: Tensor, *, first: bool) -> bool:
    """Return whether the channels of an output are where torch has them. A class of the user may transpose them, and a
    norm over several dimensions tells nothing.
    """
    name = next(name for kind, name in (*FIRST.items(), *LAST.items()) if isinstance(layer, kind))
    channels = output.shape[1 if first else 2]
    return name is None or getattr(layer, name) in (channels, (channels,))


def _decided(output: Tensor, ran: list[_Ran], begun: int) -> Kind:
    """Return NCT or NTC for a slot's output; see the rule above.

    Args:
        ran: The layers that ran until the slot returned.
        begun: Number of layers that ran before the slot.
    """
    orders = [_order(layer, output) for layer in ran]
    known = [(layer, order) for layer, order in zip(ran, orders, strict=True) if order is not None]
    torchs = [(layer, order) for layer, order in known if not layer.own]
    clear = [(layer.first, order) for layer, order in torchs or known]
    of_first = [order for first, order in clear if first]
    if not of_first or of_first[-1] is not _Order.SAME:
        return Kind.NTC
    inside = zip(ran[begun:], orders[begun:], strict=True)
    rows = any(not layer.first and order is _Order.SAME for layer, order in inside)
    first, order = clear[-1]
    return Kind.NTC if rows or first is not (order is _Order.SAME) else Kind.NCT


def _order(ran: _Ran, slot: Tensor) -> _Order | None:
    """Compare a slot's output with a layer's output. None: they cannot be compared."""
    if ran.shape[0] != slot.shape[0]:
        return None
    at = 1 if ran.first else 2
    for size, place in ((ran.shape[at], at), (ran.shape[3 - at], 3 - at)):
        here, there = slot.shape[place] == size, slot.shape[3 - place] == size
        if here is not there:
            return _Order.SAME if here else _Order.TRANSPOSED
    if ran.values is None or ran.shape != slot.shape:
        return None
    same, turned = _correlation(ran.values, slot), _correlation(ran.values.transpose(1, 2), slot)
    if not max(same, turned) >= CLEAR:  # also true for nan
        return None
    return _Order.SAME if same > turned else _Order.TRANSPOSED


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the absolute correlation of two tensors of one shape. It is nan if a tensor is constant."""
    both = torch.stack([tensor.reshape(-1).to("cpu", torch.float64) for tensor in (one, other)])
    return float(both.corrcoef()[0, 1].abs())
