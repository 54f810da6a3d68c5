"""Mutants of the emergency queue: changes of the source that lose, repeat or invent signals."""

from __future__ import annotations

from mutants import Mutant

_APPEND = "        self._append(encoded or record.encoded(), last_resort=last_resort or bool(ends))\n"
_APPLY = "        self._state.apply(record)\n        for signal in before:\n"
_UNSYNCED = "        self._log.append_unsynced(*record.encoded())\n"
_REPLACED = (
    "        self.held = {signal_id: self.held[signal_id] for signal_id in record.held if signal_id in self.held}\n"
)
_CHOSEN = "        return [signal_id for _, _, signal_id in (*first, *rest)]\n"
_COMPACTED = (
    "            numbers = self._log.append_many([record.encoded() for record in self._state.records()])\n"
    "            for segment in self._damaged:\n"
    "                self._log.set_aside(segment)\n"
    "            self._log.expire(numbers[0])\n"
)

QUEUE_MUTANTS = (
    # -- what is durable before an answer
    Mutant(
        "queue: a record changes the state before it is durable",
        "queue",
        _APPEND + _APPLY,
        ("        self._state.apply(record)\n" + _APPEND + "        for signal in before:\n"),
    ),
    Mutant("queue: no record is synced", "queue", _APPEND, _UNSYNCED),
    Mutant(
        "queue: an acknowledgement is not synced",
        "queue",
        _APPEND,
        f"        if ends:\n    {_UNSYNCED}        else:\n    {_APPEND}",
    ),
    Mutant(
        "queue: an accepted signal is not synced",
        "queue",
        _APPEND,
        (f"        if isinstance(record, Put):\n    {_UNSYNCED}        else:\n    {_APPEND}"),
    ),
    Mutant(
        "queue: a dead letter is not synced",
        "queue",
        _APPEND,
        (f"        if isinstance(record, Dead):\n    {_UNSYNCED}        else:\n    {_APPEND}"),
    ),
    Mutant(
        "queue: a retry by hand is not synced",
        "queue",
        _APPEND,
        (f"        if isinstance(record, Revived):\n    {_UNSYNCED}        else:\n    {_APPEND}"),
    ),
    Mutant(
        "queue: a drop is not recorded", "queue", _APPEND, f"        if not isinstance(record, Dropped):\n    {_APPEND}"
    ),
    # -- what the records mean
    Mutant(
        "queue: an attempt is read as an acknowledgement",
        "queue_state",
        "Attempt: QueueState._attempt",
        ("Attempt: QueueState._acknowledge"),
    ),
    Mutant(
        "queue: one acknowledgement is read as that of all",
        "queue_state",
        "        del held.waiting[subscriber]\n",
        ("        held.waiting.clear()\n"),
    ),
    Mutant(
        "queue: a dead letter is read as an acknowledgement",
        "queue_state",
        "Dead: QueueState._bury",
        ("Dead: lambda state, record: state._end(record.subscriber, record.signal_id)"),
    ),
    Mutant(
        "queue: a failed attempt makes a dead letter live again",
        "queue_state",
        ("DeliveryState(attempts=record.attempts, dead=record.why)"),
        "DeliveryState(attempts=record.attempts)",
    ),
    Mutant(
        "queue: attempts are not counted",
        "queue_state",
        '"attempts": found.attempts + 1}',
        '"attempts": found.attempts}',
    ),
    # -- compaction
    Mutant(
        "queue: the old log is removed before the compact one is written",
        "queue",
        _COMPACTED,
        (
            "            self._log.expire(self._log.next_sequence)\n"
            "            self._log.append_many([record.encoded() for record in self._state.records()])\n"
        ),
    ),
    Mutant("queue: compaction leaves out the signals", "queue_state", "return [summary, *held]", "return [summary]"),
    Mutant(
        "queue: compaction leaves out dead letters",
        "queue_state",
        "waiting=one.waiting)",
        ("waiting={name: found for name, found in one.waiting.items() if found.dead is None})"),
    ),
    Mutant(
        "queue: compaction forgets who has acknowledged",
        "queue_state",
        "waiting=one.waiting)",
        ('waiting={name: DeliveryState() for name in ("conductor", "file")})'),
    ),
    Mutant("queue: compaction forgets finished ids", "queue_state", "finished=self.finished.all()", "finished=()"),
    Mutant(
        "queue: compaction forgets the older half of what waits",
        "queue_state",
        "for one in self.held.values()]\n        return",
        ("for one in list(self.held.values())[len(self.held) // 2 :]]\n        return"),
    ),
    Mutant(
        "queue: a compact log does not replace the state",
        "queue_state",
        _REPLACED,
        "",
    ),
    Mutant(
        "queue: a compact log is trusted before its signals are read",
        "queue_state",
        _REPLACED,
        "        self.held = {}\n",
    ),
    # -- bounds, the cap, and what is known
    Mutant(
        "queue: a full queue is cleared",
        "queue",
        "            raise self._refused(signal, EmergencyQueueFull(signal.signal_id, self._capacity))\n",
        "            self._state.held.clear()\n",
    ),
    Mutant(
        "queue: a full queue accepts",
        "queue",
        "            raise self._refused(signal, EmergencyQueueFull(signal.signal_id, self._capacity))\n",
        "            count('esper.signal.rejected')\n",
    ),
    Mutant(
        "queue: any signal may use the places of HALT",
        "queue",
        "room = self._capacity if signal.level is Level.HALT else self._capacity - HALT_PLACES",
        "room = self._capacity",
    ),
    Mutant(
        "queue: ids of finished signals are not known",
        "queue_state",
        "held.signal.checksum if held is not None else self.finished.checksum(signal_id)",
        "held.signal.checksum if held is not None else None",
    ),
    Mutant(
        "queue: what is over the cap is dropped",
        "schedule",
        _CHOSEN,
        f"        del self._ready[halts + len(rest) :]\n{_CHOSEN}",
    ),
    Mutant(
        "queue: the cap holds HALT back",
        "schedule",
        "first = self._ready[: min(halts, most)]",
        "first = self._ready[: min(halts, room)]",
    ),
    Mutant(
        "queue: the cap's window begins anew at a reopening",
        "queue",
        "            schedule.begin_window([now - age for age in ages if age < CAP_WINDOW_S])\n",
        "",
    ),
    Mutant(
        "queue: the cap counts acknowledged signals only",
        "queue",
        "            self._schedules[subscriber].count_attempt(level, self._clock.monotonic())\n",
        "",
    ),
    Mutant(
        "queue: the wait after a failed attempt ends at a reopening",
        "queue",
        "schedule.add(held.signal, held.order, now + wait_s)",
        "schedule.add(held.signal, held.order, now)",
    ),
    Mutant(
        "queue: signals go out by age alone",
        "schedule",
        "place = (-int(signal.level), order, signal.signal_id)",
        "place = (0, order, signal.signal_id)",
    ),
)
