"""Expectations of drills. Each function returns a function that compares what a drill left with what must follow."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from drills import budgets, counted
from drills.drill import Expectation, Finding
from drills.observed import Observed
from drills.severe_log import refusal
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import quarantined
from esper.errors import in_a_line
from esper.ground.exit_codes import DONE
from esper.leyline.reports import GateReport
from esper.leyline.stages import Stage
from esper.trace.paths import find

CHANGES = frozenset({"GATE", "TRANSITION", "PLAN_APPLIED", "INCUBATION_BEGUN", "INCUBATION_ENDED", "FIELD_REPORT"})
"""Kinds of records of a journal that tell of a change of the registry or of the host."""
WINDOW_S = 59.0
"""The queue counts an attempt when it is recorded, directly before its span begins. So spans may be less than a minute
apart where attempts are a minute apart. This window leaves a second for that."""
AtLeast = counted.AtLeast
counters = counted.counters
within = budgets.Within


def exit_codes(*wanted: int) -> Expectation:
    """Expect these exit codes of the runs and resumes, in order. A negative number: the process died of this signal."""

    def judge(found: Observed) -> Finding:
        codes = [attempt.exit_code for attempt in found.attempts]
        return Finding(f"exit codes {listed(wanted)}", f"exit codes {listed(codes)}", codes == list(wanted))

    return judge


def error(name: str, *, cause: str = "", says: str = "", attempt: int = 0) -> Expectation:
    """Expect a class of error of an attempt, the class of its direct cause, and words in the text of either. "": any
    cause or none, and any text.
    """

    def judge(found: Observed) -> Finding:
        wanted = f"{name} caused by {cause}" if cause else name
        wanted += f" that says {says!r}" if says else ""
        raised = found.attempts[attempt].error
        if raised is None:
            return Finding(wanted, "no error", False)
        met = type(raised).__name__ == name and (not cause or type(raised.__cause__).__name__ == cause)
        why = f", caused by {in_a_line(raised.__cause__)}" if raised.__cause__ is not None else ""
        told = f"{in_a_line(raised)}{why}"
        return Finding(wanted, told, met and says in told)

    return judge


def journalled(name: str) -> Expectation:
    """Expect the journal's first failure to be of this class, with a trace."""

    def judge(found: Observed) -> Finding:
        failure = found.failure
        if failure is None:
            return Finding(f"a journalled {name}", "no journalled failure", False)
        met = failure["error"] == name and bool(failure["trace_id"])
        return Finding(f"a journalled {name} with its trace", f"{failure['error']}, trace {failure['trace_id']}", met)

    return judge


def put_aside(checkpoints: int) -> Expectation:
    """Expect this number of checkpoints in quarantine, and an event for each that says where it went."""

    def judge(found: Observed) -> Finding:
        there = [f"checkpoints/quarantine/{name}" for name in quarantined(found.run_dir)]
        told = [one["fields"]["moved_to"] for one in found.events if one["name"] == "checkpoint_rejected"]
        met = len(there) == checkpoints and sorted(map(str, told)) == there
        wanted = f"{checkpoints} checkpoints in quarantine, each told by its place"
        return Finding(wanted, f"{listed(there)}; told: {listed(told)}", met)

    return judge


def nothing_changed() -> Expectation:
    """Expect that the run changed neither its registry nor its host after the last command of its first generation."""

    def judge(found: Observed) -> Finding:
        after = list[str]()
        for entry in found.first_generation:
            after = [] if entry.kind is RecordKind.COMMAND else [*after, entry.kind.name]
        changes = sorted(CHANGES & set(after))
        return Finding("no change after the last command", f"records {listed(changes)}", not changes)

    return judge


def culled(gate: str, reason: str) -> Expectation:
    """Expect that a seed failed a gate for a reason, and was removed at the same fence."""

    def judge(found: Observed) -> Finding:
        bodies = [json.dumps(entry.body) for entry in found.entries(RecordKind.GATE)]
        failed = [one for one in map(GateReport.model_validate_json, bodies) if not one.passed]
        ends = {(one.body["seed_id"], one.body["fence"]) for one in found.entries(RecordKind.TRANSITION) if _culls(one)}
        told = [f"{one.gate} {', '.join(one.reasons)}" for one in failed if (one.seed_id, one.fence) in ends]
        wanted = f"{gate} {reason}"
        return Finding(f"a seed culled by {wanted}", f"seeds culled by {listed(told)}", wanted in told)

    return judge


def _culls(entry: Entry) -> bool:
    return bool(entry.body["after"] == Stage.CULLED)


def events(*, diverges: bool = False, **wanted: int) -> Expectation:
    """Expect exactly these severe events by name and number, and no others.

    The firing of faults is left out. So is each refusal by a gate of which the undisturbed run tells, too: a round that
    is done again tells of it again. Every other `gate_failure` counts.

    Args:
        diverges: True if the run goes on with other seeds than the undisturbed run. Then all refusals are left out.
    """

    def judge(found: Observed) -> Finding:
        known = found.context.undisturbed.refusals
        left_out = {"fault_fired", *(("gate_failure",) if diverges else ())} - wanted.keys()
        names = [one["name"] for one in found.events if refusal(one) not in known]
        told = dict(Counter(name for name in sorted(names) if name not in left_out))
        return Finding(f"severe events {named(wanted)}", named(told), told == wanted)

    return judge


def trace(path: str, *, error: str | None = None, role: str | None = None, event: str | None = None) -> Expectation:
    """Expect one trace with a path of spans, as `esper trace assert` finds it.

    Args:
        error, role, event: The class of the error, the role and a severe event of the span at the end of the path.
    """

    def judge(found: Observed) -> Finding:
        there = find(found.run_dir, path, error=error, role=role, event=event)
        words = [
            path,
            *(f"{name} {value}" for name, value in (("with", error), ("in", role), ("with", event)) if value),
        ]
        return Finding(f"a trace {' '.join(words)}", "such a trace" if there else there.reason, bool(there))

    return judge


def restarted(*actors: str) -> Expectation:
    """Expect the restart of each of these actors, in order, and no other."""

    def judge(found: Observed) -> Finding:
        names = [event["fields"]["actor"] for event in found.events if event["name"] == "actor_restarted"]
        return Finding(f"restarts of {listed(actors)}", f"restarts of {listed(names)}", names == list(actors))

    return judge


def recovered(times: int) -> Expectation:
    """Expect this number of recoveries from the death of an actor in the report, also those that were taken back."""

    def judge(found: Observed) -> Finding:
        number = len(found.recoveries)
        return Finding(f"{times} recoveries in the journals", f"{number} recoveries", number == times)

    return judge


def replaced_alone(*actors: str) -> Expectation:
    """Expect that these actors were replaced while all others went on, in order, and no other actor was."""

    def judge(found: Observed) -> Finding:
        names = [name for one in found.recoveries if one.alone for name in one.actors]
        return Finding(f"{listed(actors)} replaced alone", f"{listed(names)} replaced alone", names == list(actors))

    return judge


def rolled_back(*tiers: str) -> Expectation:
    """Expect that the run went back by commands through these tiers, in order, each within its limit of time.

    The limits are the config's `checkpoint.fast_rollback_s` and `checkpoint.full_rollback_s`. A rollback beyond its
    limit ends the run with an error.
    """

    def judge(found: Observed) -> Finding:
        checkpoint = found.context.config().checkpoint
        limits = {"fast": checkpoint.fast_rollback_s, "full": checkpoint.full_rollback_s}
        told = [
            f"{one.tier} to fence {one.fence} in {one.seconds:.3f} s of {limits[one.tier]:g} s"
            for one in found.rollbacks
        ]
        in_time = all(one.seconds <= limits[one.tier] for one in found.rollbacks)
        met = in_time and [one.tier for one in found.rollbacks] == list(tiers)
        return Finding(f"rollbacks {listed(tiers)}, each in its time", f"rollbacks {listed(told)}", met)

    return judge


def same_fences() -> Expectation:
    """Expect the bits of the undisturbed run in every checkpoint of every generation, also in those taken back."""

    def judge(found: Observed) -> Finding:
        wanted = {one["fence"]: one for one in _checkpoints(found.context.undisturbed.entries)}
        saved = _checkpoints(found.every_entry)
        names = ("weights_crc32c", "topology_digest", "step")
        other = [one["fence"] for one in saved if any(one[name] != wanted[one["fence"]][name] for name in names)]
        told = f"{len(saved)} checkpoints, other bits at fences {listed(other)}"
        return Finding("the bits of the undisturbed run in each checkpoint", told, bool(saved) and not other)

    return judge


def _checkpoints(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    return [one.body for one in entries if one.kind is RecordKind.CHECKPOINT_COMMITTED]


def redone(rounds: int) -> Expectation:
    """Expect that at most this number of rounds that had ended were done again."""

    def judge(found: Observed) -> Finding:
        again = found.rounds_redone
        told = f"{again} rounds" if again is not None else "not measured"
        return Finding(f"at most {rounds} rounds done again", told, again is not None and again <= rounds)

    return judge


def signals(number: int, *, some_refused: bool = False) -> Expectation:
    """Expect that the sink got each of this number of sent signals. A signal may arrive more than once.

    Args:
        some_refused: True if the queue must have refused some of them to their sender, and delivered all others.
    """

    def judge(found: Observed) -> Finding:
        refused, lost, sent = len(found.refused), found.signals_lost, len(found.context.sent)
        wanted = f"{number} signals sent, none lost, {'some' if some_refused else 'none'} refused"
        met = (sent, lost, refused > 0) == (number, 0, some_refused)
        return Finding(wanted, f"{sent} sent, {lost} lost, {refused} refused", met)

    return judge


def at_most(cap: int) -> Expectation:
    """Expect that the sink got each signal at a known time, and no more than `cap` of them in any `WINDOW_S` seconds.

    The drill sends no HALT. The cap leaves a HALT out.
    """

    def judge(found: Observed) -> Finding:
        begun, came = found.sent_at, sum(found.delivered.values())
        most = max((bisect_left(begun, at + WINDOW_S) - place for place, at in enumerate(begun)), default=0)
        wanted = f"at most {cap} deliveries in any {WINDOW_S:g} s, each at a known time"
        told = f"{most} in one such time; the times of {len(begun)} of {came} deliveries"
        return Finding(wanted, told, 0 < most <= cap and len(begun) == came)

    return judge


def full_before_the_fault(places: int) -> Expectation:
    """Expect that the queue had refused all signals beyond these places before the first fault fired. The sink
    is down until the resume, so the queue is full when the fault fires.
    """

    def judge(found: Observed) -> Finding:
        times = [one["time"] for one in found.events if one["name"] == "fault_fired"]
        refused = [one["time"] for one in found.events if one["name"] == "emergency_signal_rejected"]
        before = sum(time < min(times) for time in refused) if times else 0
        accepted = len(found.context.sent) - len(found.refused)
        wanted = f"{places} signals accepted, all others refused before the fault"
        told = f"{accepted} accepted, {before} of {len(refused)} refused before the fault"
        return Finding(wanted, told, accepted == places and before == len(refused) > 0)

    return judge


def damaged_signals(number: int, *, lost: int) -> Expectation:
    """Expect that the sink got all but `lost` of the sent signals, and that the damage of the queue was told."""

    def judge(found: Observed) -> Finding:
        told = found.event_counts["emergency_queue_damaged"]
        wanted = f"{number} signals sent, {lost} lost, damage told"
        met = (len(found.context.sent), found.signals_lost) == (number, lost) and told > 0
        return Finding(wanted, f"{len(found.context.sent)} sent, {found.signals_lost} lost, told {told} times", met)

    return judge


def spans_lost() -> Expectation:
    """Expect that no span reached its collector: the run showed lost spans at its end, and after it, each span that
    ended, by the run's own files of spans, was counted as lost.
    """

    def judge(found: Observed) -> Finding:
        shown, lost, ended = found.context.spans_lost, found.context.spans_lost_in_all, found.spans_ended
        words = f"{ended} spans ended, {lost} counted as lost, {shown} of them shown at the end of the run"
        met = shown is not None and lost is not None and 0 < shown <= lost == ended
        return Finding("each span that ended counted as lost, and some shown at the end of the run", words, met)

    return judge


def noted(*words: str) -> Expectation:
    """Expect a note of the drill that has all these words."""

    def judge(found: Observed) -> Finding:
        notes = found.context.notes
        met = any(all(word in note for word in words) for note in notes)
        return Finding(f"a note with {listed(words)}", listed(notes), met)

    return judge


def same_bits() -> Expectation:
    """Expect the end of the run, with the weights of the undisturbed run, and of its twin."""

    def judge(found: Observed) -> Finding:
        words = {True: "the same bits", False: "other bits", None: "the run did not reach its end"}
        last = found.attempts[-1].exit_code
        met = found.same_bits is True and last == DONE
        return Finding("the bits of the undisturbed run", words[found.same_bits], met)

    return judge


def faults_fired() -> Expectation:
    """Expect that each armed fault fired exactly as often as asked."""

    def judge(found: Observed) -> Finding:
        wanted = [fault.times for attempt in found.attempts for fault in attempt.armed]
        counts = [
            sum(firing.fault_index == index for firing in attempt.fired)
            for attempt in found.attempts
            for index in range(len(attempt.armed))
        ]
        return Finding(f"faults fired {listed(wanted)} times", f"{listed(counts)} times", counts == wanted)

    return judge


def nothing_left() -> Expectation:
    """Expect no process, actor or folder that was not there before."""

    def judge(found: Observed) -> Finding:
        return Finding("nothing left behind", listed(found.leaks), not found.leaks)

    return judge


def listed(items: Sequence[object]) -> str:
    """Return items with commas between them, or the word none."""
    return ", ".join(map(str, items)) or "none"


def named(counts: dict[str, int]) -> str:
    """Return names with their numbers, or the word none."""
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"
