"""What must hold of one version of the code without any crash: damage, foreign bytes, second writers. Each raises.

They run on the disk in memory, so that every bit can be flipped; what the crash shim cannot see is looked at here.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from zlib import crc32

from code_under_test import Code
from crash_disk import FOLDER, CrashDisk
from workloads import LOG, demand

from esper.errors import EsperError, RunDirectoryError, StoreCorrupt, StoreWriteFailed

FILE_HEADER_BYTES = 30
RECORDS = [(1, b"first"), (2, b""), (65535, bytes(range(30))), (1, b"\xa5fr\x5a" * 3)]
STREAM = b"weights and more weights" * 3


def refused(kind: type[EsperError], call: Callable[[], object], saying: str = "") -> None:
    try:
        answer = call()
    except kind as error:
        demand(saying in str(error), f"refused otherwise: {error}")
    else:
        raise AssertionError(f"not refused with {kind.__name__}: {answer!r}")


def written_log(code: Code, records: list[tuple[int, bytes]]) -> bytes:
    disk = CrashDisk()
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        log.append_many(records)
    return disk.contents()[LOG.name]


def scanned(code: Code, data: bytes) -> object:
    return code.log.scan(LOG, disk=CrashDisk({LOG.name: bytes(data)}))


def flips(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Every byte string that differs from `data` in one bit, with the byte that it is in."""
    changed = bytearray(data)
    for byte in range(start, len(data)):
        for bit in range(8):
            changed[byte] ^= 1 << bit
            yield byte, bytes(changed)
            changed[byte] ^= 1 << bit


def forged(log: bytes, *, version: int, claimed_bytes: int, body: bytes) -> bytes:
    """A frame for the end of `log` with a header checksum that holds, made from the written format alone."""
    fields = struct.pack(">4sHHIQ", b"\xa5fr\x5a", version, 1, claimed_bytes, 0)
    header_crc = crc32(fields, crc32(log[10:18] + struct.pack(">Q", len(log))))
    return log + fields + struct.pack(">I", header_crc) + body + struct.pack(">I", crc32(body, header_crc))


def works(code: Code) -> None:
    """What no mutant may break: without damage, crash or error all is well."""
    disk = CrashDisk()
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        demand(log.append_many(RECORDS) == range(4), "numbers")
    demand([(f.kind, f.payload) for f in code.log.scan(LOG, disk=disk).frames] == RECORDS, "records")
    disk = CrashDisk()
    with code.segments.SegmentedLog.open(FOLDER, limit_bytes=100, disk=disk) as log:
        for record in RECORDS:
            log.append(*record)
    found = [found.payload for _, found in code.segments.iterate_segments(FOLDER, disk=disk)]
    demand(found == [payload for _, payload in RECORDS], "segments")
    _stream(code)


def a_flip_loses_one_record_and_none_is_wrong(code: Code) -> None:
    data = written_log(code, RECORDS)
    whole = scanned(code, data).frames
    ends = [frame.offset for frame in whole[1:]] + [len(data)]
    for byte, flipped in flips(data, FILE_HEADER_BYTES):
        hit = next(n for n, end in enumerate(ends) if byte < end)
        found = scanned(code, flipped)
        demand(found.frames == whole[:hit] + whole[hit + 1 :], f"a flip in byte {byte}: {found.frames}")
        damage = found.errors + ([found.torn_tail] if found.torn_tail else [])
        places = [(error.offset, error.offset + error.length) for error in damage]
        demand(places == [(whole[hit].offset, ends[hit])], f"a flip in byte {byte}: {damage}")
        demand(bool(found.torn_tail) == (hit == len(ends) - 1), f"a flip in byte {byte}: {found.torn_tail}")


def a_flip_in_the_file_header_refuses_the_log(code: Code) -> None:
    data = written_log(code, RECORDS)
    for byte, flipped in flips(data):
        if byte < FILE_HEADER_BYTES:
            refused(StoreCorrupt, lambda flipped=flipped: scanned(code, flipped))
            disk = CrashDisk({LOG.name: flipped})
            refused(StoreCorrupt, lambda disk=disk: code.log.FramedLog.open(LOG, disk=disk))
            demand(disk.contents()[LOG.name] == flipped, "it was changed")


def a_log_cut_at_any_byte_keeps_what_is_whole(code: Code) -> None:
    data = written_log(code, RECORDS)
    whole = scanned(code, data).frames
    ends = [frame.offset for frame in whole[1:]] + [len(data)]
    for length in range(FILE_HEADER_BYTES):
        refused(StoreCorrupt, lambda length=length: scanned(code, data[:length]))
    for length in range(FILE_HEADER_BYTES, len(data)):
        found = scanned(code, data[:length])
        kept = sum(end <= length for end in ends)
        demand(found.frames == whole[:kept] and not found.errors, f"cut at {length}: {found}")
        torn = length - (ends[kept - 1] if kept else FILE_HEADER_BYTES)
        demand((found.torn_tail.length if found.torn_tail else 0) == torn, f"cut at {length}: {found.torn_tail}")


def a_quoted_frame_is_no_record(code: Code) -> None:
    """Not even if the frame that quotes it is damaged, and not if it is a whole log that is quoted."""
    disk = CrashDisk()
    with code.log.FramedLog.open(LOG, disk=disk) as log:
        log.append(1, b"quoted")
        log.append(2, disk.contents()[LOG.name] * 2)
        carrier = code.log.scan(LOG, disk=disk).frames[1].offset
    data = bytearray(disk.contents()[LOG.name])
    data[carrier] ^= 1
    demand([frame.payload for frame in scanned(code, data).frames] == [b"quoted"], "a quoted frame was read")


def a_log_s_frames_mean_nothing_in_another(code: Code) -> None:
    log, other = written_log(code, []), written_log(code, RECORDS)
    demand(scanned(code, log + other[FILE_HEADER_BYTES:]).frames == [], "frames of another log were read")


def a_length_is_not_believed(code: Code) -> None:
    """Neither beyond the end of the file, where it costs memory, nor over the limit."""
    log = written_log(code, [])
    tracemalloc.start()
    found = scanned(code, forged(log, version=1, claimed_bytes=code.log.PAYLOAD_LIMIT_BYTES, body=b"abc"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    demand(peak_bytes < 2**20 and not found.frames, f"{peak_bytes} bytes were allocated")
    demand(found.torn_tail.reason == "the frame is cut short", str(found.torn_tail))
    limit = code.log.PAYLOAD_LIMIT_BYTES
    long = forged(log, version=1, claimed_bytes=limit + 1, body=bytes(limit + 1))
    found = scanned(code, long)
    demand(not found.frames and "over the limit" in found.torn_tail.reason, "a payload over the limit was read")


def a_later_version_is_refused_and_not_cut_off(code: Code) -> None:
    data = forged(written_log(code, []), version=2, claimed_bytes=3, body=b"abc")
    disk = CrashDisk({LOG.name: data})
    refused(StoreCorrupt, lambda: code.log.FramedLog.open(LOG, disk=disk), "frame version 2")
    demand(disk.contents()[LOG.name] == data, "it was changed")
    fields = struct.pack(">8sHQQ", b"ESPERLOG", 2, 0, 0)
    refused(StoreCorrupt, lambda: scanned(code, fields + struct.pack(">I", crc32(fields))), "format version 2")


def a_second_writer_is_refused(code: Code) -> None:
    disk = CrashDisk()
    with code.log.FramedLog.open(LOG, disk=disk):
        refused(RunDirectoryError, lambda: code.log.FramedLog.open(LOG, disk=disk))
    disk = CrashDisk()
    with code.segments.SegmentedLog.open(FOLDER, limit_bytes=1, disk=disk) as log:
        log.append(1, b"x")
        log.append(1, b"y")
        for name in [name for name in disk.contents() if name.endswith(".log")]:
            others = CrashDisk()  # the lease alone must keep a second writer out: segments change under its feet
            others.names_seen = {one: inode for one, inode in disk.names_seen.items() if one != name}
            others._locks, others._next = disk._locks, 1000
            refused(RunDirectoryError, lambda others=others: _open_all(code, others))


def _open_all(code: Code, disk: CrashDisk) -> object:
    return code.segments.SegmentedLog.open(FOLDER, limit_bytes=1, disk=disk)


def a_log_that_failed_past_mending_takes_no_more(code: Code) -> None:
    for faults in ({"fdatasync": 0}, {"write": 0, "truncate": 0}, {"write": 0, "fsync": 0}):
        disk = CrashDisk()
        with code.log.FramedLog.open(LOG, disk=disk) as log:
            disk.faults = dict(faults)
            refused(StoreWriteFailed, lambda log=log: log.append(1, b"lost"))
            refused(StoreWriteFailed, lambda log=log: log.append(1, b"late"))


def a_failed_change_of_segments_takes_no_more(code: Code) -> None:
    """Else a record in the old segment would have the number of one in the new."""
    disk = CrashDisk()
    with code.segments.SegmentedLog.open(FOLDER, limit_bytes=1, disk=disk) as log:
        log.append(1, b"one")
        disk.faults = {"sync_folder": 0}
        refused(StoreWriteFailed, lambda: log.append(1, b"two"))
        refused(StoreWriteFailed, lambda: log.append(1, b"three"))
    with code.segments.SegmentedLog.open(FOLDER, limit_bytes=1, disk=disk) as log:
        demand(log.append(1, b"two") == 1, "the number of a record that never was is lost")


def a_damaged_segment_is_not_rewritten(code: Code) -> None:
    disk = CrashDisk()
    with code.segments.SegmentedLog.open(FOLDER, limit_bytes=1, disk=disk) as log:
        log.append_many(RECORDS)
        path = log.folder / f"{0:020d}.log"
        disk.names_seen[path.name].seen[FILE_HEADER_BYTES] ^= 1
        before = disk.contents()[path.name]
        demand(log.rewrite(lambda _: False) == [path], "it was not named")
        demand(disk.contents()[path.name] == before, "it was changed")


def _stream(code: Code) -> tuple[CrashDisk, object]:
    disk = CrashDisk()
    written = code.streams.write_stream(FOLDER / "s", lambda file: file.write(STREAM), disk=disk)
    return disk, written


def a_stream_with_any_bit_flipped_or_cut_at_any_byte_is_refused(code: Code) -> None:
    _, seal = _stream(code)

    def refuses(data: bytes, saying: str) -> None:
        disk = CrashDisk({"s": data})
        open_it = code.streams.open_verified
        refused(StoreCorrupt, lambda: open_it(FOLDER / "s", seal.length, seal.crc, "crc32c", disk=disk), saying)

    for _, data in flips(STREAM):
        refuses(data, "checksum")
    for length in range(len(STREAM)):
        refuses(STREAM[:length], f"is {length} bytes long")
    refuses(STREAM + b"x", "bytes long")


def a_stream_is_returned_at_its_start_and_opened_once(code: Code) -> None:
    disk, seal = _stream(code)
    opened = []
    disk.open = lambda path, flags: opened.append(path) or CrashDisk.open(disk, path, flags)
    with code.streams.open_verified(FOLDER / "s", seal.length, seal.crc, seal.algorithm, disk=disk) as file:
        demand(file.read() == STREAM, "it is not at its start")
    demand(len(opened) == 1, "what was read is not what was checked")
    refused(
        StoreCorrupt,
        lambda: code.streams.open_verified(FOLDER / "s", seal.length, seal.crc, "crc99", disk=disk),
        "crc99",
    )


def a_stream_takes_no_name_that_is_taken(code: Code) -> None:
    disk, _ = _stream(code)
    refused(StoreWriteFailed, lambda: code.streams.write_stream(FOLDER / "s", lambda f: f.write(b"x"), disk=disk))
    demand(disk.contents() == {"s": STREAM}, "the old file is not as it was, or something was left behind")


def an_error_of_the_disk_is_told_even_if_the_producer_hides_it(code: Code) -> None:
    def hiding(file: object) -> None:
        try:
            file.write(b"lost")
        except OSError as error:
            errors.append(error)

    errors: list[OSError] = []
    disk = CrashDisk()
    disk.faults = {"write": 0}
    refused(StoreWriteFailed, lambda: code.streams.write_stream(FOLDER / "s", hiding, disk=disk))
    demand(len(errors) == 1 and disk.contents() == {}, "a file was made of what was not written")


CHECKS: tuple[Callable[[Code], None], ...] = (
    a_flip_loses_one_record_and_none_is_wrong,
    a_flip_in_the_file_header_refuses_the_log,
    a_log_cut_at_any_byte_keeps_what_is_whole,
    a_quoted_frame_is_no_record,
    a_log_s_frames_mean_nothing_in_another,
    a_length_is_not_believed,
    a_later_version_is_refused_and_not_cut_off,
    a_second_writer_is_refused,
    a_log_that_failed_past_mending_takes_no_more,
    a_failed_change_of_segments_takes_no_more,
    a_damaged_segment_is_not_rewritten,
    a_stream_with_any_bit_flipped_or_cut_at_any_byte_is_refused,
    a_stream_is_returned_at_its_start_and_opened_once,
    a_stream_takes_no_name_that_is_taken,
    an_error_of_the_disk_is_told_even_if_the_producer_hides_it,
)
