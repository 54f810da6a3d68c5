"""A whole run whose collector is not there ends as a run without one, with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from collector import closed
from span_files import ended

import esper
from esper.flow.result import Result
from esper.telemetry.setup import Telemetry
from esper.testing import tiny_config, tiny_task


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.slow
def test_a_run_with_a_dead_collector_ends_with_the_same_bits_and_counts_what_it_lost(
    protocol: str,
    tmp_path: Path,
    undisturbed: Result,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    started: list[Telemetry] = []
    start = Telemetry.start

    def noted(*given: Any) -> Telemetry:
        started.append(start(*given))
        return started[-1]

    monkeypatch.setattr(Telemetry, "start", noted)
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": closed(),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=sesame",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_BSP_SCHEDULE_DELAY": "20",  # exports during the whole run
        "OTEL_EXPORTER_OTLP_TIMEOUT": "300",
    }.items():
        monkeypatch.setenv(name, value)
    result = esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")))

    for field in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps"):
        assert getattr(result, field) == getattr(undisturbed, field), field
    folder = tmp_path / "run" / "telemetry"
    (telemetry,) = started
    events = [json.loads(line) for line in (folder / "severe-events.jsonl").read_text().splitlines()]
    assert telemetry.counters.total("esper.spans.lost") == len(ended(folder)) > 50
    assert telemetry.counters.total("esper.log_records.lost") == len(events) > 0
    said = capfd.readouterr().err
    assert (said.count("spans to the OTLP collector are being lost"), "Traceback" in said) == (1, False)
    assert not [file for file in (tmp_path / "run").rglob("*") if file.is_file() and b"sesame" in file.read_bytes()]
