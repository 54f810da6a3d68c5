"""Hosts of the benchmark `growth` that test its defaults. They were written from the names of their kinds alone.

None of them was grown before it was complete.

B batch   N sample   T position or time   C channel   V tag or word   H, W height and width
"""

from __future__ import annotations

from functools import partial
from math import tau
from typing import Any

import torch
from _growth_hosts import SIZES, Case
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, AdamW
from torch.utils.data import TensorDataset, default_collate

from esper import Task
from esper.tasks import stdlib_text

COUNT = sum(SIZES.values())


def _shards(*tensors: Tensor) -> dict[str, Any]:  # Any: the values of several fields of Task
    parts = (torch.split(tensor, list(SIZES.values())) for tensor in tensors)
    return {name: TensorDataset(*shard) for name, *shard in zip(SIZES, *parts, strict=True)}


# -- segmentation ------------------------------------------------------------------------------------------------

SIDE, OBJECTS, KINDS = 24, 3, 4
"""Side of an image, objects in it, and classes of a pixel: the background and three shapes."""


class UNet(nn.Module):
    """Images [B, 1, 24, 24] -> scores of each pixel [B, 4, 24, 24]: a U-Net with three resolutions."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.inward, self.down = self._stage(1, channels), self._stage(channels, 2 * channels)
        self.bottom = self._stage(2 * channels, 4 * channels)
        self.wider = nn.ConvTranspose2d(4 * channels, 2 * channels, 2, stride=2)
        self.up = self._stage(4 * channels, 2 * channels)
        self.widest = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.outward = self._stage(2 * channels, channels)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(channels, KINDS, 1)

    @staticmethod
    def _stage(inner: int, outer: int) -> nn.Sequential:
        first = nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()
        return nn.Sequential(*first, nn.Conv2d(outer, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        fine_BCHW = self.inward(x_BCHW)
        middle_BCHW = self.down(self.pool(fine_BCHW))
        coarse_BCHW = self.bottom(self.pool(middle_BCHW))
        middle_BCHW = self.up(torch.cat([middle_BCHW, self.wider(coarse_BCHW)], dim=1))
        fine_BCHW = self.outward(torch.cat([fine_BCHW, self.widest(middle_BCHW)], dim=1))
        scores: Tensor = self.head(fine_BCHW)
        return scores


def segmentation() -> Task:
    """Noisy images of three objects of any size, place and brightness; the class of a pixel is the shape it shows.

    The shapes are a disc, a square and a diamond. A later object covers an earlier one.
    """
    generator = torch.Generator().manual_seed(21)
    images_NHW = torch.zeros(COUNT, SIDE, SIDE)
    kinds_NHW = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.long)
    for _ in range(OBJECTS):
        kind_N = torch.randint(1, KINDS, (COUNT, 1, 1), generator=generator)
        size_N, left_N, top_N, bright_N = torch.rand(4, COUNT, 1, 1, generator=generator)
        size_N = 3 + 3 * size_N
        x_NHW = (torch.arange(SIDE) - SIDE * left_N).abs() / size_N
        y_NHW = (torch.arange(SIDE)[:, None] - SIDE * top_N).abs() / size_N
        shapes = [torch.hypot(x_NHW, y_NHW) < 1, torch.maximum(x_NHW, y_NHW) < 0.9, x_NHW + y_NHW < 1.2]
        inside_NHW = torch.stack(shapes, dim=1)[torch.arange(COUNT), kind_N.flatten() - 1]
        images_NHW = torch.where(inside_NHW, 0.5 + bright_N, images_NHW)
        kinds_NHW = torch.where(inside_NHW, kind_N, kinds_NHW)
    images_NHW += 0.3 * torch.randn(images_NHW.shape, generator=generator)
    return Task(
        model=UNet,
        slots=["down", "bottom", "up"],
        **_shards(images_NHW[:, None], kinds_NHW),
        loss=cross_entropy,
        optimizer=partial(Adam, lr=2e-3),
        batch_size=64,
        epochs=6,
    )


# -- tags --------------------------------------------------------------------------------------------------------

WORDS, TAGS, SENTENCE = 40, 8, 24


class Tagger(nn.Module):
    """Words [B, 24] -> scores of each position's tag [B, 24, 8]: a bidirectional LSTM."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, channels)
        self.lstm = nn.LSTM(channels, channels, batch_first=True, bidirectional=True)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(2 * channels, TAGS)

    def forward(self, words_BT: Tensor) -> Tensor:
        states_BTC, _ = self.lstm(self.embed(words_BT))
        scores: Tensor = self.head(self.drop(states_BTC))
        return scores


def tagging() -> Task:
    """Sentences of a hidden Markov model, in which a tag is drawn given the two before it, and a word given its tag.

    Most words belong to several tags, so their neighbours on both sides tell which one is meant.
    """
    generator = torch.Generator().manual_seed(22)
    next_VVV = (2.5 * torch.randn(TAGS, TAGS, TAGS, generator=generator)).softmax(dim=-1)
    words_VV = (1.5 * torch.randn(TAGS, WORDS, generator=generator)).softmax(dim=-1)
    tags = list(torch.randint(TAGS, (2, COUNT), generator=generator))
    while len(tags) < SENTENCE:
        tags.append(torch.multinomial(next_VVV[tags[-2], tags[-1]], 1, generator=generator)[:, 0])
    tags_NT = torch.stack(tags, dim=1)
    words_NT = torch.multinomial(words_VV[tags_NT.flatten()], 1, generator=generator).view_as(tags_NT)
    return Task(
        model=Tagger,
        slots=["embed", "lstm"],
        **_shards(words_NT, tags_NT),
        loss=stdlib_text.loss,
        sample_loss=stdlib_text.sample_loss,
        optimizer=partial(Adam, lr=3e-3),
        batch_size=64,
        epochs=6,
    )


# -- a translation -----------------------------------------------------------------------------------------------

NOUNS, ADJECTIVES, LENGTH = 20, 10, 12
"""Numbers of the words, and the length of a sentence in words."""
FOREIGN = NOUNS + 2 * ADJECTIVES
"""Words of the other language; the symbol after them is the begin of a sentence."""


class Translator(nn.Module):
    """Sentences [B, 12] and their translations, one word later [B, 12] -> scores of the translation [B, 12, 40].

    An encoder and a decoder of two layers each, as in torch.
    """

    def __init__(self, channels: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(NOUNS + ADJECTIVES, channels), nn.Embedding(FOREIGN + 1, channels)
        self.place = nn.Embedding(LENGTH, channels)
        settings: dict[str, Any] = {"dim_feedforward": 2 * channels, "dropout": 0.1, "batch_first": True}
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(channels, heads, **settings), 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(channels, heads, **settings), 2)
        self.head = nn.Linear(channels, FOREIGN)

    def forward(self, source_BT: Tensor, before_BT: Tensor) -> Tensor:
        memory_BTC = self.encoder(self.source(source_BT) + self.place.weight)
        mask = nn.Transformer.generate_square_subsequent_mask(before_BT.shape[1], device=before_BT.device)
        h_BTC = self.decoder(self.target(before_BT) + self.place.weight, memory_BTC, tgt_mask=mask, tgt_is_causal=True)
        scores: Tensor = self.head(h_BTC)
        return scores


def translation() -> Task:
    """Sentences of nouns with adjectives before them. In the translation each noun comes first, then its adjectives.

    The adjectives are in reversed order, and their form depends on the noun. A twentieth of the words is random.
    """
    generator = torch.Generator().manual_seed(23)
    noun_NT = torch.rand(COUNT, LENGTH, generator=generator) < 0.5
    noun_NT[:, -1] = True
    nouns_NT = torch.randint(NOUNS, noun_NT.shape, generator=generator)
    adjectives_NT = torch.randint(ADJECTIVES, noun_NT.shape, generator=generator)
    places_T = torch.arange(LENGTH)
    ends_NT = torch.where(noun_NT, places_T, LENGTH).flip(1).cummin(dim=1).values.flip(1)  # of each word's phrase
    form_NT = nouns_NT.gather(1, ends_NT) % 2
    foreign_NT = torch.where(noun_NT, nouns_NT, NOUNS + 2 * adjectives_NT + form_NT)
    foreign_NT = foreign_NT.gather(1, (LENGTH * ends_NT - places_T).argsort(dim=1))
    noisy_NT = torch.rand(noun_NT.shape, generator=generator) < 0.05
    foreign_NT[noisy_NT] = torch.randint(FOREIGN, (int(noisy_NT.sum()),), generator=generator)
    return Task(
        model=Translator,
        slots=["encoder", "decoder"],
        **_shards(torch.where(noun_NT, nouns_NT, NOUNS + adjectives_NT), foreign_NT),
        loss=stdlib_text.loss,
        sample_loss=stdlib_text.sample_loss,
        optimizer=partial(AdamW, lr=3e-3),
        collate=_teacher_forced,
        input_output=lambda model, inputs: model(*inputs),
        batch_size=64,
        epochs=7,
    )


def _teacher_forced(samples: list[Any]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    source_BT, target_BT = default_collate(samples)
    return (source_BT, nn.functional.pad(target_BT[:, :-1], (1, 0), value=FOREIGN)), target_BT


# -- waveforms ---------------------------------------------------------------------------------------------------

DURATION, SOUNDS = 512, 8


class WaveNetwork(nn.Module):
    """Waveforms [B, 1, 512] -> [B, 8]: three strided convolutions over time with batch norm, and the mean over time."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = self._stage(1, channels, 9)
        self.second, self.third = self._stage(channels, 2 * channels, 5), self._stage(2 * channels, 2 * channels, 5)
        self.head = nn.Linear(2 * channels, SOUNDS)

    @staticmethod
    def _stage(inner: int, outer: int, size: int) -> nn.Sequential:
        convolution = nn.Conv1d(inner, outer, size, stride=2, padding=size // 2)
        return nn.Sequential(convolution, nn.BatchNorm1d(outer), nn.ReLU(), nn.MaxPool1d(2))

    def forward(self, waves_BCT: Tensor) -> Tensor:
        scores: Tensor = self.head(self.third(self.second(self.first(waves_BCT))).mean(dim=2))
        return scores


def waveform() -> Task:
    """Noisy waves of any pitch, phase and loudness; the class is one of eight forms of a wave or of its change."""
    generator = torch.Generator().manual_seed(24)
    classes_N = torch.randint(SOUNDS, (COUNT,), generator=generator)
    pitch_N, phase_N, loud_N, slow_N = torch.rand(4, COUNT, 1, generator=generator)
    times_T = torch.arange(DURATION) / DURATION
    cycles_N = 10 + 30 * pitch_N
    turns_NT = cycles_N * times_T + phase_N
    wave_NT, slow_NT = (tau * turns_NT).sin(), (tau * (2 + 2 * slow_N) * times_T + tau * slow_N).sin()
    forms = [
        wave_NT,
        0.8 * wave_NT.sign(),  # a square
        2 * turns_NT.frac() - 1,  # a sawtooth
        4 * (turns_NT.frac() - 0.5).abs() - 1,  # a triangle
        (tau * (turns_NT + 0.3 * cycles_N * times_T.square())).sin(),  # a rising pitch
        (tau * (turns_NT - 0.3 * cycles_N * times_T.square())).sin(),  # a falling pitch
        (1 + 0.8 * slow_NT) * wave_NT,  # tremolo
        (tau * turns_NT + 3 * slow_NT).sin(),  # vibrato
    ]
    waves_NT = (0.5 + loud_N) * torch.stack(forms, dim=1)[torch.arange(COUNT), classes_N]
    waves_NT += 0.3 * torch.randn(waves_NT.shape, generator=generator)
    return Task(
        model=WaveNetwork,
        slots=["first", "second", "third"],
        **_shards(waves_NT[:, None], classes_N),
        loss=cross_entropy,
        optimizer=partial(Adam, lr=3e-3),
        batch_size=64,
        epochs=7,
    )


HELD_OUT: dict[str, Case] = {
    "segmentation": Case(segmentation, tuple(partial(UNet, n) for n in (12, 16, 24, 32))),
    "tagging": Case(tagging, tuple(partial(Tagger, n) for n in (32, 48, 64, 96, 128))),
    "translation": Case(translation, tuple(partial(Translator, n) for n in (48, 64, 96, 128))),
    "waveform": Case(waveform, tuple(partial(WaveNetwork, n) for n in (12, 16, 24, 32, 48))),
}
