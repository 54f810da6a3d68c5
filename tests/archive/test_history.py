"""What the journals of a run say together: refused where it is open what counts, shown as far as it can be read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage import flip, flip_record

from esper.archive.history import committed, level_history, look_at, read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import Journal, RecordKind, read
from esper.archive.journal_schema import SAID
from esper.archive.run_directory import checkpoints_folder, journal_file, reports_folder, run_file
from esper.durable.log import FramedLog, scan
from esper.durable.log_format import Frame, image
from esper.errors import EsperError, RunDirectoryError, StoreCorrupt
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, telling


@pytest.fixture
def path(drained_twice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drained_twice, tmp_path / "run"))


def signal(said: Level) -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id=said.name, run_id="r", generation=1, level=said, origin="operator", reason="", issued_at=EPOCH
    )


# -- damage ------------------------------------------------------------------------------------------------------


def lose_fence_4(path: Path) -> None:
    """The older journal says nothing of the fence that the newer one goes on from."""
    flip_record(journal_file(path, 1), RecordKind.CHECKPOINT_BEGUN, 4)
    flip_record(journal_file(path, 1), RecordKind.CHECKPOINT_COMMITTED, 4)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "header of the older": ("journal-1.log", lambda path: flip(journal_file(path, 1), 0)),
    "header of the newest": ("journal-2.log", lambda path: flip(journal_file(path, 2), 0)),
    "older missing": ("journal-1.log", lambda path: journal_file(path, 1).unlink()),
    "newest missing": ("journal-2.log", lambda path: journal_file(path, 2).unlink()),
    "takeover damaged": ("journal-2.log", lambda path: flip_record(journal_file(path, 2), RecordKind.SUPERSEDED)),
    "fence lost": ("journal-2.log", lose_fence_4),
    "foreign run.json": ("run.json", lambda path: run_file(path).write_text('{"run_id": 3}')),
    "no run.json": ("run.json", lambda path: run_file(path).unlink()),
}
"""The file that is named, and how the damage is done."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_whoever_goes_on_is_refused_where_it_is_open_what_counts(path: Path, damage: str) -> None:
    DAMAGES[damage][1](path)
    with pytest.raises(EsperError) as caught:
        read_past(path)
    assert isinstance(caught.value, RunDirectoryError if damage == "no run.json" else StoreCorrupt)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whoever_looks_is_shown_the_rest_and_each_damage(path: Path, damage: str) -> None:
    name, harm = DAMAGES[damage]
    harm(path)
    found = look_at(path)
    assert name in [one.file for one in found.damages if one.offset is None]
    assert found.damaged
    assert found.newest_lost is (damage in ("header of the newest", "newest missing"))
    assert found.entries
    assert all((checkpoints_folder(path) / written.file).exists() for written in found.commits)


def test_what_is_lost_of_one_journal_is_all_that_is_lost(path: Path) -> None:
    flip(journal_file(path, 1), 0)
    found = look_at(path)
    assert [e.body["fence"] for e in found.entries if e.kind is RecordKind.ROUND_ENDED] == [5, 6]
    assert [written.fence for written in found.commits] == [5, 6]
    assert [str(one) for one in found.damages] == [
        "journal-1.log: is not a framed log: the magic is missing",
        "journal-2.log: it continues from fence 4, which the older journals do not contain",
    ]


def test_the_journals_say_what_a_lost_run_json_said(path: Path) -> None:
    before = read_past(path).identity
    run_file(path).unlink()
    assert look_at(path).identity == before


def test_where_the_record_of_a_fence_is_lost_nothing_later_is_shown_as_if_it_counted(path: Path) -> None:
    for kind in (RecordKind.CHECKPOINT_BEGUN, RecordKind.CHECKPOINT_COMMITTED):
        flip_record(journal_file(path, 2), kind, 5)
    with Journal(path, 3) as journal:
        journal.supersede(5)
    found = look_at(path)
    assert "fence 5" in found.damages[-1].reason
    assert [e.body["fence"] for e in found.entries if e.kind is RecordKind.ROUND_ENDED] == [1, 2, 3, 4, 5]
    assert 6 not in [written.fence for written in found.commits]


def test_a_damaged_record_that_decides_nothing_is_told_and_no_reason_to_refuse(path: Path) -> None:
    flip_record(journal_file(path, 1), RecordKind.ROUND_ENDED, 2)
    (damage,) = read_past(path).damages
    assert (damage.file, damage.torn, look_at(path).damaged) == ("journal-1.log", False, True)
    assert damage.offset is not None
    assert str(damage) == f"journal-1.log, byte {damage.offset}: the checksum of the payload is wrong"


def test_an_append_that_was_cut_short_is_no_damage(path: Path) -> None:
    file = journal_file(path, 2)
    file.write_bytes(file.read_bytes()[:-3])
    found = look_at(path)
    assert [damage.torn for damage in found.damages] == [True]
    assert not found.damaged
    assert read_past(path).damages == found.damages


@pytest.mark.parametrize("cut", ["in a record", "between two"])
def test_a_journal_that_is_shorter_than_it_was_when_it_was_taken_over_is_damaged(path: Path, cut: str) -> None:
    file = journal_file(path, 1)
    whole, last = file.read_bytes(), read(file)[0][-1]
    end = len(whole) - 3 if cut == "in a record" else last.offset
    file.write_bytes(whole[:end])
    found = look_at(path)
    assert found.damaged
    assert str(found.damages[-1]) == f"journal-1.log, byte {end}: ends here; {len(whole) - end} more bytes were there"
    assert len(found.damages) == 1 + (cut == "in a record")


def test_a_journal_under_another_ones_name_is_refused(path: Path) -> None:
    shutil.copy(journal_file(path, 1), journal_file(path, 2))
    with pytest.raises(StoreCorrupt, check=telling("journal-2.log", "generation 1")):
        read_past(path)


def test_a_record_that_was_being_written_when_a_later_journal_took_over_does_not_count(path: Path) -> None:
    """A writer that should be dead completes it; it was not there for whoever took over."""
    older, newer = scan(journal_file(path, 1)), scan(journal_file(path, 2))
    last, takeover = older.frames[-1], newer.frames[0]
    said = json.loads(takeover.payload)
    said["lengths"]["1"] = last.end - 1
    write(journal_file(path, 2), [replace(takeover, payload=json.dumps(said).encode()), *newer.frames[1:]], 2)
    assert {e.offset for e in read_past(path).entries if e.kind == last.kind}.isdisjoint({last.offset})


def test_a_record_of_an_unknown_kind_at_the_end_is_not_taken_for_a_torn_one(path: Path) -> None:
    with FramedLog.open(journal_file(path, 2), epoch=2) as log:
        log.append(999, b"{}")
    assert [damage.torn for damage in look_at(path).damages] == [False]


def test_a_gap_in_the_row_of_journals_is_one_damage_however_wide(path: Path) -> None:
    shutil.copy(journal_file(path, 2), journal_file(path, 10**12))
    (damage,) = [one for one in look_at(path).damages if "missing" in one.reason]
    assert str(damage) == "journal-3.log: is missing, as are all up to journal-999999999999.log"


def test_looking_at_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for nothing in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RunDirectoryError, check=telling("no run", field="RUN")):
            look_at(nothing)


def test_a_run_that_died_before_it_had_a_journal_has_a_past_without_records(path: Path) -> None:
    run_file(path).write_text(read_past(path).identity.model_copy(update={"generation": 1}).model_dump_json())
    for generation in (1, 2):
        journal_file(path, generation).unlink()
    for left in (checkpoints_folder(path), reports_folder(path)):
        with pytest.raises(StoreCorrupt, check=telling("journal-1.log", "missing")):
            read_past(path)
        shutil.rmtree(left)
    past = read_past(path)
    assert (past.generation, past.entries, past.commits, past.damages) == (0, (), (), ())
    assert not look_at(path).newest_lost


@pytest.mark.parametrize("kind", SAID)
def test_a_sound_record_that_does_not_say_what_one_of_its_kind_says_is_damage(path: Path, kind: RecordKind) -> None:
    sound, seen = read_past(path), inspect_run(path)
    place = journal_file(path, 2).stat().st_size
    with FramedLog.open(journal_file(path, 2), epoch=2) as log:
        log.append(int(kind), b'{"fence": "six"}')
    found = read_past(path)
    (damage,) = found.damages
    assert (damage.file, damage.offset, damage.torn) == ("journal-2.log", place, False)
    assert re.fullmatch(rf"no journal record: {kind.name}\.\w+: [^\n]+", damage.reason)
    assert (found.entries, found.commits) == (sound.entries, sound.commits)
    assert inspect_run(path)["seeds"] == seen["seeds"]


def test_a_record_that_is_no_object_is_damage(path: Path) -> None:
    with FramedLog.open(journal_file(path, 2), epoch=2) as log:
        log.append(int(RecordKind.HOLD), b"[]")
    (damage,) = read_past(path).damages
    assert damage.reason.startswith("no journal record: HOLD: must be a table")


# -- commits that come late --------------------------------------------------------------------------------------


def write(file: Path, frames: list[Frame], epoch: int) -> None:
    file.write_bytes(image([Frame(0, n, f.kind, f.payload) for n, f in enumerate(frames)], epoch=epoch))


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_commit_may_come_before_the_record_that_takes_over(path: Path, taken_over: bool) -> None:
    """The thread that commits does not wait for a rollback; and a crash may come between the two."""
    older, takeover = scan(journal_file(path, 1)).frames, scan(journal_file(path, 2)).frames[0]
    late = next(f for f in older if f.kind == RecordKind.CHECKPOINT_COMMITTED and json.loads(f.payload)["fence"] == 4)
    write(journal_file(path, 1), [frame for frame in older if frame is not late], 1)
    said = {**json.loads(takeover.payload), "lengths": {"1": journal_file(path, 1).stat().st_size}}
    takeover = replace(takeover, payload=json.dumps(said).encode())
    write(journal_file(path, 2), [late, takeover] if taken_over else [late], 2)
    past = read_past(path)
    assert past.damages == ()
    assert [written.fence for written in committed(past.entries)] == [0, 1, 2, 3, 4]
    assert past.entries[-1].kind is (RecordKind.SUPERSEDED if taken_over else RecordKind.CHECKPOINT_COMMITTED)


def test_a_journal_that_could_not_take_over_is_no_damage(path: Path) -> None:
    with Journal(path, 3) as journal:
        journal.write(RecordKind.RUN_FAILED, error="StoreWriteFailed", fence=6, trace_id="")
    past = read_past(path)
    assert (past.damages, past.entries[-1].kind) == ((), RecordKind.RUN_FAILED)
    assert [e.body["fence"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED] == [1, 2, 3, 4, 5, 6]


# -- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_fence", [5, None])
def test_a_signal_is_not_unheard_when_the_run_goes_back_to_before_it(path: Path, from_fence: int | None) -> None:
    with Journal(path, 2) as journal:
        journal.write(RecordKind.SIGNAL, signal(Level.ELEVATED))
    with Journal(path, 3) as journal:
        journal.supersede(from_fence)
    past = read_past(path)
    assert level_history(past.entries, 1).was_ever(Level.ELEVATED)
    assert [e.body["fence"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED] == [1, 2, 3, 4, 5][
        : from_fence or 0
    ]


def test_what_a_dead_writer_heard_later_counts_for_nothing(path: Path) -> None:
    with Journal(path, 1) as journal:
        journal.write(RecordKind.SIGNAL, signal(Level.CONSERVATIVE))
    assert not level_history(read_past(path).entries, 1).was_ever(Level.NOTICE)
