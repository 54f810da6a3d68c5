"""The classes of all errors that esper raises. This file imports no other module of esper.

    EsperError
    ├── ConfigError                     wrong input: a field, its value, the mend            exit 2
    │   ├── TaskError                   the task cannot be found, built or used as given
    │   └── RunDirectoryError           the directory is in use, not empty, not writable, no run
    ├── DependencyViolationError        a required object is missing or malformed
    │   ├── NoSeedCandidates            eligible pairs exist, the policy returned none of them
    │   └── FieldReportInvalid          a field report lacks a required value
    ├── CommandRejected                 a command is not authentic, not fresh, not for this run
    │   └── StageConflict               ... or asks for a stage that cannot follow
    ├── EvidenceMissing                 a gate cannot judge: the evidence was not measured
    ├── IllegalTransition               a bug of esper: the lifecycle has no such transition
    ├── IsolationViolation              a seed's gradient can reach the host
    ├── AdoptionMismatch                the live host and a fork to adopt have not the same weights
    ├── SeedBuildFailed                 a blueprint could not be built, moved or run
    ├── PolicyFailed                    the policy raised an exception
    ├── PolicyDeadlineExceeded          the policy answered too late
    ├── TheirCodeRaised                 the user's code raised an `EsperError`, `SystemExit` or the like
    ├── ProcessStateChanged             a process-wide setting differs from the value that esper set
    ├── StateNotKept                    training changed state that no checkpoint saves
    ├── LossDeviceMismatch              outputs and targets lie on different devices
    ├── DivergenceUnrecoverable         loss or gradient not finite and no live seed to cull
    ├── StoreWriteFailed                bytes could not be made durable
    ├── StoreCorrupt                    a file is damaged, or was not written by esper
    │   └── CheckpointCorrupt           ... and the file should be a checkpoint
    ├── RestoreImpossible               no state of the run can be restored
    ├── RollbackDeadlineExceeded        a rollback took longer than its budget
    ├── ActorError                      a failure between processes
    │   ├── ActorLost                   the process of an actor has ended
    │   │   └── TrainerRankLost         ... and this actor trained the live host
    │   ├── ActorDoubtful               it is unknown whether a call took effect
    │   ├── CallDeadlineExceeded        an actor answered neither the call nor the liveness check
    │   ├── PlacementUnavailable        an actor could not be started in time
    │   │   └── StartDeadlineExceeded   ... although there was room for it
    │   └── RestartIntensityExceeded    an actor died too often, or again and again at one fence
    ├── EmergencyStop                   HALT: training ends at this boundary                     exit 4
    ├── EmergencyQueueFull              the queue is full; the signal was refused
    ├── EmergencyUnavailable            the run is ending, or its emergency queue cannot be reached
    ├── SinkFailed                      a sink did not confirm a signal, which stays in the queue
    ├── Drained                         SIGTERM: training ended at a fence                       exit 143
    ├── CannotBeWritten                 `esper export` cannot write a class or function as source
    ├── SpanUnreadable                  a line of a span file is not OTLP JSON of spans
    ├── DrillImpossible                 a drill cannot be made with this task or on this machine
    └── FaultInjected                   a fault that was armed on purpose

Each class takes positional arguments only and passes them to `Exception.__init__` unchanged, so that
`EsperError.__reduce__` can rebuild the error, with fields, notes and cause, in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def _rebuild(cls: type[EsperError], args: tuple[object, ...]) -> EsperError:
    return cls(*args)


class EsperError(Exception):
    """Base class of all errors of esper. `except EsperError` catches them and no other exception."""

    actor = ""
    """Name of the called actor in which the error arose. Empty: the error arose outside an actor."""
    process = 0
    """Process id of that actor at that time. 0: the error arose outside an actor."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the error with its cause, which `BaseException` drops. The cause is part of the state, so that a chain
        of causes may be a loop.
        """
        return _rebuild, (type(self), self.args), (dict(self.__dict__), self.__cause__)

    def __setstate__(self, state: tuple[dict[str, object], BaseException | None] | dict[str, object] | None) -> None:
        """Restore fields, notes and cause from the state that `__reduce__` pickled."""
        if isinstance(state, tuple):
            fields, self.__cause__ = state
            self.__dict__.update(fields)
        else:  # a subclass made by Ray has another `__reduce__`
            super().__setstate__(state)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that cause and so on. Each error is yielded once, even if the chain is a
    loop.

    `raise error from error` makes a loop. All code that follows a chain of causes uses this function.
    """
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__


def notes_of(error: BaseException) -> tuple[object, ...]:
    """Return the notes of an error. Empty if other code replaced the notes by an object of another type. It never
    raises.
    """
    notes = error.__dict__.get("__notes__")
    return tuple(notes) if isinstance(notes, list | tuple) else ()


def all_notes(error: BaseException) -> tuple[str, ...]:
    """Return the notes of an error, followed by the notes of all its causes."""
    return tuple(text_of(note) for one in causes(error) for note in notes_of(one))


def text_of(value: object) -> str:
    """Return `str(value)`. If the user's `__str__` raises, return a text about the exception. Only Ctrl-C is passed
    on."""
    return _written(str, value)


def repr_of(value: object) -> str:
    """Like `text_of`, for `repr(value)`."""
    return _written(repr, value)


def in_a_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its text. If the error has no text, return only the class."""
    lines = text_of(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _written(write: Callable[[object], str], value: object) -> str:
    try:
        return write(value)
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # the user's code may raise `SystemExit` here, too
        return f"<{type(value).__name__}: its text raised {type(broken).__name__}>"


# -- wrong input -------------------------------------------------------------------------------------------------


LONGEST_VALUE, LONGEST_MEND = 300, 2000
"""Largest number of characters of a value and of a mend in a message, so that the message is one line."""


def shortened(value: object) -> str:
    """Return the `repr` of a value. A long text is cut, and its length is added."""
    text = repr_of(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text)} characters)"


class ConfigError(EsperError):
    """An input is wrong. `field` has a wrong value; `mend` tells how to correct it. Nothing was started or written."""

    def __init__(self, field: str, value: object, mend: str) -> None:
        super().__init__(field, value, mend)
        self.field, self.value, self.mend = field, value, mend

    def __str__(self) -> str:
        mend = self.mend if len(self.mend) <= LONGEST_MEND else f"{self.mend[:LONGEST_MEND]}..."
        field = self.field if len(self.field) <= LONGEST_VALUE else f"{self.field[:LONGEST_VALUE]}..."
        return f"{field} = {shortened(self.value)}: {mend}"


class TaskError(ConfigError):
    """The task cannot be found, built or used. Nothing was written."""


class RunDirectoryError(ConfigError):
    """The run directory is in use, not empty or not writable, or has no run. Nothing in it was changed."""


# -- a missing object --------------------------------------------------------------------------------------------


class DependencyViolationError(EsperError):
    """A required object of `subject` is missing or malformed. The host is unchanged, and no default was used.

    A retry fails in the same way; the producer has to supply `missing`.
    """

    def __init__(self, subject: str, missing: str, detail: str = "") -> None:
        super().__init__(subject, missing, detail)
        self.subject, self.missing, self.detail = subject, missing, detail

    def __str__(self) -> str:
        return f"{self.subject}: {self.missing}" + (f" ({self.detail})" if self.detail else "")


class NoSeedCandidates(DependencyViolationError):
    """Eligible (slot, blueprint) pairs exist, but the policy returned no pair and no hold with a reason."""


class FieldReportInvalid(DependencyViolationError):
    """A field report lacks a required value, for example `issued_at`. The report was not stored."""


# -- refusals ----------------------------------------------------------------------------------------------------


class CommandRejected(EsperError):
    """Kasmina refused a command. The host and the registry are unchanged.

    `reason` is one of: signature_missing, signature_invalid, nonce_replayed, stale, future, wrong_run,
    old_generation, stage_conflict.
    """

    def __init__(self, reason: str, command_id: str, detail: str = "") -> None:
        super().__init__(reason, command_id, detail)
        self.reason, self.command_id, self.detail = reason, command_id, detail

    def __str__(self) -> str:
        return f"command {self.command_id} rejected: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class StageConflict(CommandRejected):
    """The seed's recorded stage does not allow the commanded step. The policy must decide again from the present
    state.
    """


# -- judging and changing the host -------------------------------------------------------------------------------


class EvidenceMissing(EsperError):
    """A gate cannot judge because a value was not measured. The gate neither failed nor passed; nothing was changed."""

    def __init__(self, gate: str, evidence: str, measured: object = None, required: object = None) -> None:
        super().__init__(gate, evidence, measured, required)
        self.gate, self.evidence, self.measured, self.required = gate, evidence, measured, required

    def __str__(self) -> str:
        return f"{self.gate} cannot judge: {self.evidence}: measured {self.measured!r}, required {self.required!r}"


class IllegalTransition(EsperError):
    """The lifecycle table does not have the requested transition. This is a bug of esper. The seed's stage is
    unchanged.
    """

    def __init__(self, seed_id: str, current: str, requested: str) -> None:
        super().__init__(seed_id, current, requested)
        self.seed_id, self.current, self.requested = seed_id, current, requested

    def __str__(self) -> str:
        return f"seed {self.seed_id}: the lifecycle has no transition {self.current} -> {self.requested}"


class IsolationViolation(EsperError):
    """A seed of `blueprint` at `slot` reaches parameters or memory of the host or of another seed, or changes
    something outside itself. `leaves` has the names."""

    def __init__(self, seed_id: str, leaves: Sequence[str], blueprint: str, slot: str) -> None:
        super().__init__(seed_id, tuple(leaves), blueprint, slot)
        self.seed_id, self.leaves, self.blueprint, self.slot = seed_id, tuple(leaves), blueprint, slot

    def __str__(self) -> str:
        seed = f"blueprint {self.blueprint} at {self.slot}, seed {self.seed_id}"
        return f"{seed}: not isolated from {', '.join(self.leaves)} (gradient, memory or change)"


class AdoptionMismatch(EsperError):
    """At the adoption of a seed's fork, the weights of `what` have the digest `found` instead of `expected`.

    If `what` is the live host before the adoption, the live host was not changed. The run cannot continue: a resume
    begins at the last checkpoint.
    """

    def __init__(self, seed_id: str, what: str, found: str, expected: str) -> None:
        super().__init__(seed_id, what, found, expected)
        self.seed_id, self.what, self.found, self.expected = seed_id, what, found, expected

    def __str__(self) -> str:
        return f"adoption of seed {self.seed_id}: {self.what} has the weights {self.found}, expected {self.expected}"


def _why(cause: BaseException | None) -> str:
    """Return a cause as text. The text is the `repr` of the cause. For a `TheirCodeRaised` it is the description of the
    user's exception, and for a `ConfigError` its message.
    """
    if isinstance(cause, ConfigError):
        return text_of(cause)
    return cause.what if isinstance(cause, TheirCodeRaised) else repr_of(cause)


class SeedBuildFailed(EsperError):
    """A blueprint's factory or its module raised. The original error is the cause. The host is unchanged."""

    def __init__(self, blueprint: str, slot: str, doing: str) -> None:
        super().__init__(blueprint, slot, doing)
        self.blueprint, self.slot, self.doing = blueprint, slot, doing

    def __str__(self) -> str:
        return f"blueprint {self.blueprint} at {self.slot}: {self.doing} failed: {_why(self.__cause__)}"


# -- deciding ----------------------------------------------------------------------------------------------------


class PolicyFailed(EsperError):
    """The policy raised an exception, which is the cause. No other decision was used instead."""

    def __init__(self, policy: str, fence: int) -> None:
        super().__init__(policy, fence)
        self.policy, self.fence = policy, fence

    def __str__(self) -> str:
        return f"policy {self.policy} failed at fence {self.fence}: {_why(self.__cause__)}"


class PolicyDeadlineExceeded(EsperError):
    """The policy took longer than its deadline. An answer that came later was discarded. Times are in seconds."""

    def __init__(self, elapsed_s: float, deadline_s: float, span_id: str) -> None:
        super().__init__(elapsed_s, deadline_s, span_id)
        self.elapsed_s, self.deadline_s, self.span_id = elapsed_s, deadline_s, span_id

    def __str__(self) -> str:
        return f"the policy took {self.elapsed_s:.6g} s, its deadline is {self.deadline_s:.6g} s (span {self.span_id})"


# -- training ----------------------------------------------------------------------------------------------------


class ProcessStateChanged(EsperError):
    """A process-wide setting changed during the run. Results that were computed after the change may have other bits. A
    retry fails in the same way. The user's code must not change the setting, or must restore it before it returns.
    """

    def __init__(self, setting: str, expected: str, found: str, where: str) -> None:
        super().__init__(setting, expected, found, where)
        self.setting, self.expected, self.found, self.where = setting, expected, found, where

    def __str__(self) -> str:
        return (
            f"{self.setting} is {self.found}, expected {self.expected} ({self.where}): the user's code changed it; "
            "do not change it, or restore it before the call returns"
        )


class TheirCodeRaised(EsperError):
    """A call of the user's code raised an `EsperError`, or an exception such as `SystemExit` or `StopIteration`.

    The original exception is the cause. The original exception did not have its usual effect, such as the end of the
    process. A retry fails in the same way; the user's code must raise another class of exception.
    """

    def __init__(self, field: str, call: str, what: str) -> None:
        super().__init__(field, call, what)
        self.field, self.call, self.what = field, call, what

    def __str__(self) -> str:
        return f"{self.field}, {self.call}: {self.what}"


class StateNotKept(EsperError):
    """Training changed state that no checkpoint saves: `attribute` of `holder`. `mend` tells how to change the user's
    code. This fence was not committed, but the fence before it was committed. A retry fails in the same way.
    """

    def __init__(self, holder: str, attribute: str, fence: int, mend: str) -> None:
        super().__init__(holder, attribute, fence, mend)
        self.holder, self.attribute, self.fence, self.mend = holder, attribute, fence, mend

    def __str__(self) -> str:
        changed = f"{self.attribute} changed after the survey's steps, before fence {self.fence}"
        return f"{self.holder}: {changed}, and no checkpoint saves it: {self.mend}"


class LossDeviceMismatch(EsperError):
    """Outputs and targets are on different devices. No tensor was moved."""

    def __init__(self, outputs: str, targets: str) -> None:
        super().__init__(outputs, targets)
        self.outputs, self.targets = outputs, targets

    def __str__(self) -> str:
        return f"outputs are on {self.outputs}, targets on {self.targets}"


class DivergenceUnrecoverable(EsperError):
    """Training diverged, and there is no live seed to remove. `what` was not finite at `step`.

    Attributes:
        measured: Counts of values that are not finite, and the losses before, as the guard has measured them. Empty:
            nothing was measured.
    """

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(step, what, value)
        self.step, self.what, self.value = step, what, value
        self._measured: dict[str, Any] = {}  # not in `vars` of a span: `guard_tripped` has it

    @property
    def measured(self) -> dict[str, Any]:
        """Field of `guard_tripped` -> its value."""
        return self._measured

    def __str__(self) -> str:
        found = [f"step {self.step}: {self.what} is {self.value}"]
        for part in ("inputs", "targets", "outputs"):
            if f"{part}_values" in self.measured:
                bad, number = self.measured[f"{part}_not_finite"], self.measured[f"{part}_values"]
                found.append(f"{bad:,} of {number:,} values of the {part} are not finite")
        if "last_losses" in self.measured:
            found.append("losses before: " + ", ".join(f"{one:.4g}" for one in self.measured["last_losses"]))
        return "; ".join(found)


# -- durable state -----------------------------------------------------------------------------------------------


class StoreWriteFailed(EsperError):
    """Bytes could not be made durable. This write was not acknowledged; earlier acknowledged writes are durable."""

    def __init__(self, path: str, doing: str) -> None:
        super().__init__(path, doing)
        self.path, self.doing = path, doing

    def __str__(self) -> str:
        return f"{self.path}: {self.doing} failed: {_why(self.__cause__)}"


class StoreCorrupt(EsperError):
    """A file is damaged, or was not written by esper. It was not changed."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CheckpointCorrupt(StoreCorrupt):
    """A checkpoint did not load, and no part of it was used. A retry fails in the same way; use an earlier
    checkpoint."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file


class RestoreImpossible(EsperError):
    """No state can be restored from `folder`, which may be "memory". `why` lists the attempts."""

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(folder, why)
        self.folder, self.why = folder, why

    def __str__(self) -> str:
        return f"nothing can be restored from {self.folder}: {self.why}"


class RollbackDeadlineExceeded(EsperError):
    """A rollback took longer than its budget. Everything was restored. Times are in seconds."""

    def __init__(self, tier: str, elapsed_s: float, budget_s: float) -> None:
        super().__init__(tier, elapsed_s, budget_s)
        self.tier, self.elapsed_s, self.budget_s = tier, elapsed_s, budget_s

    def __str__(self) -> str:
        return f"the {self.tier} rollback took {self.elapsed_s:.6g} s, its budget is {self.budget_s:.6g} s"


# -- between processes -------------------------------------------------------------------------------------------


class ActorError(EsperError):
    """A failure between processes. `role` is the name of the called actor."""

    def __init__(self, role: str, detail: str) -> None:
        super().__init__(role, detail)
        self.role, self.detail = role, detail

    def __str__(self) -> str:
        return f"{self.role}: {self.detail}"


class ActorLost(ActorError):
    """The actor's process has ended or was killed. Its current work may be incomplete."""


class TrainerRankLost(ActorLost):
    """The process of a trainer rank has ended or hangs. The live host of this generation is lost."""


class ActorDoubtful(ActorError):
    """The connection to the actor broke. It is unknown whether the call had an effect, so the call must not be
    repeated.
    """


class CallDeadlineExceeded(ActorError):
    """The actor answered neither the call nor the liveness check within their deadlines. Its process was ended."""


class PlacementUnavailable(ActorError):
    """The actor was not ready within its start deadline. `detail` has the requested and the available resources."""


class StartDeadlineExceeded(PlacementUnavailable):
    """An actor, or Ray, did not start within `ray.start_deadline_s`, although there was room for it."""


class RestartIntensityExceeded(ActorError):
    """An actor died too often in a period, or repeatedly at one fence. The run stops. The last death is the cause."""


class EmergencyStop(EsperError):
    """Training stopped at a step boundary because of a HALT signal. `reason` is the reason in the signal.

    If `signal_id` is "", this process was told to stop and does not know the signal. The conductor does.
    """

    def __init__(self, reason: str, signal_id: str, step: int) -> None:
        super().__init__(reason, signal_id, step)
        self.reason, self.signal_id, self.step = reason, signal_id, step

    def __str__(self) -> str:
        if not (self.reason or self.signal_id):
            return f"halted before step {self.step} by a HALT signal"
        sender = f" (signal {self.signal_id})" if self.signal_id else ""
        return f"halted before step {self.step}: {self.reason or 'no reason given'}{sender}"


class EmergencyQueueFull(EsperError):
    """The emergency queue is full, and this signal was refused. No signal in the queue was dropped.

    Attributes:
        capacity: The limit of the queue, in `unit`.
    """

    def __init__(self, signal_id: str, capacity: int, unit: str = "signals") -> None:
        super().__init__(signal_id, capacity, unit)
        self.signal_id, self.capacity, self.unit = signal_id, capacity, unit

    def __str__(self) -> str:
        return f"signal {self.signal_id}: the queue is full ({self.capacity} {self.unit})"


class EmergencyUnavailable(EsperError):
    """This signal was refused because the run is ending. Or the owner of the queue could not be reached; then it is
    unknown whether the signal was accepted. Signals that were accepted before are not lost.
    """

    def __init__(self, signal_id: str, why: str = "the run is ending and takes no signal any more") -> None:
        super().__init__(signal_id, why)
        self.signal_id, self.why = signal_id, why

    def __str__(self) -> str:
        return f"signal {self.signal_id}: {self.why}"


class SinkFailed(EsperError):
    """A sink did not confirm a signal. The signal stays in the queue and is sent again, although the receiver may have
    got it.
    """

    def __init__(self, sink: str, why: str) -> None:
        super().__init__(sink, why)
        self.sink, self.why = sink, why

    def __str__(self) -> str:
        return f"sink {self.sink}: {self.why}"


class Drained(EsperError):
    """The run ended at a fence on request, for example by SIGTERM. All work up to this fence is saved."""

    def __init__(self, fence: int) -> None:
        super().__init__(fence)
        self.fence = fence

    def __str__(self) -> str:
        return f"drained at fence {self.fence}"


class CannotBeWritten(EsperError):
    """A class or function cannot be written as source that works alone. `reason` names the definition and the
    obstacle."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class SpanUnreadable(EsperError):
    """A line of a span file is not OTLP JSON of spans. `reason` says what is wrong. Readers count the line and continue
    with the next."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DrillImpossible(EsperError):
    """A drill cannot be made with this task or on this machine. `why` names what is missing.

    Such a drill has failed. It is never left out in silence.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"cannot be made here: {self.why}"


class FaultInjected(EsperError):
    """Raised on purpose at a fault point that the run's config armed."""

    def __init__(self, point: str) -> None:
        super().__init__(point)
        self.point = point

    def __str__(self) -> str:
        return f"the fault armed at {self.point} fired"
