"""The logs against a plain list, whatever is done to them in whatever order: appends, crashes, kills, damage."""

from __future__ import annotations

import random

from crash_disk import FOLDER, CrashDisk, Killed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from workloads import LOG

from esper.durable.log import FramedLog, iterate
from esper.durable.log_format import Frame
from esper.durable.segments import SegmentedLog, iterate_segments

RECORDS = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=4)
SEEDS = st.integers(0, 2**32)

Record = tuple[int, int, bytes]


class OneLog(RuleBasedStateMachine):
    """A framed log on the disk in memory; `model` is all that it must hold."""

    @initialize()
    def begin(self) -> None:
        self.disk, self.model = CrashDisk(), list[Record]()
        self.log = self.opened()

    def opened(self) -> FramedLog | SegmentedLog:
        return FramedLog.open(LOG, disk=self.disk)

    def places(self) -> list[tuple[str, Frame]]:
        return [(LOG.name, one) for one in iterate(LOG, disk=self.disk) if isinstance(one, Frame)]

    def held(self) -> list[Record]:
        return [(frame.sequence, frame.kind, frame.payload) for _, frame in self.places()]

    def fail_power(self, seed: int) -> None:
        (state,) = self.disk.states(random.Random(seed), 1)
        self.disk = CrashDisk(state)
        self.log = self.opened()

    @rule(records=RECORDS)
    def append(self, records: list[tuple[int, bytes]]) -> None:
        numbers = self.log.append_many(records)
        self.model += [(number, *record) for number, record in zip(numbers, records, strict=True)]

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self.opened()

    @rule(seed=SEEDS)
    def crash(self, seed: int) -> None:
        self.fail_power(seed)

    @rule(records=RECORDS, changes=st.integers(0, 12), seed=SEEDS, power=st.booleans(), part=st.integers(1, 50))
    def die_in_an_append(
        self, records: list[tuple[int, bytes]], changes: int, seed: int, power: bool, part: int
    ) -> None:
        first = self.log.next_sequence
        under_way = [(first + n, *record) for n, record in enumerate(records)]
        self.disk.kill_at, self.disk.bytes_per_write = self.disk.done + changes, part
        try:
            self.log.append_many(records)
            self.model += under_way
            under_way = []
        except Killed:
            self.disk.end_process()
        self.disk.kill_at = self.disk.bytes_per_write = None
        if power:
            self.fail_power(seed)
        else:
            self.disk.end_process()
            self.log = self.opened()
        held = self.held()
        assert held[: len(self.model)] == self.model
        assert [record for record in under_way if record in held] == held[len(self.model) :]
        self.model = held

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        self.log.close()
        name, frame = data.draw(st.sampled_from(self.places()))
        byte = data.draw(st.integers(frame.offset, frame.offset + 27 + len(frame.payload)))
        content = bytearray(self.disk.contents()[name])
        content[byte] ^= 1 << data.draw(st.integers(0, 7))
        self.disk = CrashDisk(self.disk.contents() | {name: bytes(content)})
        self.model.remove((frame.sequence, frame.kind, frame.payload))
        self.log = self.opened()

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert self.held() == self.model
        assert self.log.next_sequence > max((number for number, *_ in self.model), default=-1)


class Segments(OneLog):
    """A log in small segments, from which old records go."""

    def opened(self) -> SegmentedLog:
        return SegmentedLog.open(FOLDER, limit_bytes=120, disk=self.disk)

    def places(self) -> list[tuple[str, Frame]]:
        found = iterate_segments(FOLDER, disk=self.disk)
        return [(path.name, one) for path, one in found if isinstance(one, Frame)]

    @rule()
    def rotate(self) -> None:
        self.log.rotate()

    @rule(back=st.integers(0, 10))
    def expire(self, back: int) -> None:
        before = self.log.next_sequence - back
        self.log.expire(before)
        held = self.held()
        assert held == self.model[len(self.model) - len(held) :]
        assert [record for record in self.model if record[0] >= before] == [r for r in held if r[0] >= before]
        self.model = held

    @rule(divisor=st.integers(2, 3))
    def rewrite(self, divisor: int) -> None:
        damaged = {path.name for path in self.log.rewrite(lambda frame: frame.sequence % divisor == 0)}
        of = {frame.sequence: name for name, frame in self.places()}
        self.model = [
            record
            for record in self.model
            if record[0] % divisor == 0 or (record[0] in of and of[record[0]] in damaged)
        ]


TestOneLog = OneLog.TestCase
TestOneLog.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSegments = Segments.TestCase
TestSegments.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
