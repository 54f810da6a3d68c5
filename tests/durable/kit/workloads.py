"""What is done on the disk that crashes, with what was promised at each instant, and what must hold afterwards.

A workload does things and tells its `Promises`; `check` reopens what a crash left with the real code and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

from code_under_test import Code
from crash_disk import FOLDER, CrashDisk, State

from esper.errors import StoreWriteFailed

Record = tuple[int, int, bytes]
"""Sequence, kind, payload."""

LOG = FOLDER / "a.log"
LIMIT_BYTES = 160
PROBE = (9, b"after")


@dataclass(frozen=True)
class Mark:
    """Tells the records of one run from those of another of the same shape; `extra_bytes` makes them longer."""

    text: str
    extra_bytes: int = 0

    def batch(self, name: str, *lengths: int) -> list[tuple[int, bytes]]:
        """Records that no other batch has."""
        return [
            (n + 1, f"{self.text}{name}{n}".encode().ljust(length + self.extra_bytes, b"."))
            for n, length in enumerate(lengths)
        ]


class Broken(AssertionError):
    """A promise was not kept."""


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


@dataclass(frozen=True)
class Promise:
    """What a crash at this instant must leave.

    `must` are the records that were acknowledged, `may` those that were under way or whose going was; `files` are the
    contents that a name may have, None for no file. `holes` are places (offset, length) known to hold no record: what
    a crash may leave of a batch that was under way, if a later record of it is whole.
    """

    must: tuple[Record, ...] = ()
    may: frozenset[Record] = frozenset()
    files: tuple[tuple[str, tuple[bytes | None, ...]], ...] = ()
    holes: frozenset[tuple[int, int]] = frozenset()

    def judge_records(self, found: list[Record]) -> None:
        missing = [record for record in self.must if record not in found]
        demand(not missing, f"acknowledged and lost: {missing}")
        strange = [record for record in found if record not in self.must and record not in self.may]
        demand(not strange, f"never promised: {strange}")
        numbers = [record[0] for record in found]
        demand(all(a < b for a, b in pairwise(numbers)), f"out of order: {numbers}")

    def judge_files(self, state: State) -> None:
        for name, allowed in self.files:
            found = state.get(name)
            demand(found in allowed, f"{name} holds {found!r}, neither old nor new")


@dataclass
class Promises:
    """The promise as it changes; a workload moves it, the watcher reads it.

    `moved` is called whenever more is promised than before: the power may fail right then.
    """

    now: Promise = field(default_factory=Promise)
    moved: Callable[[], None] = lambda: None

    @contextmanager
    def adding(self, first: int, records: list[tuple[int, bytes]]) -> Iterator[None]:
        """While it lasts the records may be there; afterwards they must."""
        new = tuple((first + n, kind, payload) for n, (kind, payload) in enumerate(records))
        self.now = replace(self.now, may=frozenset(new))
        yield
        self.now = replace(self.now, must=self.now.must + new, may=frozenset())
        self.moved()

    @contextmanager
    def dropping(self, gone: set[Record]) -> Iterator[None]:
        """While it lasts the records may go; afterwards they must have."""
        kept = tuple(record for record in self.now.must if record not in gone)
        self.now = replace(self.now, must=kept, may=frozenset(gone))
        yield
        self.now = replace(self.now, may=frozenset())
        self.moved()

    @contextmanager
    def replacing(self, name: str, new: bytes | None) -> Iterator[None]:
        """While it lasts the file is old or new; afterwards new."""
        files = dict(self.now.files)
        old = files.get(name) or (None,)
        self.now = replace(self.now, files=tuple((files | {name: (*old, new)}).items()))
        yield
        self.now = replace(self.now, files=tuple((files | {name: (new,)}).items()))
        self.moved()

    def failed(self) -> None:
        """A call failed and says that it took everything back."""
        self.now = replace(self.now, may=frozenset())
        self.moved()

    def reopened(self, found: list[Record]) -> None:
        """What a reopened log holds is a promise from now on."""
        self.now.judge_records(found)
        self.now = replace(self.now, must=tuple(found), may=frozenset())
        self.moved()


@dataclass(frozen=True)
class Workload:
    """`run` works from an empty folder; `resume` from whatever is there, as a process does that starts again."""

    name: str
    uses: frozenset[str]
    """The modules in which a mistake can show."""
    run: Callable[[Code, CrashDisk, Promises, Mark], None]
    resume: Callable[[Code, CrashDisk, Promises], None]
    """Also what every state that a crash leaves is put through: it raises `Broken` if the promise is not kept."""
    killed: bool = True
    """Whether it is killed at every change, too."""


# -- one log ----------------------------------------------------------------------------------------------------------


def read_log(code: Code, disk: CrashDisk) -> list[Record]:
    return [(frame.sequence, frame.kind, frame.payload) for frame in code.log.scan(LOG, disk=disk).frames]


def _append(log: object, promises: Promises, records: list[tuple[int, bytes]]) -> None:
    with promises.adding(log.next_sequence, records):
        log.append_many(records)


def _append_unsynced(log: object, promises: Promises, record: tuple[int, bytes], sync: Callable[[], None]) -> None:
    """Append without a sync: the record is promised after `sync`."""
    with promises.adding(log.next_sequence, [record]):
        log.append_unsynced(*record)
        sync()


def _append_failing(log: object, promises: Promises, records: list[tuple[int, bytes]]) -> None:
    """As `_append`, where an error was planted: it must surface."""
    try:
        _append(log, promises, records)
    except StoreWriteFailed:
        try:
            log.append_many([])
        except StoreWriteFailed:
            return  # the log takes no more: these records stay in doubt until it is opened again
        promises.failed()
        return
    raise Broken("an error of the disk did not surface")


def _run_log(code: Code, disk: CrashDisk, promises: Promises, mark: Mark) -> None:
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        _append(log, promises, mark.batch("a", 5))
        _append(log, promises, mark.batch("b", 12, 0, 7))
        disk.faults["write"] = 0
        _append_failing(log, promises, mark.batch("c", 9, 8))
        _append(log, promises, mark.batch("d", 9))
        _append(log, promises, mark.batch("e", 3, 3))
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        promises.reopened(read_log(code, disk))
        disk.bytes_per_write = 17
        _append(log, promises, mark.batch("f", 6, 14))
        disk.faults["write"] = 1
        _append_failing(log, promises, mark.batch("g", 20, 4))
        disk.bytes_per_write = None
        _append(log, promises, mark.batch("h", 20))
        _append_unsynced(log, promises, *mark.batch("i", 8), log.sync)


def _run_failing_sync(code: Code, disk: CrashDisk, promises: Promises, mark: Mark) -> None:
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        _append(log, promises, mark.batch("a", 5))
        disk.faults["fdatasync"] = 0
        _append_failing(log, promises, mark.batch("b", 9, 8))
        try:
            _append(log, promises, mark.batch("c", 9))
        except StoreWriteFailed:
            promises.now = replace(promises.now, may=frozenset(_numbered(1, mark.batch("b", 9, 8))))
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        promises.reopened(read_log(code, disk))
        _append(log, promises, mark.batch("d", 9))


def _numbered(first: int, records: list[tuple[int, bytes]]) -> list[Record]:
    return [(first + n, kind, payload) for n, (kind, payload) in enumerate(records)]


def _go_on_log(code: Code, disk: CrashDisk, promises: Promises) -> None:
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        holes = frozenset((error.offset, error.length) for error in log.errors)
        demand(bool(promises.now.may) or holes <= promises.now.holes, f"damage where nothing was under way: {holes}")
        promises.now = replace(promises.now, holes=holes)
        promises.reopened(read_log(code, disk))
        _append(log, promises, [PROBE])
        seen = code.log.scan(LOG, disk=disk)
        now = [(frame.sequence, frame.kind, frame.payload) for frame in seen.frames]
        demand(now == list(promises.now.must), f"after an append the log holds {now}")
        demand(seen.errors == log.errors and seen.torn_tail is None, f"not mended: {seen.errors}, {seen.torn_tail}")


# -- a log in segments ------------------------------------------------------------------------------------------------


def read_segments(code: Code, disk: CrashDisk) -> list[tuple[str, Record]]:
    return [
        (path.name, (found.sequence, found.kind, found.payload))
        for path, found in code.segments.iterate_segments(FOLDER, disk=disk)
        if isinstance(found, code.log_format.Frame)
    ]


def _open_segments(code: Code, disk: CrashDisk) -> object:
    return code.segments.SegmentedLog.open(FOLDER, limit_bytes=LIMIT_BYTES, disk=disk)


def _expire(code: Code, disk: CrashDisk, log: object, promises: Promises, before: int) -> None:
    held = read_segments(code, disk)
    last_of = {name: record[0] for name, record in held}
    newest = max(name for name in disk.contents() if name.endswith(".log"))
    gone = {record for name, record in held if name != newest and last_of[name] < before}
    with promises.dropping(gone):
        log.expire(before)


def _rewrite(code: Code, disk: CrashDisk, log: object, promises: Promises, keep: Callable[[int], bool]) -> None:
    gone = {record for _, record in read_segments(code, disk) if not keep(record[0])}
    with promises.dropping(gone):
        demand(log.rewrite(lambda frame: keep(frame.sequence)) == [], "a whole segment was called damaged")


def _run_segments(code: Code, disk: CrashDisk, promises: Promises, mark: Mark) -> None:
    with _open_segments(code, disk) as log:
        for n in range(3):
            _append(log, promises, mark.batch(str(n), 30, 10, 20))
        _expire(code, disk, log, promises, 4)
        disk.faults["write"] = 0
        _append_failing(log, promises, mark.batch("w", 30))
        _append(log, promises, mark.batch("x", 30))
        _rewrite(code, disk, log, promises, lambda number: number % 3 != 1)
        _append_unsynced(log, promises, *mark.batch("y", 8), log.rotate)
    with _open_segments(code, disk) as log:
        promises.reopened([record for _, record in read_segments(code, disk)])
        _append(log, promises, mark.batch("z", 60, 60))
        log.rotate()
        _append(log, promises, mark.batch("zz", 8))
        _rewrite(code, disk, log, promises, lambda number: number >= 11)
        _expire(code, disk, log, promises, 12)
        _expire(code, disk, log, promises, 1000)
        _append(log, promises, mark.batch("last", 8))


def _go_on_segments(code: Code, disk: CrashDisk, promises: Promises) -> None:
    with _open_segments(code, disk) as log:
        litter = [name for name in disk.contents() if name.endswith(".tmp")]
        demand(not litter, f"left behind: {litter}")
        promises.reopened([record for _, record in read_segments(code, disk)])
        _append(log, promises, [PROBE])
        log.rotate()
        _append(log, promises, [PROBE])
        now = [record for _, record in read_segments(code, disk)]
        demand(now == list(promises.now.must), f"after two appends the log holds {now}")


# -- whole files, and a log that says which are there ---------------------------------------------------------------

RUN, ONCE = "run.json", "once.json"


def _run_files(code: Code, disk: CrashDisk, promises: Promises, mark: Mark) -> None:
    for n, length in enumerate((20, 5, 40)):
        content = f"{mark.text} {n} ".encode() * (length + mark.extra_bytes)
        with promises.replacing(RUN, content):
            code.files.atomic_write(FOLDER / RUN, content, disk=disk)
    with promises.replacing(ONCE, b"once"):
        code.files.atomic_write(FOLDER / ONCE, b"once", replace=False, disk=disk)
    try:
        code.files.atomic_write(FOLDER / ONCE, b"twice", replace=False, disk=disk)
    except StoreWriteFailed as error:
        demand(isinstance(error.__cause__, FileExistsError), f"refused by {error.__cause__!r}")
    else:
        raise Broken("a name that was taken was given away")
    temporary = [name for name in disk.contents() if name.endswith(".tmp")]
    demand(not temporary, f"left behind: {temporary}")


def _go_on_files(code: Code, disk: CrashDisk, promises: Promises) -> None:
    promises.now.judge_files(disk.contents())
    with promises.replacing(RUN, b"after"):
        code.files.atomic_write(FOLDER / RUN, b"after", disk=disk)
    promises.now.judge_files(disk.contents())


def _run_saves(code: Code, disk: CrashDisk, promises: Promises, mark: Mark) -> None:
    """As a saver does: a stream, then the record that vouches for it, and only then the removal of an older one."""
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        for n in range(4):
            name, parts = f"s{n}", [f"{mark.text}{n}{part}".encode() * (9 + mark.extra_bytes) for part in range(3)]
            with promises.replacing(name, b"".join(parts)):
                written = code.streams.write_stream(
                    FOLDER / name, lambda file, parts=parts: [file.write(part) for part in parts], disk=disk
                )
            _append(log, promises, [(1, f"{name} {written.length} {written.crc} {written.algorithm}".encode())])
            if n >= 2:
                with promises.replacing(f"s{n - 2}", None):
                    disk.unlink(FOLDER / f"s{n - 2}")
                    code.files.sync_folder(FOLDER, disk=disk)


def _go_on_saves(code: Code, disk: CrashDisk, promises: Promises) -> None:
    state = disk.contents()
    promises.now.judge_files(state)
    _go_on_log(code, disk, promises)
    vouched = [record[2].decode().split() for record in promises.now.must if record[1] == 1]
    for name, length, crc, algorithm in vouched[-2:]:
        with code.streams.open_verified(FOLDER / name, int(length), int(crc), algorithm, disk=disk) as file:
            demand(file.read() == state[name], f"{name} was verified and is not what was read")


_LOG = frozenset({"files", "log", "log_format"})
WORKLOADS = (
    Workload("log", _LOG, _run_log, _go_on_log),
    # A kill between a sync that failed and the truncation that answers it is beyond the promise: docs/durability.md.
    Workload("failing sync", _LOG, _run_failing_sync, _go_on_log, killed=False),
    Workload("files", frozenset({"files"}), _run_files, _go_on_files),
    Workload("saves", _LOG | {"streams"}, _run_saves, _go_on_saves),
    Workload("segments", _LOG | {"segments"}, _run_segments, _go_on_segments),
)
