"""A whole run in one process whose signals go to a webhook and a file: what arrives, and what its directory shows."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
from hooks import hook
from queues import signal
from span_files import ended

import esper
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.emergency.reading import read_queue
from esper.emergency.requests import SignalRequest, submit, waits
from esper.errors import Drained
from esper.flow.tally import Tally
from esper.leyline.state import RoundState
from esper.testing import StopAt, tiny_config, tiny_task

PATH, TOKEN = "hush-path", "hush-token"
SENT = ["at-0", "at-1"]
SENDER = f"00-{'ab' * 16}-{'cd' * 8}-01"
"""The traceparent of the process that sends the signals."""


class SendsOne(StopAt):
    """Puts a signal into the inbox at each fence, waits until it was taken, and requests a stop at fence 1."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(1)
        self._run_dir = run_dir

    def fence(self, state: RoundState, tally: Tally) -> None:
        super().fence(state, tally)
        run_id = json.loads((self._run_dir / "run.json").read_text())["run_id"]
        name = submit(
            self._run_dir / "emergency",
            SignalRequest(signal=signal(f"at-{state.fence}", run_id=run_id, traceparent=SENDER)),
        )
        while waits(self._run_dir / "emergency", name):
            time.sleep(0.005)


def test_signals_of_a_run_reach_webhook_and_file_and_the_run_directory_shows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN_OF_THE_HOOK", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run_dir, address = tmp_path / "run", tmp_path / "address"
    address.touch(mode=0o600)
    sinks = [
        {"name": "hook", "kind": "webhook", "url_file": str(address), "token_env": "TOKEN_OF_THE_HOOK"},
        {"name": "log", "kind": "file"},
    ]
    with hook() as server:
        address.write_text(f"{server.address}/{PATH}")
        waits_s = {"emergency__first_retry_s": 0.01, "emergency__longest_retry_s": 0.01, "emergency__drain_s": 60.0}
        config = tiny_config(run__dir=str(run_dir), emergency__sinks=sinks, **waits_s)
        progress = SendsOne(run_dir)
        with pytest.raises(Drained):
            esper.run(tiny_task(), config, progress=progress, drain=progress.drain)
        assert sorted(server.got) == [(f"/{PATH}", f"Bearer {TOKEN}", one) for one in SENT for _ in range(2)]
    lines = (run_dir / "emergency" / "signals.jsonl").read_text().splitlines()
    assert [json.loads(line)["signal_id"] for line in lines] == SENT
    journaled = [entry.body["signal_id"] for entry in read_past(run_dir).entries if entry.kind is RecordKind.SIGNAL]
    assert journaled == SENT
    assert read_queue(run_dir / "emergency" / "queue").waiting() == ()
    spans = ended(run_dir / "telemetry")
    sent = [one for one in spans if one["name"] == "send esper.emergency"]
    processed = [one for one in spans if one["name"] == "process esper.emergency"]
    assert len(processed) == len(SENT)
    assert len(sent) == 3 * len(SENT)  # the webhook fails once for each signal
    assert {one["links"][0]["spanId"] for one in (*sent, *processed)} == {SENDER.split("-")[2]}
    assert {one["parentSpanId"] for one in sent} == {""}
    assert sum("SinkFailed" in one["status"]["message"] for one in sent) == len(SENT)
    shown = {path.name: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert b"answered 500" in shown["severe-events.jsonl"]
    assert [name for name, content in shown.items() if PATH.encode() in content or TOKEN.encode() in content] == []
    assert PATH not in caplog.text
    assert TOKEN not in caplog.text


class LosesItsFolder(SendsOne):
    """Removes the folder of the sink's file before it sends signals, and notes what it is told."""

    def __init__(self, run_dir: Path, folder: Path) -> None:
        super().__init__(run_dir)
        self._folder, self.told = folder, list[str]()

    def fence(self, state: RoundState, tally: Tally) -> None:
        if state.fence == 0:
            self._folder.rmdir()
        super().fence(state, tally)

    def found(self, what: str) -> None:
        self.told.append(what)


@pytest.mark.slow
def test_signals_that_a_sink_has_not_got_at_the_end_of_a_run_are_sent_by_a_resume(tmp_path: Path) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / "mount"
    folder.mkdir()
    waits_s = {"emergency__first_retry_s": 1e6, "emergency__longest_retry_s": 1e6, "emergency__drain_s": 0.0}
    sinks = [{"name": "log", "kind": "file", "path": str(folder / "log")}]
    config = tiny_config(run__dir=str(run_dir), emergency__sinks=sinks, **waits_s)
    progress = LosesItsFolder(run_dir, folder)
    esper.run(tiny_task(), config, progress=progress)
    assert len([line for line in progress.told if "log" in line]) == 1

    folder.mkdir()
    again = LosesItsFolder(run_dir, folder)
    ended = (run_dir / "summary.json").read_bytes()
    now = {"emergency.first_retry_s": 0.001, "emergency.longest_retry_s": 0.001, "emergency.drain_s": 60.0}
    esper.resume(run_dir, tiny_task(), now, progress=again)
    sent = [json.loads(line)["signal_id"] for line in (folder / "log").read_text().splitlines()]
    journaled = [entry.body["signal_id"] for entry in read_past(run_dir).entries if entry.kind is RecordKind.SIGNAL]
    assert sorted(sent) == sorted(journaled)
    assert len(sent) > 2
    assert again.told == []
    assert (run_dir / "summary.json").read_bytes() == ended
