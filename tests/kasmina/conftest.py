"""What tests of Kasmina share: commands as Tamiyo signs them, and what was said while a test ran. It tests nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.leyline.commands import BlendSpec, Candidate, Command, CommandKind, Operation, sign
from esper.leyline.slots import Kind, SlotSpec
from esper.telemetry import Telemetry, use
from esper.telemetry.events import LOG
from esper.testing import EPOCH

KEY = b"a key of a test's own, 32 bytes."
RUN = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def run_id() -> str:
    return RUN


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    with Telemetry.start(tmp_path / "telemetry", "kasmina") as telemetry, use(telemetry):
        yield telemetry


@pytest.fixture
def told(telemetry: Telemetry) -> Callable[[], list[dict[str, Any]]]:
    """Every severe event so far, as it stands in the log."""

    def read() -> list[dict[str, Any]]:
        log = telemetry.directory / LOG
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return read


@pytest.fixture
def body_spec() -> SlotSpec:
    """The slot "body" of `TinyHost`."""
    return SlotSpec(
        path="body",
        kind=Kind.NC,
        shape=(8,),
        dtype="torch.float32",
        device="cpu",
        causal=False,
        samples_independent=True,
    )


@pytest.fixture
def make_command() -> Callable[..., Command]:
    """A sound, signed command; any field may be another, and then it is signed with that."""

    def make(operation: Operation = Operation.GERMINATE, *, key: bytes = KEY, **changes: Any) -> Command:
        name = changes.pop("name", "1")
        fields: dict[str, Any] = {
            "command_id": f"command-{name}",
            "run_id": RUN,
            "generation": 1,
            "issued_at": EPOCH,
            "issued_by": "tamiyo",
            "operation": operation,
            "feature_coverage": 1.0,
            "policy_version": "scripted-1",
            "nonce": f"nonce-{name}",
        }
        if operation is Operation.SCALE_RATE:
            fields |= {"kind": CommandKind.OPTIMIZER, "rate_scale": 0.5}
        elif operation is Operation.GO_BACK:
            fields |= {"kind": CommandKind.ROLLBACK, "to_fence": 3}
        else:
            fields["mesh_host_layers"] = ("body",)
        if operation is Operation.GERMINATE:
            fields["candidates"] = (Candidate(slot="body", blueprint_id="mlp", seed_id=f"seed-{name}"),)
        elif operation is not Operation.GO_BACK:
            fields["seed_id"] = "seed-1"
        if operation in (Operation.GERMINATE, Operation.ADVANCE):
            fields["blend"] = BlendSpec(mode="RESIDUAL", ramp_steps=30)
        command = Command(**(fields | changes))
        return command.model_copy(update={"signature": sign(command, key)})

    return make
