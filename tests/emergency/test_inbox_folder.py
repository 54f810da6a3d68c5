"""The inbox folder: what is a request is carried out once, and what is none is refused with a reason; nothing stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from queues import signal
from recording import Recording
from services import queue_in, running, until, word_in

from esper.emergency import emergency_service, inbox_folder, request_answers
from esper.emergency.emergency_service import QUEUE
from esper.emergency.inbox_folder import MOST_TAKEN, InboxFolder
from esper.emergency.intake import Intake
from esper.emergency.queue import EmergencyQueue
from esper.emergency.reading import read_queue
from esper.emergency.requests import DropRequest, Refusal, RetryRequest, SignalRequest, is_taken, refusal, submit, waits
from esper.errors import StoreCorrupt, StoreWriteFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import use
from esper.telemetry.setup import Telemetry
from esper.testing import FakeClock


async def answer(folder: Path, name: str) -> Refusal | None:
    """Wait until a request has left the inbox, and return its refusal."""
    await until(lambda: not waits(folder, name))
    return refusal(folder, name)


async def calls_without_end(folder: Path, first: Callable[[], None] = list) -> None:
    """Call a service until it raises the failure of a task in its background."""
    async with running(folder) as service:
        first()
        while True:
            await service.rebind(1)


def put(folder: Path, content: bytes, name: str = "signal-1.json") -> str:
    (folder / "inbox").mkdir(exist_ok=True)
    (folder / "inbox" / name).write_bytes(content)
    return name


async def test_a_signal_from_outside_is_published_and_stops_the_trainers(tmp_path: Path) -> None:
    name = submit(tmp_path, SignalRequest(signal=signal("early", Level.NOTICE)))
    assert waits(tmp_path, name)
    async with running(tmp_path) as service:
        assert await answer(tmp_path, name) is None
        name = submit(tmp_path, SignalRequest(signal=signal("halt", Level.HALT)))
        assert await answer(tmp_path, name) is None
        assert word_in(tmp_path).halted()
        assert [one.signal_id for one in await service.pending("conductor")] == ["halt", "early"]
        name = submit(tmp_path, SignalRequest(signal=signal("halt", Level.HALT)))
        assert await answer(tmp_path, name) is None  # a repetition, as after a crash before the file was removed
        assert len(await service.pending("conductor")) == 2
    assert not (tmp_path / "refused").exists()


async def test_after_the_close_a_request_waits_for_the_next_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emergency_service, "LOOK_S", 0.0)
    async with running(tmp_path) as service:
        await service.close()
        name = submit(tmp_path, SignalRequest(signal=signal("a")))
        for _ in range(20):
            assert await service.pending("conductor") == ()
    assert waits(tmp_path, name)
    async with running(tmp_path, generation=2) as service:
        assert await answer(tmp_path, name) is None
        assert [one.signal_id for one in await service.pending("conductor")] == ["a"]


async def test_a_request_stays_in_the_inbox_until_the_queue_has_made_it_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = submit(tmp_path, SignalRequest(signal=signal("a")))
    publish, seen = EmergencyQueue.publish, list[bool]()

    def fail(queue: EmergencyQueue, one: EmergencySignal) -> int:
        seen.append(waits(tmp_path, name))
        if len(seen) == 1:
            raise StoreWriteFailed("queue", "append")
        return publish(queue, one)

    monkeypatch.setattr(EmergencyQueue, "publish", fail)
    with pytest.raises(StoreWriteFailed):
        await calls_without_end(tmp_path)
    assert waits(tmp_path, name)
    async with running(tmp_path, generation=2):
        assert await answer(tmp_path, name) is None
    assert seen == [True, True]


async def test_dead_letters_are_sent_again_or_dropped_by_order(tmp_path: Path) -> None:
    sink = Recording(fails=lambda _: len(sink.tried) <= 2)
    async with running(tmp_path, sink, attempts=1) as service:
        for one in ("a", "b"):
            await service.publish(signal(one))
            await service.acknowledge("conductor", [one])

        def dead() -> list[str]:
            held = read_queue(tmp_path / QUEUE).waiting()
            return [one.signal.signal_id for one in held if all(found.dead for found in one.waiting.values())]

        await until(lambda: dead() == ["a", "b"])
        assert await answer(tmp_path, submit(tmp_path, DropRequest(ids=("b",), why="it is known"))) is None
        assert await answer(tmp_path, submit(tmp_path, RetryRequest(ids=("a",)))) is None
        await until(lambda: not read_queue(tmp_path / QUEUE).waiting())
        assert (sink.tried, sink.got) == (["a", "b", "a"], ["a"])
        for order in (RetryRequest(ids=("a",)), DropRequest(ids=("c",), why="")):
            refused = await answer(tmp_path, submit(tmp_path, order))
            assert refused is not None
            assert order.ids[0] in refused.why


async def test_what_the_queue_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for number in range(48):
            await service.publish(signal(f"n{number}"))
        for one, error, named in (
            (signal("late"), "EmergencyQueueFull", "late"),
            (signal("n0", reason="another"), "DependencyViolationError", "n0"),
            (signal("b").model_copy(update={"checksum": ""}), "DependencyViolationError", "checksum"),
            (signal("c", run_id="another"), "ConfigError", "another"),
        ):
            refused = await answer(tmp_path, submit(tmp_path, SignalRequest(signal=one)))
            assert refused is not None
            assert refused.error == error
            assert named in refused.why


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), "no request"),
    "no JSON": (lambda path: path.write_text("halt!"), "no request"),
    "no UTF-8": (lambda path: path.write_bytes(b'{"kind": "\xff"}'), "no request"),
    "another kind": (lambda path: path.write_text('{"kind": "stop"}'), "'kind' must be"),
    "a field too many": (
        lambda path: path.write_text('{"kind": "drop", "ids": ["a"], "why": "", "x": 1}'),
        "not known",
    ),
    "no ids": (lambda path: path.write_text('{"kind": "retry", "ids": []}'), "1 or more"),
    "nested deeply": (lambda path: path.write_text("[" * 60_000), "no request"),
    "too large": (lambda path: path.write_bytes(b" " * 65_537), "more than 65536 bytes"),
    "a hole of a terabyte": (lambda path: (path.touch(), os.truncate(path, 2**40)), "more than 65536 bytes"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a link to a request": (lambda path: path.symlink_to(path.with_name(".good")), "symbolic link"),
    "a link in a circle": (lambda path: path.symlink_to(path), "symbolic link"),
}


@pytest.mark.parametrize(("make", "why"), WRONG.values(), ids=WRONG)
async def test_a_file_that_is_no_request_is_refused_and_removed(
    make: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    good = SignalRequest(signal=signal("a")).model_dump_json().encode()
    put(tmp_path, good, ".good")
    make(tmp_path / "inbox" / "x.json")
    with Telemetry.start(tmp_path / "telemetry", "emergency") as telemetry, use(telemetry):
        async with running(tmp_path) as service:
            refused = await answer(tmp_path, "x.json")
            assert await service.pending("conductor") == ()
    assert refused is not None
    assert why in refused.why
    assert telemetry.counters.total("esper.signal.rejected") == 1
    (event,) = (tmp_path / "telemetry" / "severe-events.jsonl").read_text().splitlines()
    assert json.loads(event)["fields"]["signal_id"] == "x.json"
    assert (tmp_path / "inbox" / ".good").read_bytes() == good


@pytest.mark.parametrize("name", [b"\xff\xfe.json", b"n" * 255, "ü\n.json".encode(), b"-rf"])
async def test_a_name_that_no_log_can_hold_is_refused_under_another(name: bytes, tmp_path: Path) -> None:
    put(tmp_path, b"x", os.fsdecode(name))
    async with running(tmp_path):
        await until(lambda: not os.listdir(tmp_path / "inbox"))
    (left,) = os.listdir(tmp_path / "refused")
    assert left.startswith("other-")
    assert left.isascii()


async def test_a_folder_and_a_file_in_the_making_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path, b"{", ".half.tmp")
    (tmp_path / "inbox" / "folder").mkdir()
    async with running(tmp_path):
        await answer(tmp_path, put(tmp_path, b"x", "x.json"))
    assert sorted(os.listdir(tmp_path / "inbox")) == [".half.tmp", "folder"]


# -- bounds ------------------------------------------------------------------------------------------------------


def reader(folder: Path) -> InboxFolder:
    return InboxFolder(folder, Intake(queue_in(folder), word_in(folder), 1, list), "run", FakeClock())


def test_a_halt_is_read_before_all_others_and_a_look_takes_few(tmp_path: Path) -> None:
    inbox = reader(tmp_path)
    for number in range(200):
        put(tmp_path, b"", f"a-{number}.json")
    name = submit(tmp_path, SignalRequest(signal=signal("halt", Level.HALT)))
    assert inbox.names()[0] == name
    assert len(inbox.names()) == MOST_TAKEN


def test_a_look_into_a_strangers_folder_reads_a_bounded_number_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = reader(tmp_path)
    read: list[str] = []
    scan = os.scandir

    class Counted:
        def __init__(self, path: Path) -> None:
            self.entries = scan(path)

        def close(self) -> None:
            self.entries.close()

        def __iter__(self) -> Counted:
            return self

        def __next__(self) -> os.DirEntry[str]:
            entry = next(self.entries)
            read.append(entry.name)
            return entry

    monkeypatch.setattr(inbox_folder, "MOST_NAMES", 50)
    monkeypatch.setattr(os, "scandir", Counted)
    for number in range(200):
        put(tmp_path, b"", f"{number}.json")
    assert len(inbox.names()) == 50
    assert len(read) == 50
    inbox.close()


def test_a_halt_is_found_in_a_crowd_of_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, hidden files, and files with the name of a HALT: each call reads a part of them, and it is reported."""
    monkeypatch.setattr(inbox_folder, "MOST_NAMES", 200)
    with Telemetry.start(tmp_path / "telemetry", "emergency") as telemetry, use(telemetry):
        inbox = reader(tmp_path)
        for number in range(300):
            (tmp_path / "inbox" / f"folder-{number}").mkdir()
            put(tmp_path, b"", f".{number}")
            put(tmp_path, b"", f"halt-0{number}.json")
        name = submit(tmp_path, SignalRequest(signal=signal("halt", Level.HALT)))
        found = [inbox.names() for _ in range(10)]
        inbox.close()
    assert [sum(name in names for names in part) for part in (found[:5], found[5:])] == [1, 1]
    told = (tmp_path / "telemetry" / "severe-events.jsonl").read_text()
    assert told.count("emergency_inbox_crowded") == 1


async def test_the_number_of_refusals_is_bounded_and_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a stranger do not look newer, whatever their times are."""
    monkeypatch.setattr(request_answers, "MOST_ANSWERS", 3)
    (tmp_path / "refused").mkdir()
    for one in "xyz":
        (tmp_path / "refused" / one).touch()
        os.utime(tmp_path / "refused" / one, (2**32, 2**32))
    async with running(tmp_path):
        for number in range(6):
            assert await answer(tmp_path, put(tmp_path, b"x", f"{number}.json")) is not None
    assert sorted(os.listdir(tmp_path / "refused")) == ["3.json", "4.json", "5.json"]


async def test_only_a_request_that_was_carried_out_has_a_receipt(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    names = [submit(tmp_path, SignalRequest(signal=signal("a"))), put(tmp_path, b"x")]
    lost = submit(tmp_path, SignalRequest(signal=signal("b")))
    (tmp_path / "inbox" / lost).unlink()
    async with running(tmp_path):
        for name in names:
            await answer(tmp_path, name)
    assert [is_taken(tmp_path, name) for name in [*names, lost]] == [True, False, False]


# -- a folder that was removed, replaced or locked --------------------------------------------------------------------


def nothing_is_left(folder: Path) -> None:
    (folder / "refused").rename(folder / "gone")
    (folder / "taken").rename(folder / "gone-too")


def folders_have_the_names(folder: Path) -> None:
    for name in ("bad.json", "good.json"):
        (folder / "refused" / name).mkdir()
        (folder / "taken" / name).mkdir()


def files_have_the_places(folder: Path) -> None:
    nothing_is_left(folder)
    (folder / "refused").touch()
    (folder / "taken").touch()


def links_have_the_places(folder: Path) -> None:
    nothing_is_left(folder)
    (folder / "refused").symlink_to(folder)
    (folder / "taken").symlink_to(folder)


@pytest.mark.parametrize(
    ("harm", "lost"),
    [(nothing_is_left, 0), (folders_have_the_names, 2), (files_have_the_places, 2), (links_have_the_places, 2)],
)
async def test_no_harm_to_the_answers_stops_the_service(
    harm: Callable[[Path], None], lost: int, tmp_path: Path
) -> None:
    """Without its answer, a request is carried out or refused nevertheless."""
    good = SignalRequest(signal=signal("good")).model_dump_json().encode()
    with Telemetry.start(tmp_path / "telemetry", "emergency") as telemetry, use(telemetry):
        async with running(tmp_path) as service:
            for name, content in (("first.json", b"x"), ("second.json", good)):
                await answer(tmp_path, put(tmp_path, content, name))
            harm(tmp_path)
            put(tmp_path, b"x", "bad.json")
            put(tmp_path, good, "good.json")
            await until(lambda: not os.listdir(tmp_path / "inbox"))
            assert [one.signal_id for one in await service.pending("conductor")] == ["good"]
    told = (tmp_path / "telemetry" / "severe-events.jsonl").read_text()
    assert told.count("emergency_answer_lost") == lost
    assert telemetry.counters.total("esper.signal.rejected") == 2


async def test_an_inbox_that_was_removed_is_made_again_and_it_is_told(tmp_path: Path) -> None:
    with Telemetry.start(tmp_path / "telemetry", "emergency") as telemetry, use(telemetry):
        async with running(tmp_path) as service:
            (tmp_path / "inbox").rmdir()
            await until((tmp_path / "inbox").exists)
            name = submit(tmp_path, SignalRequest(signal=signal("a")))
            assert await answer(tmp_path, name) is None
            assert [one.signal_id for one in await service.pending("conductor")] == ["a"]
    (event,) = (tmp_path / "telemetry" / "severe-events.jsonl").read_text().splitlines()
    assert json.loads(event)["name"] == "emergency_inbox_unreadable"


def test_an_inbox_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    with Telemetry.start(tmp_path / "telemetry", "emergency") as telemetry, use(telemetry):
        inbox = reader(tmp_path)
        (tmp_path / "inbox").rmdir()
        (tmp_path / "inbox").touch()
        assert [inbox.names(), inbox.names()] == [[], []]
    assert len((tmp_path / "telemetry" / "severe-events.jsonl").read_text().splitlines()) == 1


def test_a_file_that_cannot_be_removed_is_read_once_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(path), missing_ok)

    inbox = reader(tmp_path)
    put(tmp_path, b"x")
    monkeypatch.setattr(Path, "unlink", refuse)
    (name,) = inbox.names()
    inbox.take(name)
    assert inbox.names() == []
    assert told().count("emergency_inbox_stuck") == 1


def test_a_refusal_that_esper_did_not_write_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "x.json").write_text("{}")
    with pytest.raises(StoreCorrupt):
        refusal(tmp_path, "x.json")
