"""A run that kills its process at a fault point: every ended span is in its file, and the open round is seen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from span_files import ended, never_ended

PROGRAM = """
import sys
import esper
from esper.config.joined import RunConfig
from esper.testing import tiny_config, tiny_task
fault = {"point": sys.argv[2], "fault": "kill", **({"step": 150} if "step" in sys.argv[2] else {"round": 3})}
config = tiny_config(run__dir=sys.argv[1], telemetry__step_every=1)
esper.run(tiny_task(), RunConfig.model_validate({**config.model_dump(), "faults": [fault]}))
"""


@pytest.mark.parametrize(
    ("point", "cut"),
    [
        ("tolaria.step", {"esper round"}),
        pytest.param("tamiyo.decide", {"esper round"}, marks=pytest.mark.torture),
        pytest.param("conductor.commit", set(), marks=pytest.mark.torture),
    ],
)
@pytest.mark.slow
def test_a_killed_process_leaves_every_span_that_had_ended_and_the_start_of_the_open_round(
    point: str, cut: set[str], tmp_path: Path
) -> None:
    died = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), point],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OTEL_TRACES_EXPORTER": "console"},  # a second record: the span file is written first
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    folder = tmp_path / "run" / "telemetry"
    kept = {span["spanId"] for span in ended(folder)}
    printed = set(re.findall(r'"context": \{\s*"trace_id": "\w+",\s*"span_id": "0x(\w{16})"', died.stderr))
    assert len(printed) > 100
    assert printed <= kept
    assert len(kept - printed) <= 1
    assert cut <= {span["name"] for span in never_ended(folder)} <= {"esper round"}
