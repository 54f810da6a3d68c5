"""A run on actors whose spans go to a collector: from every process, to the last span, and no file shows a header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.embedded_ray import EmbeddedRay
from esper.flow.result import Result


def test_every_span_of_every_actor_reaches_the_collector_and_no_file_has_the_secret(
    launch_tiny: Any, embedded: EmbeddedRay, tmp_path: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collector import collecting  # not above: Ray's workers do not have tests/kit
    from span_files import ended

    secret = "sesame-of-the-collector"
    with collecting("http/protobuf") as kept:  # Ray was started before these variables were set
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={secret}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # only the flush at the end exports
        result = launch_tiny()
    assert result.weights_sha256 == undisturbed.weights_sha256
    got = [span.span_id.hex() for span in kept.spans]
    assert sorted(got) == sorted(one["spanId"] for one in ended(tmp_path / "run" / "telemetry"))
    roles = {pair.value.string_value for one in kept.resources for pair in one.attributes if pair.key == "esper.role"}
    assert roles >= {"conductor", "emergency", "kasmina", "manager-0", "tamiyo", "tolaria"}
    assert kept.headers["authorization"] == secret
    assert list(embedded.folder.rglob("*worker*"))
    assert [
        file for folder in (tmp_path, embedded.folder) for file in folder.rglob("*") if _has(file, secret.encode())
    ] == []


def _has(file: Path, secret: bytes) -> bool:
    return file.is_file() and secret in file.read_bytes()
