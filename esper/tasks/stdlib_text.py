"""Task of a character model of the running Python's standard library: its text, its split, and a transformer.

`task()` reads the corpus. The corpus is never written. A hash of a file's path selects its shard, so a file is in the
same shard on every machine and in every Python version.

    B batch   T position in the window   V symbol   C channel   N window
"""

from __future__ import annotations

import hashlib
import math
import os
import string
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from esper.errors import TaskError
from esper.task import Task

ALPHABET = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
"""Newline and the 95 printable characters of ASCII. All other characters, for example tabs, are the symbol `OTHER`."""
OTHER = len(ALPHABET)
VOCABULARY = len(ALPHABET) + 1  # 97
CONTEXT = 64
STRIDE = CONTEXT + 1  # inputs and targets overlap in all but one character

SHARES = {"train": 0.38, "pick": 0.25, "gate": 0.25, "valid": 0.06, "test": 0.06}
"""Share of the files in each shard. Half of the files are for judging seeds, because a gate needs many files."""
EVALUATED = 2_048  # windows of valid and of test, so that evaluating a whole shard takes about a second
BATCH, EPOCHS, EPOCH_SAMPLES = 16, 8, 1_200  # 600 steps
LEAST_FILES = {"train": 1, "pick": 140, "gate": 140, "valid": 1, "test": 1}  # pick and gate: a fence draws 128
LEAST_WINDOWS = {"train": EPOCH_SAMPLES, "pick": 140, "gate": 140, "valid": EVALUATED, "test": EVALUATED}
WARM_UP_STEPS, FLOOR = 40, 0.1

_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_CONTINUATION = bytes(range(0x80, 0xC0))  # UTF-8's later bytes are deleted: one symbol per character
_SYMBOLS = bytes(ALPHABET.index(c) if (c := chr(byte)) in ALPHABET else OTHER for byte in range(256))


# -- text --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Encoded sources by path, in order of path, and the paths of files that are not UTF-8. Paths are relative to the
    root.
    """

    sources: Mapping[str, bytes]
    left_out: tuple[str, ...]


def read_corpus(root: Path) -> Corpus:
    """Read and encode every `*.py` below `root`, except tests and installed packages.

    Raises:
        TaskError: a folder or file cannot be read, or `root` is not a folder.
    """
    sources, left_out = {}, []
    try:
        for path in _source_paths(root):
            text = (root / path).read_bytes()
            try:
                text.decode("utf-8")
            except UnicodeDecodeError:
                left_out.append(path)
            else:
                sources[path] = encode(text)
    except OSError as cause:
        raise TaskError("stdlib_text corpus", str(root), f"make it readable: {cause}") from cause
    return Corpus(sources, tuple(left_out))


def _source_paths(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:  # without this function, os.walk skips unreadable folders silently
        raise error

    paths = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if name not in _SKIPPED]
        paths += [(Path(folder) / name).relative_to(root).as_posix() for name in names if name.endswith(".py")]
    return sorted(paths)


def encode(text: bytes) -> bytes:
    """Turn valid UTF-8 into one symbol, 0..96, per character."""
    return text.translate(_SYMBOLS, _CONTINUATION)


# -- shards ------------------------------------------------------------------------------------------------------


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Non-overlapping windows of files. A sample is (input [T], target [T]), int64; the target is one character later.

    Args:
        symbols_NT: uint8, T = 65.
        files_N: int64, number of each window's file.
    """

    def __init__(self, symbols_NT: Tensor, files_N: Tensor) -> None:
        self.symbols_NT, self.files_N = symbols_NT, files_N

    def __len__(self) -> int:
        return len(self.symbols_NT)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window_T = self.symbols_NT[index].long()
        return window_T[:-1], window_T[1:]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        windows_BT = self.symbols_NT[list(indices)].long()
        return list(zip(windows_BT[:, :-1].unbind(), windows_BT[:, 1:].unbind(), strict=True))

    def group_of(self, index: int) -> int:
        """Return the number of the window's file in the sorted corpus. Windows of one file are correlated."""
        return int(self.files_N[index])

    def sample(self, count: int, key: int) -> Windows:
        """Return `count` windows (or all, if there are fewer), in order. The same key selects the same windows."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(key))[:count].sort().values
        return Windows(self.symbols_NT[chosen], self.files_N[chosen])


def shard_of(path: str) -> str:
    """Return the shard of a source file. The shard depends only on the path relative to the root."""
    draw = int.from_bytes(hashlib.sha256(path.encode()).digest()[:6], "big") / 2**48  # 0 <= draw < 1, exactly
    *first, last = SHARES
    for name in first:
        draw -= SHARES[name]
        if draw < 0:
            return name
    return last


def split(corpus: Corpus) -> dict[str, Windows]:
    """Cut every source into windows and put them into the shard of its path. Incomplete windows are left out.

    Raises:
        TaskError: a shard has too few files or windows for the gates or the evaluation.
    """
    cut: dict[str, dict[int, bytes]] = {name: {} for name in SHARES}
    for number, (path, symbols) in enumerate(corpus.sources.items()):
        if whole := symbols[: len(symbols) // STRIDE * STRIDE]:
            cut[shard_of(path)][number] = whole
    for name, files in cut.items():
        _require("files", name, len(files), LEAST_FILES[name])
        _require("windows", name, sum(map(len, files.values())) // STRIDE, LEAST_WINDOWS[name])
    return {name: _windows(files) for name, files in cut.items()}


def _require(what: str, shard: str, found: int, least: int) -> None:
    if found < least:
        mend = f"at least {least} are needed; run with a complete Python standard library (sources, not a zip)"
        raise TaskError(f"stdlib_text {what} in {shard}", found, mend)


def _windows(files: Mapping[int, bytes]) -> Windows:
    counts = torch.tensor([len(symbols) // STRIDE for symbols in files.values()])
    symbols = torch.frombuffer(bytearray(b"".join(files.values())), dtype=torch.uint8)
    return Windows(symbols.view(-1, STRIDE), torch.tensor(list(files)).repeat_interleave(counts))


# -- model -------------------------------------------------------------------------------------------------------


class Embedding(nn.Module):
    """Embedding of the symbol plus a learned embedding of the position: [B, T] -> [B, T, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(VOCABULARY, channels)
        self.position = nn.Embedding(CONTEXT, channels)
        for table in (self.symbol, self.position):
            nn.init.normal_(table.weight, std=0.02)  # with torch's default of 1 the loss after 600 steps is 6 % higher

    def forward(self, symbols_BT: Tensor) -> Tensor:
        embedded: Tensor = self.symbol(symbols_BT) + self.position.weight[: symbols_BT.shape[1]]
        return embedded


class CausalAttention(nn.Module):
    """Attention of each position to itself and earlier positions: [B, T, C] -> [B, T, C]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward = nn.Linear(channels, 3 * channels)
        self.outward = nn.Linear(channels, channels)

    def forward(self, x_BTC: Tensor) -> Tensor:
        # H head, D channel of a head
        q_BHTD, k_BHTD, v_BHTD = self.inward(x_BTC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read_BHTD = nn.functional.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        mixed_BTC: Tensor = self.outward(read_BHTD.transpose(1, 2).flatten(2))
        return mixed_BTC


class Block(nn.Module):
    """Pre-norm attention, then an MLP with 4C hidden channels and GELU, both residual: [B, T, C] -> [B, T, C].

    Source: Xiong et al. 2020, arXiv:2002.04745 (pre-LN).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(channels), CausalAttention(channels, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x_BTC: Tensor) -> Tensor:
        read_BTC: Tensor = x_BTC + self.attention(x_BTC)
        thought_BTC: Tensor = read_BTC + self.mlp(read_BTC)
        return thought_BTC


class CharTransformer(nn.Module):
    """Symbols [B, T] -> logits of the next symbol [B, T, V].

    The network is small on purpose, because a run grows it.
    """

    def __init__(self, channels: int = 32, blocks: int = 1, heads: int = 4) -> None:
        super().__init__()
        self.embed = Embedding(channels)
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, VOCABULARY)

    def forward(self, symbols_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.head(self.norm(self.blocks(self.embed(symbols_BT))))
        return logits_BTV


# -- task --------------------------------------------------------------------------------------------------------


def sample_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the cross entropy in nats per character, averaged over each window: [B]."""
    return nn.functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none").mean(dim=1)


def loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the cross entropy in nats per character, averaged over all windows, as a scalar tensor."""
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam. Its learning rate was the best in a sweep for the host without seeds."""
    return torch.optim.Adam(parameters, lr=8e-3)


def warm_up_then_cosine(optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """Scale the rate linearly up to 1 over the first 40 steps, then down by a half cosine to 0.1 at `total_steps`."""

    def scale(step: int) -> float:
        if step < WARM_UP_STEPS:
            return (step + 1) / WARM_UP_STEPS
        done_ratio = min(1.0, (step - WARM_UP_STEPS) / max(1, total_steps - WARM_UP_STEPS))
        return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done_ratio)) / 2

    return LambdaLR(optimizer, scale)


def task() -> Task:
    """Read the library of the running Python and build the task.

    Raises:
        TaskError: the library cannot be read, or it is too small to be split.
    """
    shards = split(read_corpus(Path(sysconfig.get_path("stdlib"))))
    return Task(
        model=CharTransformer,
        slots=["embed", "blocks.0"],
        train=shards["train"],
        pick=shards["pick"],
        gate=shards["gate"],
        valid=shards["valid"].sample(EVALUATED, key=0),
        test=shards["test"].sample(EVALUATED, key=1),
        loss=loss,
        sample_loss=sample_loss,
        batch_size=BATCH,
        epochs=EPOCHS,
        epoch_samples=EPOCH_SAMPLES,
        round_steps=40,
        optimizer=adam,
        scheduler=warm_up_then_cosine,
    )
