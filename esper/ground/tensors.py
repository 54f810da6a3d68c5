"""Tensors as bytes and as digests. Loading is always weights-only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import google_crc32c
import torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors as one blob. `from_bytes` restores them bit for bit."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


def from_bytes(blob: bytes) -> dict[str, Tensor]:
    """Return the tensors of a blob whose digest the caller has verified. Loading is weights-only, so no code in the
    blob can run."""
    loaded: dict[str, Tensor] = torch.load(io.BytesIO(blob), weights_only=True)
    return loaded


def blob_digest(blob: bytes) -> str:
    """Return the SHA-256 of a blob, in hex."""
    return hashlib.sha256(blob).hexdigest()


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, over sorted (name, dtype, shape, bytes). Two digests are equal only if every bit of
    the tensors is equal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
        digest.update(head.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_crc32c(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC32C over sorted names and bytes. The checksum detects differences, and is computed at the speed of
    memory. The checksum is not safe against an attacker.
    """
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        crc = google_crc32c.extend(crc, name.encode())
        crc = google_crc32c.extend(crc, tensor.reshape(-1).view(torch.uint8).numpy())
    return crc
