"""Tensors as bytes and as digests. Loading is always weights-only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import google_crc32c
import torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as one blob that `from_bytes` reads back bit for bit."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


def from_bytes(blob: bytes) -> dict[str, Tensor]:
    """The tensors of a blob whose digest the caller has verified. Weights-only: no code in it can run."""
    loaded: dict[str, Tensor] = torch.load(io.BytesIO(blob), weights_only=True)
    return loaded


def blob_digest(blob: bytes) -> str:
    """SHA-256 of a blob, in hex."""
    return hashlib.sha256(blob).hexdigest()


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over sorted (name, dtype, shape, bytes): equal if and only if every bit is."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
        digest.update(head.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_crc32c(tensors: Mapping[str, Tensor]) -> int:
    """CRC32C over sorted names and bytes: detects a difference at the speed of memory; not safe against an attacker."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        crc = google_crc32c.extend(crc, name.encode())
        crc = google_crc32c.extend(crc, tensor.reshape(-1).view(torch.uint8).numpy())
    return crc
