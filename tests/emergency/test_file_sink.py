"""The file sink: one durable line for each signal; a file that cannot be written is a failure of the sink."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.emergency import file_sink
from esper.emergency.file_sink import FileSink
from esper.emergency.settings import FileSinkConfig
from esper.emergency.sinks import make_sinks
from esper.errors import SinkFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, telling


def signal(signal_id: str) -> EmergencySignal:
    return EmergencySignal(
        signal_id=signal_id,
        run_id="run",
        generation=1,
        level=Level.NOTICE,
        origin="test",
        reason="two\nlines",
        issued_at=EPOCH,
    )


def ids(path: Path) -> list[str]:
    return [json.loads(line)["signal_id"] for line in path.read_text().splitlines()]


async def test_a_sink_whose_folder_is_missing_is_made_and_waits_for_it(tmp_path: Path) -> None:
    """So the emergency actor can restart while a sink is down."""
    path = tmp_path / "share" / "signals.jsonl"
    (sink,) = make_sinks([FileSinkConfig(name="log", kind="file", path=str(path))], tmp_path, {})
    with pytest.raises(SinkFailed, check=telling(str(path))):
        await sink.send(signal("a"))
    path.parent.mkdir()
    await sink.send(signal("b"))
    assert ids(path) == ["b"]


async def test_each_signal_is_a_line_of_the_default_file(tmp_path: Path) -> None:
    (sink,) = make_sinks([FileSinkConfig(name="log", kind="file")], tmp_path, {})
    for one in ("a", "b", "a"):
        await sink.send(signal(one))
    assert ids(tmp_path / "signals.jsonl") == ["a", "b", "a"]
    line = json.loads((tmp_path / "signals.jsonl").read_text().splitlines()[0])
    assert (line["level"], line["reason"]) == ("NOTICE", "two\nlines")


async def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"signal_id": "to')
    await FileSink("log", path, 9.0).send(signal("next"))
    assert json.loads(path.read_text().splitlines()[1])["signal_id"] == "next"


async def test_a_signal_is_confirmed_after_its_line_and_the_name_of_its_file_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    monkeypatch.setattr(os, "fsync", noted)
    sink = FileSink("log", tmp_path / "log", 9.0)
    for one in ("a", "b"):
        await sink.send(signal(one))
        done.append(one)
    assert done == ["file", "folder", "a", "file", "b"]


WRONG: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to(path.with_name("elsewhere")),
    "a missing folder": lambda path: path.name,
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
async def test_what_is_no_file_is_a_failure_of_the_sink(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "missing" / "log" if make is WRONG["a missing folder"] else tmp_path / "log"
    make(path)
    with pytest.raises(SinkFailed, check=telling(str(path), sink="log")):
        await FileSink("log", path, 9.0).send(signal("a"))
    assert not (tmp_path / "elsewhere").exists()


async def test_a_file_system_that_does_not_answer_is_a_failure_and_is_not_asked_again_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []
    write = file_sink.append_line
    monkeypatch.setattr(file_sink, "append_line", lambda *given: (asked.append(given), answers.wait(), write(*given)))
    sink = FileSink("log", tmp_path / "log", 0.05)
    with pytest.raises(SinkFailed, check=telling("0.05 s")):
        await sink.send(signal("a"))
    with pytest.raises(SinkFailed, check=telling("has not returned")):
        await sink.send(signal("a"))
    assert len(asked) == 1
    answers.set()
