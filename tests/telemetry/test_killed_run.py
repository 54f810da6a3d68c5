"""A run that kills its process at a fault point: every ended span is in its file, the open round is seen, and the
resume is linked to it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from span_files import ended, never_ended, written

from esper import resume
from esper.cli.main import exit_code
from esper.telemetry import Telemetry, use
from esper.telemetry.context import span, traceparent
from esper.telemetry.last_span import last_traceparent
from esper.testing import tiny_task
from esper.trace.paths import find

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
def test_a_killed_process_leaves_its_spans_and_the_open_round_and_the_resume_is_linked_to_it(
    point: str, cut: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    run_dir, folder = tmp_path / "run", tmp_path / "run" / "telemetry"
    kept = {span["spanId"] for span in ended(folder)}
    printed = set(re.findall(r'"context": \{\s*"trace_id": "\w+",\s*"span_id": "0x(\w{16})"', died.stderr))
    assert len(printed) > 100
    assert printed <= kept
    assert len(kept - printed) <= 1
    assert cut <= {span["name"] for span in never_ended(folder)} <= {"esper round"}

    (*_, last), open_spans = written(folder), never_ended(folder)
    resume(run_dir, tiny_task())
    went_on = f"esper resume[continues_from={last['traceId']}]"
    assert exit_code(["trace", "assert", str(run_dir), f"{went_on} > esper start > checkpoint restore"]) == 0
    assert len(open_spans) == len(never_ended(folder))
    if cut:  # the trace of the death stays as it was, and says that its round never ended
        dead = find(run_dir, "esper round[ended=false]", role="conductor")
        assert dead.trace_ids == [last["traceId"]]
        capsys.readouterr()
        assert exit_code(["trace", "show", str(run_dir), last["traceId"]]) == 0
        assert "never ended" in capsys.readouterr().out
    (resumed,) = find(run_dir, "esper resume").ends.values()
    (link,) = resumed[0][0].span.links
    assert (link.trace_id, link.span_id) == (last["traceId"], last["spanId"])
    capsys.readouterr()
    assert exit_code(["trace", "show", str(run_dir), resumed[0][0].span.trace_id]) == 0
    assert f"link to trace {last['traceId']}" in "".join(capsys.readouterr().out.split("\n")).replace(
        "conductor   ", ""
    )


def test_the_last_span_is_found_in_any_folder(tmp_path: Path) -> None:
    whole = b'{"traceId":"%b","spanId":"%b","name":"x"}\n'
    first, second = (whole % (one * 32, one * 16) for one in (b"a", b"b"))
    assert last_traceparent(tmp_path) == last_traceparent(tmp_path / "none") == ""
    file, newer = tmp_path / "spans-conductor-1.jsonl", tmp_path / "spans-conductor-2.jsonl"
    file.write_bytes(first + second + first[:-9])  # the last line is torn
    assert last_traceparent(tmp_path) == f"00-{'b' * 32}-{'b' * 16}-01"
    newer.write_bytes(b"")
    (tmp_path / "spans-tolaria-1.jsonl").write_bytes(first)
    os.mkfifo(tmp_path / "spans-conductor-3.jsonl")  # it would block a reader
    (tmp_path / "spans-conductor-4.jsonl").symlink_to("/dev/zero")
    assert last_traceparent(tmp_path).startswith("00-bb")
    newer.write_bytes(b"no span\n" * 400_000)
    os.utime(newer, ns=(2**62, 2**62))
    assert last_traceparent(tmp_path) == ""


def test_a_delivery_to_a_sink_is_not_the_last_span(tmp_path: Path) -> None:
    """In one process couriers write into the file of the conductor, also after the round that failed."""
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry):
        with span("esper round", role="conductor"):
            failed = traceparent()
        with span("send esper.emergency", role="emergency", links_to=(failed,), new_trace=True):
            pass
    *_, last = written(tmp_path)
    assert last["name"] == "send esper.emergency"
    assert last_traceparent(tmp_path).split("-")[1:3] == failed.split("-")[1:3]
