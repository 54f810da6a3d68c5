"""Whether a slot is [B, C, T] or [B, T, C]: what a user would say of hosts that mix layers of both layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from growing import Look
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from esper.kasmina.host.dry_run import dry_run
from esper.kasmina.host.layouts import layouts_noted
from esper.leyline.slots import Kind, SlotSpec

CHANNELS = 8


def slots_of(host: nn.Module, given: Tensor, *paths: str) -> tuple[SlotSpec, ...]:
    return dry_run(host, paths, given, lambda model, x: model(x)).specs


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Turned(nn.Module):
    """Runs a module on the transposed activation, and transposes its output back."""

    def __init__(self, inner: nn.Module, skip: bool = False) -> None:
        super().__init__()
        self.inner, self.skip = inner, skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.transpose(1, 2)).transpose(1, 2).contiguous()
        return x + y if self.skip else y


class BatchNormOfRows(nn.BatchNorm1d):
    """[B, T, C], though torch's is for [B, C, T]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class PaddedLeft(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, (2, 0)))


class Gated(nn.Module):
    """[B, C, T], with a factor for each channel from linear layers that never see the time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = conv(), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.gate(y.mean(2)).sigmoid()[:, :, None]


def conv(channels: int = CHANNELS, out: int = CHANNELS) -> nn.Conv1d:
    return nn.Conv1d(channels, out, 3, padding=1)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS), nn.GELU())


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x)[0]
        return y


def stage() -> nn.Module:
    return nn.Sequential(conv(), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.MaxPool1d(2))


FIRST: dict[str, Callable[[int], nn.Module]] = {
    "stage": lambda _: stage(),
    "own convolution": lambda _: PaddedLeft(CHANNELS, CHANNELS, 3),
    "halved by a gate": lambda _: nn.Sequential(conv(out=2 * CHANNELS), nn.GLU(dim=1)),
    "gate of linear layers": lambda _: Gated(),
    "next block": lambda _: nn.Sequential(nn.Conv1d(8, 8, 7, padding=3, groups=8), Turned(perceptron(), skip=True)),
    "own function": lambda _: Look(lambda x: x.tanh()),
    "own pooling": lambda _: Look(lambda x: x[:, :, ::2]),
    "attention over time": lambda _: Turned(Attended(), skip=True),
}
"""Modules in a host [B, C, T], made for a length."""

LAST: dict[str, Callable[[int], nn.Module]] = {
    "perceptron": lambda _: perceptron(),
    "recurrent": lambda _: nn.GRU(CHANNELS, CHANNELS, batch_first=True),
    "convolution": lambda _: Turned(conv()),
    "batch norm": lambda _: Turned(stage()),
    "own batch norm": lambda _: BatchNormOfRows(CHANNELS),
    "residual": lambda _: nn.Sequential(perceptron(), Turned(conv(), skip=True)),
    "mixing of positions": lambda length: Turned(nn.Linear(length, length), skip=True),
    "own function": lambda _: Look(lambda x: x.tanh()),
}
"""Modules in a host [B, T, C], made for a length."""


@pytest.mark.parametrize("length", [CHANNELS, 12], ids=["C equals T", "C differs from T"])
@pytest.mark.parametrize("name", FIRST)
def test_modules_of_a_convolutional_host_have_the_channels_first(name: str, length: int) -> None:
    torch.manual_seed(0)
    host = nn.Sequential(conv(3), nn.BatchNorm1d(CHANNELS), FIRST[name](length))
    (spec,) = slots_of(host, noise(4, 3, length), "2")
    assert (spec.kind, spec.channels, spec.samples_independent) == (Kind.NCT, CHANNELS, False)


@pytest.mark.parametrize("length", [CHANNELS, 12], ids=["C equals T", "C differs from T"])
@pytest.mark.parametrize("name", LAST)
def test_modules_of_a_host_of_rows_over_time_have_the_channels_last(name: str, length: int) -> None:
    torch.manual_seed(0)
    (spec,) = slots_of(nn.Sequential(nn.Linear(3, CHANNELS), LAST[name](length)), noise(4, length, 3), "1")
    assert (spec.kind, spec.channels) == (Kind.NTC, CHANNELS)


@pytest.mark.parametrize("length", [CHANNELS, 12], ids=["C equals T", "C differs from T"])
def test_a_transposed_convolution_alone_tells_that_the_channels_are_last(length: int) -> None:
    torch.manual_seed(0)
    host = nn.Sequential(Turned(conv(CHANNELS)), nn.Dropout(0.1), nn.LayerNorm(CHANNELS), Look(lambda x: x * 2))
    specs = slots_of(host, noise(4, length, CHANNELS), "0", "1", "2", "3")
    assert [spec.kind for spec in specs] == [Kind.NTC] * 4


@pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles
def test_compiled_layers_tell_their_layout_and_nothing_is_compiled_for_that() -> None:
    graphs = list[object]()

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    host = Turned(nn.Sequential(conv(3), nn.ReLU(), nn.Linear(12, 12)))
    found = {"inner.1": Kind.NTC, "inner.2": Kind.NCT}
    host.compile(backend=backend)
    host(noise(4, 12, 3))
    with layouts_noted(host, found):
        host(noise(4, 12, 3))
    assert (found, len(graphs)) == ({"inner.1": Kind.NCT, "inner.2": Kind.NTC}, 1)


@pytest.mark.parametrize(("padding", "causal"), [((2, 0), True), ((1, 1), False)], ids=["left-padded", "same-padded"])
@pytest.mark.parametrize("shape", [(4, 3, 12), (4, 12, 12), (4, 12, 3)], ids=["CT", "as many C as T", "TC"])
def test_the_causality_of_a_convolution_is_measured_along_the_last_dimension(
    shape: tuple[int, ...], padding: tuple[int, int], causal: bool
) -> None:
    """The input has its channels first, or last; then the host transposes it."""
    given, last = noise(*shape), shape[2] == 3
    before = Look(lambda x: pad(x.transpose(1, 2) if last else x, padding))
    host = nn.Sequential(before, nn.Conv1d(12 if shape[1] == shape[2] else 3, CHANNELS, 3), nn.ReLU())
    assert [(spec.kind, spec.causal) for spec in slots_of(host, given, "1", "2")] == [(Kind.NCT, causal)] * 2


def test_a_padding_mask_is_not_read_where_the_channels_are_first() -> None:
    class Masked(nn.Conv1d):
        def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
            assert padding_mask is not None
            return super().forward(x * ~padding_mask[:, None])

    host, hidden = nn.ModuleDict({"body": Masked(3, CHANNELS, 1)}), torch.zeros(4, CHANNELS, dtype=torch.bool)
    found = dry_run(host, ["body"], noise(4, 3, CHANNELS), lambda model, x: model["body"](x, padding_mask=hidden))
    assert [(spec.kind, spec.padding) for spec in found.specs] == [(Kind.NCT, None)]


def test_words_under_a_convolution_have_positions_in_their_second_dimension() -> None:
    host = nn.Sequential(nn.Embedding(9, CHANNELS), Look(lambda x: pad(x.transpose(1, 2), (2, 0))), nn.Conv1d(8, 8, 3))
    words = torch.randint(9, (4, 12), generator=torch.Generator().manual_seed(0))
    (spec,) = slots_of(host, words, "2")
    assert (spec.kind, spec.shape, spec.causal) == (Kind.NCT, (8, 12), True)
    assert spec.fits((8, 5))
    assert not spec.fits((5, 8))


class NormOfChannels(nn.LayerNorm):
    """[B, C, T], though torch's is for [B, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Words(nn.Module):
    """Characters [B, W * K] -> words [B, W, C]: convolutions over the characters of each word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(9, 6), conv(6, 16), conv(16, 32)
        self.after = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(self.embed(x.reshape(len(x) * 16, -1)).transpose(1, 2)).relu())
        y: Tensor = self.after(h.amax(dim=2).view(len(x), 16, 32))
        return y


def stem() -> nn.Module:
    """A signal [B, 3, 512] -> tokens [B, 64, 256], after outputs (64, 256), (128, 128) and (256, 64)."""
    widths = ((3, 64), (64, 128), (128, 256))
    convolutions = [nn.Conv1d(inner, outer, 4, stride=2, padding=1) for inner, outer in widths]
    return nn.Sequential(*convolutions, Look(lambda x: x.transpose(1, 2).contiguous()), nn.Dropout(0.1))


HOSTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, Kind]] = {
    "whole tokens dropped": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout1d(0.1)), (4, 12, 3), "1", Kind.NTC),
    "largest of two features": (lambda: nn.Sequential(nn.Linear(3, 16), nn.MaxPool1d(2)), (4, 12, 3), "1", Kind.NTC),
    "stem of tokens": (stem, (4, 3, 512), "4", Kind.NTC),
    "norm of channels": (lambda: nn.Sequential(conv(3), NormOfChannels(8), nn.ELU()), (4, 3, 12), "2", Kind.NCT),
    "norm of both": (lambda: nn.Sequential(conv(3), nn.LayerNorm([8, 12]), nn.ELU()), (4, 3, 12), "2", Kind.NCT),
    "convolution over positions": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Sequential(nn.LayerNorm(8), nn.Conv1d(12, 12, 1))),
        (4, 12, 3),
        "1",
        Kind.NTC,
    ),
    "time mixed first": (lambda: nn.Sequential(Turned(nn.Linear(12, 12)), nn.Linear(5, 5)), (4, 12, 5), "0", Kind.NTC),
}


@pytest.mark.parametrize("name", HOSTS)
def test_layers_that_mix_positions_or_fix_no_layout_do_not_mislead(name: str) -> None:
    torch.manual_seed(0)
    make, shape, path, kind = HOSTS[name]
    assert slots_of(make(), noise(*shape), path)[0].kind is kind


def test_layers_over_another_batch_tell_nothing() -> None:
    torch.manual_seed(0)
    (spec,) = slots_of(Words(), torch.randint(9, (4, 80)), "after")
    assert (spec.kind, spec.channels) == (Kind.NTC, 32)


class Residual(nn.Module):
    """[B, C, T] + a function of it, padded on the left, so that position t reads t and earlier ones."""

    def __init__(self, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.see = see

    def forward(self, x: Tensor) -> Tensor:
        return x + self.see(pad(x, (2, 0)))


class Spatial(nn.Conv1d):
    """[B, T, C] -> [B, T, C], from earlier positions: a convolution of width 1 whose channels are the positions."""

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight * torch.ones(12, 12).tril()[..., None], self.bias)


class Sequences(nn.Module):
    """Words [B, 12] -> embeddings [B, 12, C] -> a module, on [B, C, 12] if `first` -> scores [B, 12, 9]."""

    def __init__(self, channels: int, body: nn.Module, *, first: bool = True) -> None:
        super().__init__()
        self.embed, self.body, self.head, self.first = nn.Embedding(9, channels), body, nn.Linear(channels, 9), first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.body(h.transpose(1, 2)).transpose(1, 2) if self.first else self.body(h)
        scores: Tensor = self.head(h)
        return scores


@pytest.mark.parametrize("channels", [8, 12], ids=["C differs from T", "C equals T"])
@pytest.mark.parametrize("name", ["a layer", "a function", "a product"])
def test_in_a_causal_network_the_time_is_the_dimension_along_which_a_slot_is_causal(name: str, channels: int) -> None:
    torch.manual_seed(0)
    layer, weight = nn.Conv1d(channels, channels, 3), torch.randn(channels, channels, 3) * 0.1
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "a layer": lambda x: layer(x).relu(),
        "a function": lambda x: conv1d(x, weight),
        "a product": lambda x: torch.einsum("oc,bct->bot", weight[..., 0], x[:, :, 1:-1]),
    }
    words = torch.randint(9, (4, 12))
    (spec,) = slots_of(Sequences(channels, Residual(ways[name])), words, "body")
    assert (spec.kind, spec.causal, spec.channels) == (Kind.NCT, True, channels)
    (other,) = slots_of(Sequences(channels, Spatial(12, 12, 1), first=False), words, "body")
    assert (other.kind, other.causal, other.channels) == (Kind.NTC, True, channels)
