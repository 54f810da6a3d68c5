"""Small tasks on sequences that must run as they are. Each public function is a task."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from esper.task import Task

F = nn.functional
WORDS, CHANNELS, LENGTH = 9, 8, 6
SIZES = {"train": 96, "pick": 24, "gate": 24, "valid": 20, "test": 260}


def _sentences(count: int, key: int, *, ragged: bool) -> list[Tensor]:
    """Word numbers from 1; 0 is the padding. Ragged: 2 to 6 words, by chance."""
    draw = torch.Generator().manual_seed(key)
    lengths = torch.randint(2, LENGTH + 1, (count,), generator=draw) if ragged else torch.full((count,), LENGTH)
    return [torch.randint(1, WORDS, (int(n),), generator=draw) for n in lengths]


def _task(model: Any, loss: Any, of: Any, *, ragged: bool = True, **changes: Any) -> Task:
    """`of` makes a sample (input, target) of a sentence."""
    shards = {
        name: [of(words) for words in _sentences(size, key, ragged=ragged)]
        for key, (name, size) in enumerate(SIZES.items())
    }
    fields: dict[str, Any] = {
        "model": model,
        "slots": ["body"],
        "loss": loss,
        "batch_size": 16,
        "epochs": 4,
        "round_steps": 4,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    }
    return Task(**(fields | shards | changes))


def _padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sentences of the length of the longest of the batch, and their targets."""
    words, targets = zip(*samples, strict=True)
    same = targets[0].dim() == 0
    return pad_sequence(list(words), batch_first=True), (
        torch.stack(targets) if same else pad_sequence(list(targets), batch_first=True, padding_value=-100)
    )


def _first(words: Tensor) -> tuple[Tensor, Tensor]:
    return words, words[0] % 3


def _tags(words: Tensor) -> tuple[Tensor, Tensor]:
    return words, (words + words.roll(1)) % 3


class Pooled(nn.Module):
    """Words [B, T] -> scores [B, 3]; the slot "body" gives [B, T, C]."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, CHANNELS, padding_idx=0)
        self.body = body if body is not None else nn.Linear(CHANNELS, CHANNELS)
        self.head = nn.Linear(CHANNELS, 3)

    def pool(self, hidden: Tensor, words: Tensor) -> Tensor:
        there = (words != 0).unsqueeze(-1)
        return self.head((hidden * there).sum(1) / there.sum(1))

    def forward(self, words: Tensor) -> Tensor:
        return self.pool(self.body(self.words(words)), words)


def lengths_that_differ() -> Task:
    return _task(Pooled, F.cross_entropy, _first, collate=_padded)


def convolution_over_time() -> Task:
    class Convolved(Pooled):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)

        def forward(self, words: Tensor) -> Tensor:
            hidden = self.conv(self.words(words).transpose(1, 2)).transpose(1, 2)
            return self.pool(self.body(hidden.relu()), words)

    return _task(Convolved, F.cross_entropy, _first, collate=_padded)


def tagging_with_an_lstm() -> Task:
    class Tagger(Pooled):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(CHANNELS, CHANNELS // 2, batch_first=True, bidirectional=True)

        def forward(self, words: Tensor) -> Tensor:
            lengths = (words != 0).sum(1).clamp(min=1)
            packed = pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
            hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
            return self.head(self.body(hidden)).transpose(1, 2)

    return _task(Tagger, nn.CrossEntropyLoss(ignore_index=-100), _tags, collate=_padded)


def classifying_with_a_gru() -> Task:
    class Last(Pooled):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(CHANNELS, CHANNELS, batch_first=True)

        def forward(self, words: Tensor) -> Tensor:
            _, last = self.gru(self.words(words))
            return self.head(self.body(last[0]))

    return _task(Last, F.cross_entropy, _first, ragged=False, slots=["body", "words"])


def an_lstm_and_attention_that_return_tuples() -> Task:
    class Attended(Pooled):
        def __init__(self) -> None:
            super().__init__(nn.LSTM(CHANNELS, CHANNELS, 2, batch_first=True, dropout=0.1))
            self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

        def forward(self, words: Tensor) -> Tensor:
            hidden, (last, _) = self.body(self.words(words))
            attended, _ = self.attention(hidden, hidden, hidden)
            return self.pool(attended + last[-1][:, None], words)

    return _task(Attended, F.cross_entropy, _first, ragged=False, slots=["body", "attention"])


def _encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(CHANNELS, 2, 16, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, **options)


def transformer_with_a_padding_mask() -> Task:
    class Encoded(Pooled):
        def __init__(self) -> None:
            super().__init__(_encoder(enable_nested_tensor=False))

        def forward(self, words: Tensor) -> Tensor:
            return self.pool(self.body(self.words(words), src_key_padding_mask=words == 0), words)

    return _task(Encoded, F.cross_entropy, _first, collate=_padded, slots=["words", "body.layers.*"])


def masks_from_the_collate() -> Task:
    class Encoded(Pooled):
        def __init__(self) -> None:
            super().__init__(_encoder(enable_nested_tensor=False))

        def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
            words, padding = given
            return self.pool(self.body(self.words(words), src_key_padding_mask=padding), words)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        words, targets = _padded(samples)
        return (words, words == 0), targets

    return _task(Encoded, F.cross_entropy, _first, collate=collate, slots=["body.layers.1"])


def language_model_with_tied_words() -> Task:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, CHANNELS), nn.Embedding(LENGTH, CHANNELS)
            self.body = nn.TransformerEncoderLayer(CHANNELS, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
            self.head = nn.Linear(CHANNELS, WORDS, bias=False)
            self.head.weight = self.words.weight
            mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, words: Tensor) -> Tensor:
            length = words.shape[1]
            hidden = self.words(words) + self.places(torch.arange(length))
            return self.head(self.body(hidden, src_mask=self.mask[:length, :length]) / math.sqrt(CHANNELS))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)

    def each(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        counts = (target != -100).sum(1)
        return F.cross_entropy(output.transpose(1, 2), target, reduction="none").sum(1) / counts.clamp(min=1), counts

    return _task(Causal, loss, lambda words: (words[:-1], words[1:]), collate=_padded, sample_loss=each)
