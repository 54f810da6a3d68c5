"""The queue of emergency signals: durable, bounded, ordered by level and age, acknowledged per subscriber.

An accepted signal is on the disk before `publish` returns. It stays in the queue until every subscriber has
acknowledged it, or an operator drops it. If a signal is refused, `publish` raises an error. The queue has no locks:
only one thread at a time may call it. A lease of its folder ensures that only one process opens it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from esper.durable.files import DISK, FULL, Disk, make_folders
from esper.durable.segments import SegmentedLog
from esper.emergency.queue_state import HeldSignal, QueueState, in_order
from esper.emergency.reading import MOST_CAPACITY, MOST_LOG_BYTES, Damage, log_bytes, read_queue, refuse_oversize
from esper.emergency.records import Acknowledged, Attempt, Dead, Dropped, Put, Record, Rejected, Retry, Revived
from esper.emergency.refusals import counted_refusal
from esper.emergency.reserve import NAME, Reserve
from esper.emergency.room import GROWTH_BYTES, HALT_BYTES, MOST_HELD_BYTES, Room, cut
from esper.emergency.schedule import CAP_WINDOW_S, Schedule, Subscriber
from esper.errors import (
    DependencyViolationError,
    EmergencyQueueFull,
    EmergencyUnavailable,
    StoreWriteFailed,
)
from esper.ground.clock import Clock, SystemClock
from esper.ground.closing import Closing, noted_on
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count, gauge, observe

E = TypeVar("E", bound=BaseException)

HALT_PLACES = 16
"""Number of places in the queue. Only HALT signals may use these places."""
LOG_BYTES = 2**20
"""Size of the log below which it is never compacted."""
_REASON_CHARACTERS = 1000
"""Largest number of characters of a reason that a record keeps. A refusal and a drop have reasons."""
_DAMAGE_TOLD = 16
"""Largest number of events about damage. If there is more damage, one further event has the number of the unreported
parts."""


@dataclass(frozen=True)
class Delivery:
    """A signal that may be sent to a subscriber. `attempts` is the number of earlier attempts."""

    signal: EmergencySignal
    attempts: int


@dataclass(frozen=True)
class DeadLetter:
    """A delivery that was given up after its last attempt. Its signal stays in the queue."""

    signal: EmergencySignal
    subscriber: str
    attempts: int
    why: str


class EmergencyQueue(Closing):
    """Stores published signals until all subscribers have acknowledged them. Make it by `EmergencyQueue.open`.

    After a failed sync the queue refuses every further record, until it is closed and opened again.

    Attributes:
        damage: Unreadable parts of the log at the time of `open`. All readable records are in use. An append that a
            crash interrupted is also listed here, although its signal was never accepted.
    """

    def __init__(
        self,
        log: SegmentedLog,
        reserve: Reserve,
        state: QueueState,
        subscribers: Sequence[Subscriber],
        *,
        capacity: int,
        cap_per_minute: int,
        clock: Clock,
        draw: random.Random,
        compact_bytes: int,
        disk: Disk = DISK,
    ) -> None:
        self.damage: tuple[Damage, ...] = ()
        self._damaged: tuple[Path, ...] = ()
        """Damaged segments that are still in the log."""
        self._log, self._reserve, self._state, self._disk = log, reserve, state, disk
        self._subscribers = {one.name: one for one in subscribers}
        self._capacity, self._clock, self._draw = capacity, clock, draw
        self._schedules = {one.name: Schedule(cap_per_minute if one.capped else None) for one in subscribers}
        self._compact_bytes = self._compact_at = compact_bytes
        self._room = Room(self._subscribers)
        self._owed_bytes = sum(self._room.owed_bytes(one) for one in state.held)
        """Number of bytes of the records that will acknowledge all signals in the queue."""
        self._needed = {
            one: self._room.needed_bytes(one, held.signal.json_and_sha256()[0]) for one, held in state.held.items()
        }
        """Id of each signal in the queue -> number of bytes that it may need in the log."""
        self._held_bytes = sum(self._needed.values())
        self._older_bytes = 0
        """Size of all segments but the last. A crash during a compaction leaves these segments."""
        self._takes = True

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        capacity: int,
        subscribers: Sequence[Subscriber],
        clock: Clock | None = None,
        draw: random.Random | None = None,
        cap_per_minute: int = 60,
        compact_bytes: int = LOG_BYTES,
        disk: Disk = DISK,
    ) -> Self:
        """Open the queue in `folder`. Create the folder and the queue if they are missing.

        Deliveries that were in flight are due again. Deliveries to a subscriber that is not in `subscribers` any more
        are dropped, and each drop writes a severe event.

        Args:
            capacity: Largest number of signals in the queue, including the `HALT_PLACES`.
            clock: None: the clock of the machine.
            draw: Random generator for the waits after failed attempts. None: the generator of the operating system.
            cap_per_minute: Largest number of attempts within a minute for each capped subscriber.
            compact_bytes: Size of the log below which it is never compacted.

        Raises:
            RunDirectoryError: another process owns the queue.
            StoreCorrupt: the content of the folder is not a queue that esper wrote.
            StoreWriteFailed: the folder or the log could not be created, locked, repaired or synced.
        """
        assert HALT_PLACES <= capacity <= MOST_CAPACITY, "see EmergencyConfig"
        make_folders(folder, disk=disk)
        refuse_oversize(folder, disk)
        log = SegmentedLog.open(folder, limit_bytes=MOST_LOG_BYTES, disk=disk)
        try:
            found = read_queue(folder, cap=cap_per_minute, disk=disk)
            queue = cls(
                log,
                Reserve.open(folder / NAME, disk=disk),
                found.state,
                subscribers,
                capacity=capacity,
                cap_per_minute=cap_per_minute,
                clock=clock or SystemClock(),
                draw=draw or random.SystemRandom(),
                compact_bytes=compact_bytes,
                disk=disk,
            )
            queue._older_bytes = log_bytes(folder, disk) - log.size_bytes
            torn = log.torn_tail
            cut = () if torn is None else (Damage(torn[0], torn[1].offset, torn[1].length, torn[1].reason),)
            queue._damaged = tuple(dict.fromkeys(one.file for one in found.damage))
            queue._begin((*found.damage, *cut))
        except BaseException as error:
            with noted_on(error, "closing the log of the queue"):
                log.close()
            raise
        return queue

    # -- publishers ---------------------------------------------------------------------------------------------------

    def publish(self, signal: EmergencySignal) -> int:
        """Accept a signal. It is durable on return. A repeated call with the same signal changes nothing.

        Returns:
            The number of signals that the queue has accepted since it was created.

        Raises:
            EmergencyUnavailable: the queue is closed to publishers; the signal was not accepted.
            EmergencyQueueFull: the queue is full; the signal was not accepted.
            DependencyViolationError: the signal's checksum is missing or wrong, or a different signal has the same id;
                this signal was not accepted.
            StoreWriteFailed: the signal is not durable and was not accepted.
        """
        signal_json, sha256 = signal.json_and_sha256()
        if signal.checksum != sha256:
            what = "its checksum does not fit its content" if signal.checksum else "it has no checksum"
            raise self._refused(signal, DependencyViolationError(f"signal {signal.signal_id}", what))
        known = self._state.checksum(signal.signal_id)
        if known is not None:
            if known != signal.checksum:
                what = "another body under a known id"
                raise self._refused(signal, DependencyViolationError(f"signal {signal.signal_id}", what))
            return self._state.published
        if not self._takes:
            raise self._refused(signal, EmergencyUnavailable(signal.signal_id))
        room = self._capacity if signal.level is Level.HALT else self._capacity - HALT_PLACES
        if len(self._state.held) >= room:
            raise self._refused(signal, EmergencyQueueFull(signal.signal_id, self._capacity))
        needed = self._room.needed_bytes(signal.signal_id, signal_json)
        room_bytes = MOST_HELD_BYTES if signal.level is Level.HALT else MOST_HELD_BYTES - HALT_BYTES
        if self._held_bytes + needed > room_bytes:
            raise self._refused(signal, EmergencyQueueFull(signal.signal_id, MOST_HELD_BYTES, "bytes"))
        try:
            self._accept(signal, signal_json, needed)
        except StoreWriteFailed as error:
            counted_refusal(error, signal.signal_id)
            raise
        count("esper.signal.published")
        return self._state.published

    def reject(self, signal_id: str, why: str) -> None:
        """Record, count and report that a signal, or a file that is not a signal, was refused.

        Raises:
            StoreWriteFailed: the record is not durable. The refusal was counted and reported.
        """
        try:
            self._write(Rejected(signal_id=signal_id, why=why[:_REASON_CHARACTERS]))
        finally:
            count("esper.signal.rejected")
            held = len(self._state.held)
            severe("emergency_signal_rejected", Severity.CRITICAL, signal_id=signal_id, why=why, held=held)

    def close_to_publishers(self) -> None:
        """Refuse new signals from now on. Signals in the queue are still delivered."""
        self._takes = False

    # -- subscribers --------------------------------------------------------------------------------------------------

    def due(self, subscriber: str, most: int = 64) -> tuple[Delivery, ...]:
        """Return at most `most` signals that may be sent to a subscriber now, by level, then by age.

        Signals beyond the cap are not returned yet. The call changes nothing. The next call returns the same signals,
        unless an attempt, a failure or an acknowledgement was recorded in between, or more signals became due.
        """
        ids = self._schedules[subscriber].due(self._clock.monotonic(), most)
        held = [self._state.held[signal_id] for signal_id in ids]
        return tuple(Delivery(one.signal, one.waiting[subscriber].attempts) for one in held)

    def next_due_s(self, subscriber: str) -> float | None:
        """Return the seconds until `due` returns a signal. 0: it returns a signal now. None: no signal waits."""
        now = self._clock.monotonic()
        at = self._schedules[subscriber].next_due(now)
        return None if at is None else max(0.0, at - now)

    def attempt(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """Record that signals are about to be sent. They are in flight until `acknowledge` or `failed` is called, or
        the queue is opened again.

        A crash may lose the record. In this case the signals may be sent once more than is counted.

        Raises:
            StoreWriteFailed: the log refuses all further records. A full disk does not raise this error.
        """
        ids = self._waiting(subscriber, signal_ids)
        if not ids:
            return
        self._write_unsynced(Attempt(subscriber=subscriber, ids=ids, at=self._unix_s()))
        for signal_id in ids:
            self._schedules[subscriber].remove(signal_id)
            level = self._state.held[signal_id].signal.level
            self._schedules[subscriber].count_attempt(level, self._clock.monotonic())

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """Record that a subscriber has received signals and made them durable. A repeated call changes nothing.

        The record is durable on return.

        Raises:
            StoreWriteFailed: nothing was acknowledged.
        """
        ids = self._waiting(subscriber, signal_ids)
        if not ids:
            return
        now = self._clock.now()
        # the sender may be on a machine whose clock is ahead
        ages_s = [max(0.0, (now - self._state.held[one].signal.issued_at).total_seconds()) for one in ids]
        self._write(Acknowledged(subscriber=subscriber, ids=ids), ends=ids)
        for age_s in ages_s:
            count("esper.signal.delivered")
            observe("esper.signal.delivery.duration", age_s)

    def failed(self, subscriber: str, signal_id: str, why: str) -> float | None:
        """Record that an attempt failed.

        Returns:
            Seconds until the next attempt. None: the delivery is a dead letter or has ended, so no attempt follows.

        Raises:
            StoreWriteFailed: the record of the dead letter is not durable. The signal stays in flight.
        """
        found, receiver = self._state.delivery(subscriber, signal_id), self._subscribers[subscriber]
        if found is None or found.dead is not None:
            return None
        schedule, why = self._schedules[subscriber], cut(why)
        attempts = found.attempts + (1 if schedule.waits_for(signal_id) else 0)
        told = {"signal_id": signal_id, "subscriber": subscriber, "attempts": attempts, "why": why}
        if receiver.attempts is not None and attempts >= receiver.attempts:
            self._write(Dead(subscriber=subscriber, signal_id=signal_id, attempts=attempts, why=why), last_resort=True)
            schedule.remove(signal_id)
            count("esper.signal.dead_lettered")
            severe("emergency_signal_dead_lettered", Severity.CRITICAL, **told)
            return None
        wait_s = receiver.wait_s(attempts, self._draw)
        ready_at = self._unix_s() + wait_s
        self._write_unsynced(
            Retry(subscriber=subscriber, signal_id=signal_id, attempts=attempts, ready_at=ready_at, why=why)
        )
        held = self._state.held[signal_id]
        schedule.add(held.signal, held.order, self._clock.monotonic() + wait_s)
        count("esper.signal.retried")
        severe("emergency_signal_retried", Severity.WARNING, **told, wait_s=wait_s)
        return wait_s

    # -- operators ----------------------------------------------------------------------------------------------------

    def outstanding(self) -> tuple[HeldSignal, ...]:
        """Return copies of all signals in the queue, with their deliveries, by level, then by age."""
        return tuple(replace(one, waiting=dict(one.waiting)) for one in in_order(self._state.held.values()))

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """Return the deliveries that were given up, by level, then by age of their signals."""
        return tuple(
            DeadLetter(one.signal, subscriber, found.attempts, found.dead)
            for one in in_order(self._state.held.values())
            for subscriber, found in one.waiting.items()
            if found.dead is not None
        )

    def retry(self, signal_ids: Sequence[str]) -> tuple[str, ...]:
        """Make the dead letters of signals due now. The change is durable on return.

        Returns:
            The ids that had dead letters.

        Raises:
            StoreWriteFailed: nothing was changed.
        """
        wanted = set(signal_ids)
        dead = [letter for letter in self.dead_letters() if letter.signal.signal_id in wanted]
        ids = tuple(dict.fromkeys(letter.signal.signal_id for letter in dead))
        if not ids:
            return ()
        self._write(Revived(ids=ids))
        for letter in dead:
            order = self._state.held[letter.signal.signal_id].order
            self._schedules[letter.subscriber].add(letter.signal, order, self._clock.monotonic())
        return ids

    def drop(self, signal_ids: Sequence[str], why: str) -> tuple[str, ...]:
        """Remove signals from the queue before all subscribers have acknowledged them. The removal is durable on
        return.

        Returns:
            The ids that were in the queue.

        Raises:
            StoreWriteFailed: nothing was dropped.
        """
        ids = tuple(dict.fromkeys(one for one in signal_ids if one in self._state.held))
        if ids:
            self._drop("", ids, why)
        return ids

    def close(self) -> None:
        """Close the log and release the lease. A second call does nothing."""
        self._log.close()

    def __len__(self) -> int:
        return len(self._state.held)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, damage: tuple[Damage, ...]) -> None:
        """Report the damage, drop deliveries to unknown subscribers, and fill the schedules and the reserve."""
        self.damage = damage
        self._tell_damage()
        for name, ids in self._strangers().items():
            self._drop(name, ids, "the subscriber is not configured any more")
        self._fill_reserve()
        now, unix_s = self._clock.monotonic(), self._unix_s()
        for name, schedule in self._schedules.items():
            for held in self._state.held.values():
                found = held.waiting.get(name)
                if found is not None and found.dead is None:
                    wait_s = min(max(0.0, found.ready_at - unix_s), self._subscribers[name].most_s)
                    schedule.add(held.signal, held.order, now + wait_s)
            ages = [max(0.0, unix_s - at) for at in self._state.attempts_of(name)]
            schedule.begin_window([now - age for age in ages if age < CAP_WINDOW_S])
        gauge("esper.queue.depth", len(self._state.held))

    def _fill_reserve(self) -> None:
        """Reserve room for the acknowledgements of all signals in the queue. A full disk raises no error."""
        try:
            self._reserve.grow(self._owed_bytes)
        except StoreWriteFailed as error:
            if not _is_full(error):
                raise
            severe("emergency_queue_disk_full", Severity.ERROR, doing=f"the reserve is too small: {error}")

    def _tell_damage(self) -> None:
        for found in self.damage[:_DAMAGE_TOLD]:
            count("esper.load.errors", store="emergency_queue")
            told = {"file": str(found.file), "offset": found.offset, "length": found.length, "reason": found.reason}
            severe("emergency_queue_damaged", Severity.ERROR, **told)
        if (more := len(self.damage) - _DAMAGE_TOLD) > 0:
            severe("emergency_queue_damaged", Severity.ERROR, more=more)

    def _strangers(self) -> dict[str, tuple[str, ...]]:
        """Return a mapping from each subscriber that is not in `_subscribers`, although signals wait for it, to the ids
        of these signals.
        """
        found: dict[str, list[str]] = {}
        for signal_id, held in self._state.held.items():
            for name in held.waiting.keys() - self._subscribers.keys():
                found.setdefault(name, []).append(signal_id)
        return {name: tuple(ids) for name, ids in sorted(found.items())}

    def _waiting(self, subscriber: str, signal_ids: Sequence[str]) -> tuple[str, ...]:
        """Return the ids of the signals that wait for the subscriber, each once."""
        known = [one for one in signal_ids if self._state.delivery(subscriber, one) is not None]
        return tuple(dict.fromkeys(known))

    def _accept(self, signal: EmergencySignal, signal_json: str, needed: int) -> None:
        owed = self._room.owed_bytes(signal.signal_id)
        self._reserve.grow(self._owed_bytes + owed)
        order = self._state.published + 1
        record = Put(order=order, to=tuple(self._subscribers), signal=signal)
        self._write(record, encoded=record.encoded_with(signal_json))
        self._owed_bytes += owed
        self._needed[signal.signal_id] = needed
        self._held_bytes += needed
        for schedule in self._schedules.values():
            schedule.add(signal, order, self._clock.monotonic())

    def _refused(self, signal: EmergencySignal, error: E) -> E:
        with noted_on(error, "recording the refusal"):
            self.reject(signal.signal_id, str(error))
        return error

    def _drop(self, subscriber: str, ids: tuple[str, ...], why: str) -> None:
        why = why[:_REASON_CHARACTERS]
        self._write(Dropped(subscriber=subscriber, ids=ids, why=why), ends=ids)
        for signal_id in ids:
            count("esper.signal.dropped")
            severe("emergency_signal_dropped", Severity.CRITICAL, signal_id=signal_id, subscriber=subscriber, why=why)

    def _write(
        self,
        record: Record,
        *,
        encoded: tuple[int, bytes] | None = None,
        ends: tuple[str, ...] = (),
        last_resort: bool = False,
    ) -> None:
        """Make a record durable, then apply it to the state.

        Args:
            encoded: Kind and payload of the record. None: those that `record.encoded` returns.
            ends: Ids of the signals whose deliveries the record may end.
            last_resort: If true, or if `ends` is not empty, the reserve may be used when the disk is full.
        """
        before = [self._state.held[one].signal for one in ends]
        self._compact()
        self._append(encoded or record.encoded(), last_resort=last_resort or bool(ends))
        self._state.apply(record)
        for signal in before:
            for name, schedule in self._schedules.items():
                if self._state.delivery(name, signal.signal_id) is None:
                    schedule.remove(signal.signal_id)
            if signal.signal_id not in self._state.held:
                self._owed_bytes -= self._room.owed_bytes(signal.signal_id)
                self._held_bytes -= self._needed.pop(signal.signal_id)
        gauge("esper.queue.depth", len(self._state.held))

    def _append(self, encoded: tuple[int, bytes], *, last_resort: bool) -> None:
        try:
            self._log.append(*encoded)
        except StoreWriteFailed as error:
            if not (last_resort and _is_full(error) and self._reserve.give_up()):
                raise
            severe("emergency_queue_disk_full", Severity.ERROR, doing="the reserve was given up")
            self._log.append(*encoded)

    def _write_unsynced(self, record: Record) -> None:
        """Append a record without a sync, then apply it to the state. If the record is lost, an attempt is repeated.

        If the disk is full, no record is written, and only the state is changed.
        """
        try:
            self._compact()
            self._log.append_unsynced(*record.encoded())
        except StoreWriteFailed as error:
            if not _is_full(error):
                raise
            severe("emergency_queue_disk_full", Severity.ERROR, doing=f"a record was left out: {error}")
        self._state.apply(record)

    def _compact(self) -> None:
        """Replace a log that has grown large by a shorter log with the same state. Keep the last damaged segment."""
        if self._older_bytes + self._log.size_bytes < self._compact_at:
            return
        try:
            self._log.rotate()
            numbers = self._log.append_many([record.encoded() for record in self._state.records()])
            for segment in self._damaged:
                self._log.set_aside(segment)
            self._log.expire(numbers[0])
        except StoreWriteFailed as error:
            if not _is_full(error):
                raise
            severe("emergency_queue_disk_full", Severity.ERROR, doing=f"compaction: {error}")
            self._older_bytes = log_bytes(self._log.folder, self._disk) - self._log.size_bytes
            self._compact_at = self._older_bytes + self._log.size_bytes + self._compact_bytes
            return
        self._damaged, self._older_bytes = (), 0
        size = self._log.size_bytes
        self._compact_at = max(self._compact_bytes, min(size * 3 // 2, size + GROWTH_BYTES))

    def _unix_s(self) -> float:
        return max(0.0, self._clock.now().timestamp())  # a clock without a battery may show a year before 1970


def _is_full(error: StoreWriteFailed) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
