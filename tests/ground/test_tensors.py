"""Tensors as bytes and digests: what is read back is the same bit for bit, and a digest sees every bit and name."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct

import pytest
import torch
from torch import Tensor, nn

from esper.ground.tensors import blob_digest, from_bytes, state_digest, to_bytes

ODD = {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
    "long": torch.tensor([2**62, -1]),
    "complex": torch.tensor([1 + 2j]),
    "strided": torch.arange(12.0).reshape(3, 4).T,
    "not a number": torch.tensor([float("nan"), float("inf")]),
    "trained": nn.Parameter(torch.ones(2)),
}


def test_what_was_written_is_read_back_bit_for_bit() -> None:
    read = from_bytes(to_bytes(ODD))

    assert state_digest(read) == state_digest(ODD)
    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {n: (t.dtype, t.shape) for n, t in ODD.items()}
    assert not read["trained"].requires_grad


def test_a_blob_with_code_in_it_is_not_run() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("the code in the blob ran",)

    file = io.BytesIO()
    torch.save({"weights": Trap()}, file)

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        from_bytes(file.getvalue())


def test_a_digest_is_over_sorted_names_dtypes_shapes_and_bytes() -> None:
    expected = hashlib.sha256()
    expected.update(b"a\0torch.float32\0(2,)\0" + struct.pack("<2f", 1.0, -2.0))
    expected.update(b"b\0torch.int64\0()\0" + struct.pack("<q", 7))

    assert state_digest({"b": torch.tensor(7), "a": torch.tensor([1.0, -2.0])}) == expected.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0, -0.0, 4.0])},
        {"a": torch.tensor([1.0, 2.0, 0.0, 4.000001])},
        {"a": torch.tensor([2.0, 1.0, 0.0, 4.0])},
        {"a": torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=torch.float64)},
        {"a": torch.tensor([[1.0, 2.0], [0.0, 4.0]])},
        {"b": torch.tensor([1.0, 2.0, 0.0, 4.0])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, 4.0])},
        {},
    ],
    ids=["sign of zero", "last bit", "order", "dtype", "shape", "name", "cut in two", "nothing"],
)
def test_a_digest_sees_every_difference(other: dict[str, Tensor]) -> None:
    assert state_digest(other) != state_digest({"a": torch.tensor([1.0, 2.0, 0.0, 4.0])})


def test_a_digest_does_not_ask_how_a_tensor_lies_in_memory() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    parts = {"one": square[1:], "other": square.T}

    assert state_digest(parts) == state_digest({name: part.clone().contiguous() for name, part in parts.items()})
    assert state_digest(parts) != state_digest({"one": square[1:], "other": square})


def test_the_digest_of_a_blob_is_its_sha256() -> None:
    assert blob_digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
