"""Every error that esper raises, in one tree. This file decides nothing and imports nothing of ours.

    EsperError
    ├── ConfigError                     wrong input: a field, its value, the mend            exit 2
    │   ├── TaskError                   the task cannot be found, built or used as given
    │   └── RunDirectoryError           the directory is in use, not empty, not writable, no run
    ├── DependencyViolationError        something that must be there is not
    │   ├── NoSeedCandidates            eligible pairs exist, the policy returned none of them
    │   └── FieldReportInvalid          a field report lacks what it must carry
    ├── CommandRejected                 a command is not authentic, not fresh, not for this run
    │   └── StageConflict               ... or asks for a stage that cannot follow
    ├── EvidenceMissing                 a gate cannot judge: the evidence was not measured
    ├── IllegalTransition               our own bug: the lifecycle was asked for an edge it has not
    ├── IsolationViolation              a seed's gradient can reach the host
    ├── SeedBuildFailed                 a blueprint could not be built, moved or run
    ├── PolicyFailed                    the policy raised something of its own
    ├── PolicyDeadlineExceeded          the policy answered too late
    ├── TheirCodeRaised                 the user's code raised an error of ours, or what ends a program
    ├── ProcessStateChanged             a setting of the whole process is not what esper set
    ├── StateNotKept                    training changed something that no checkpoint keeps
    ├── LossDeviceMismatch              outputs and targets lie on different devices
    ├── DivergenceUnrecoverable         loss or gradient not finite and no live seed to cull
    ├── StoreWriteFailed                bytes could not be made durable
    ├── StoreCorrupt                    a file is not what it should be
    │   └── CheckpointCorrupt           ... and it should be a checkpoint
    ├── RestoreImpossible               no state of the run can be restored
    ├── RollbackDeadlineExceeded        a rollback took longer than its budget
    ├── ActorError                      something between processes went wrong
    │   ├── ActorLost                   the process of an actor is gone
    │   │   └── TrainerRankLost         ... and it trained the live host
    │   ├── ActorDoubtful               whether a call took effect is not known
    │   ├── CallDeadlineExceeded        an actor answered neither the call nor whether it goes on
    │   ├── PlacementUnavailable        an actor could not be started in time
    │   │   └── StartDeadlineExceeded   ... although there was room for it
    │   └── RestartIntensityExceeded    an actor died too often, or again and again at one fence
    ├── EmergencyStop                   HALT: training ends at this boundary                     exit 4
    ├── EmergencyQueueFull              the queue has no place for this signal
    ├── EmergencyUnavailable            the run has ended and hears no signal any more
    ├── Drained                         SIGTERM: training ended at a fence                       exit 143
    ├── CannotBeWritten                 `esper export` cannot write a class or function as source
    └── FaultInjected                   a fault that was armed on purpose

Each class takes positional arguments only and hands them to `Exception.__init__` unchanged, so that
`EsperError.__reduce__` can rebuild it, with fields, notes and cause, on the far side of a process boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


def _rebuild(cls: type[EsperError], args: tuple[object, ...]) -> EsperError:
    return cls(*args)


class EsperError(Exception):
    """Base of all errors of esper. Catch this to catch every one of them and nothing else."""

    actor = ""
    """The name of the actor whose caller got it; empty where there was none."""
    process = 0
    """The id of the process that this actor was then."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the cause, too, which `BaseException` drops; as state, so that a chain may end in this very error."""
        return _rebuild, (type(self), self.args), (dict(self.__dict__), self.__cause__)

    def __setstate__(self, state: tuple[dict[str, object], BaseException | None] | dict[str, object] | None) -> None:
        """Take fields, notes and cause as `__reduce__` gave them."""
        if isinstance(state, tuple):
            fields, self.__cause__ = state
            self.__dict__.update(fields)
        else:  # a class that Ray derives from this one has a `__reduce__` of its own
            super().__setstate__(state)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that and so on; each once, also if the chain runs into a loop.

    `raise error from error` makes such a loop. Every walk along causes uses this function.
    """
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__


def notes_of(error: BaseException) -> tuple[object, ...]:
    """The notes of an error; none where foreign code put something else in their place. Does not raise."""
    notes = error.__dict__.get("__notes__")
    return tuple(notes) if isinstance(notes, list | tuple) else ()


def all_notes(error: BaseException) -> tuple[str, ...]:
    """The notes of an error and of all that caused it, nearest first."""
    return tuple(text_of(note) for one in causes(error) for note in notes_of(one))


def text_of(value: object) -> str:
    """`str(value)`; where foreign code raises in it, a text that says so. Does not raise but for Ctrl-C."""
    return _written(str, value)


def repr_of(value: object) -> str:
    """`repr(value)`, as `text_of`."""
    return _written(repr, value)


def in_a_line(error: BaseException) -> str:
    """The class of an error and the first line of its text; the class alone where it has no text."""
    lines = text_of(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _written(write: Callable[[object], str], value: object) -> str:
    try:
        return write(value)
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # foreign code may raise `SystemExit` here as well
        return f"<{type(value).__name__}: its text raised {type(broken).__name__}>"


# -- wrong input -------------------------------------------------------------------------------------------------


LONGEST_VALUE, LONGEST_MEND = 300, 2000
"""Characters of a value, and of a mend, that an error repeats: it is read by people, in one line."""


def shortened(value: object) -> str:
    """A value as Python writes it; a long one is cut, with its length."""
    text = repr_of(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text)} characters)"


class ConfigError(EsperError):
    """An input is wrong. Nothing was started or written; change `field` as `mend` says."""

    def __init__(self, field: str, value: object, mend: str) -> None:
        super().__init__(field, value, mend)
        self.field, self.value, self.mend = field, value, mend

    def __str__(self) -> str:
        mend = self.mend if len(self.mend) <= LONGEST_MEND else f"{self.mend[:LONGEST_MEND]}..."
        field = self.field if len(self.field) <= LONGEST_VALUE else f"{self.field[:LONGEST_VALUE]}..."
        return f"{field} = {shortened(self.value)}: {mend}"


class TaskError(ConfigError):
    """The task cannot be found, built or used as it is given. Nothing was written."""


class RunDirectoryError(ConfigError):
    """The run directory is in use, not empty, not writable, or holds no run. Nothing in it was changed."""


# -- what must be there is not -----------------------------------------------------------------------------------


class DependencyViolationError(EsperError):
    """Something that `subject` depends on is absent or malformed. The host is untouched; nothing stood in for it.

    Retrying fails the same way: the producer has to supply `missing`.
    """

    def __init__(self, subject: str, missing: str, detail: str = "") -> None:
        super().__init__(subject, missing, detail)
        self.subject, self.missing, self.detail = subject, missing, detail

    def __str__(self) -> str:
        return f"{self.subject}: {self.missing}" + (f" ({self.detail})" if self.detail else "")


class NoSeedCandidates(DependencyViolationError):
    """Eligible (slot, blueprint) pairs exist, and the policy named none of them and gave no reasoned hold (#14)."""


class FieldReportInvalid(DependencyViolationError):
    """A field report lacks a value that it must carry, `issued_at` among them (#12). It was not stored."""


# -- refusals ----------------------------------------------------------------------------------------------------


class CommandRejected(EsperError):
    """Kasmina refused a command. The host and the registry are untouched.

    `reason` is one of: signature_missing, signature_invalid, nonce_replayed, stale, future, wrong_run,
    old_generation, stage_conflict.
    """

    def __init__(self, reason: str, command_id: str, detail: str = "") -> None:
        super().__init__(reason, command_id, detail)
        self.reason, self.command_id, self.detail = reason, command_id, detail

    def __str__(self) -> str:
        return f"command {self.command_id} rejected: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class StageConflict(CommandRejected):
    """The seed cannot take the commanded step from its recorded stage. Take a fresh state and decide again."""


# -- judging and changing the host -------------------------------------------------------------------------------


class EvidenceMissing(EsperError):
    """A gate cannot judge because something was not measured. Neither a "no" nor a pass; nothing was changed."""

    def __init__(self, gate: str, evidence: str, measured: object = None, required: object = None) -> None:
        super().__init__(gate, evidence, measured, required)
        self.gate, self.evidence, self.measured, self.required = gate, evidence, measured, required

    def __str__(self) -> str:
        return f"{self.gate} cannot judge: {self.evidence} measured {self.measured!r}, required {self.required!r}"


class IllegalTransition(EsperError):
    """The lifecycle table has no such edge. A bug of ours, not an input; the seed keeps its stage."""

    def __init__(self, seed_id: str, current: str, requested: str) -> None:
        super().__init__(seed_id, current, requested)
        self.seed_id, self.current, self.requested = seed_id, current, requested

    def __str__(self) -> str:
        return f"seed {self.seed_id}: there is no edge {self.current} -> {self.requested}"


class IsolationViolation(EsperError):
    """The autograd graph of an isolated seed's branch reaches host parameters, named in `leaves`."""

    def __init__(self, seed_id: str, leaves: Sequence[str]) -> None:
        super().__init__(seed_id, tuple(leaves))
        self.seed_id, self.leaves = seed_id, tuple(leaves)

    def __str__(self) -> str:
        return f"seed {self.seed_id}: its gradient reaches host parameters {', '.join(self.leaves)}"


def _why(cause: BaseException | None) -> str:
    """What caused a failure, as Python writes it; what the user's code raised, in the words that were found for it."""
    return cause.what if isinstance(cause, TheirCodeRaised) else repr_of(cause)


class SeedBuildFailed(EsperError):
    """A blueprint's factory or its module raised. The original error is the cause; the host is untouched."""

    def __init__(self, blueprint: str, slot: str, doing: str) -> None:
        super().__init__(blueprint, slot, doing)
        self.blueprint, self.slot, self.doing = blueprint, slot, doing

    def __str__(self) -> str:
        return f"blueprint {self.blueprint} at {self.slot}: {self.doing} failed: {_why(self.__cause__)}"


# -- deciding ----------------------------------------------------------------------------------------------------


class PolicyFailed(EsperError):
    """The policy raised. Its own error is the cause; no decision was taken in its place."""

    def __init__(self, policy: str, fence: int) -> None:
        super().__init__(policy, fence)
        self.policy, self.fence = policy, fence

    def __str__(self) -> str:
        return f"policy {self.policy} failed at fence {self.fence}: {_why(self.__cause__)}"


class PolicyDeadlineExceeded(EsperError):
    """The policy took longer than its deadline; its answer, if any, was thrown away. Times in seconds."""

    def __init__(self, elapsed_s: float, deadline_s: float, span_id: str) -> None:
        super().__init__(elapsed_s, deadline_s, span_id)
        self.elapsed_s, self.deadline_s, self.span_id = elapsed_s, deadline_s, span_id

    def __str__(self) -> str:
        return f"the policy took {self.elapsed_s:.6g} s, its deadline is {self.deadline_s:.6g} s (span {self.span_id})"


# -- training ----------------------------------------------------------------------------------------------------


class ProcessStateChanged(EsperError):
    """A setting of the whole process changed during the run. What was computed since may have other bits.

    Retrying fails the same way: the user's code must leave the setting alone, or put it back before it returns.
    """

    def __init__(self, setting: str, expected: str, found: str, where: str) -> None:
        super().__init__(setting, expected, found, where)
        self.setting, self.expected, self.found, self.where = setting, expected, found, where

    def __str__(self) -> str:
        return (
            f"{self.setting} is {self.found}, expected {self.expected} ({self.where}): the task's code changed it; "
            "leave it alone, or put it back before the call returns"
        )


class TheirCodeRaised(EsperError):
    """A call of the user's code raised an error of esper's own class, or what would end a program. It was not believed.

    The original is the cause. Retrying fails the same way: the user's code must raise an exception of its own.
    """

    def __init__(self, field: str, call: str, what: str) -> None:
        super().__init__(field, call, what)
        self.field, self.call, self.what = field, call, what

    def __str__(self) -> str:
        return f"{self.field}, {self.call}: {self.what}"


class StateNotKept(EsperError):
    """Training changed something that no checkpoint keeps. The fence was not committed; the one before it was.

    Retrying fails the same way: the user's code must keep `attribute` of `holder` as `mend` says.
    """

    def __init__(self, holder: str, attribute: str, fence: int, mend: str) -> None:
        super().__init__(holder, attribute, fence, mend)
        self.holder, self.attribute, self.fence, self.mend = holder, attribute, fence, mend

    def __str__(self) -> str:
        changed = f"{self.attribute} changed after the survey's steps, before fence {self.fence}"
        return f"{self.holder}: {changed}, and no checkpoint keeps it: {self.mend}"


class LossDeviceMismatch(EsperError):
    """Outputs and targets lie on different devices. Nothing was moved to make them meet."""

    def __init__(self, outputs: str, targets: str) -> None:
        super().__init__(outputs, targets)
        self.outputs, self.targets = outputs, targets

    def __str__(self) -> str:
        return f"outputs are on {self.outputs}, targets on {self.targets}"


class DivergenceUnrecoverable(EsperError):
    """Training diverged and nothing that esper added can be removed to mend it; `what` was not finite at `step`."""

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(step, what, value)
        self.step, self.what, self.value = step, what, value

    def __str__(self) -> str:
        return f"step {self.step}: {self.what} is {self.value}"


# -- durable state -----------------------------------------------------------------------------------------------


class StoreWriteFailed(EsperError):
    """Bytes could not be made durable. Whatever was acknowledged before is safe; this write was not acknowledged."""

    def __init__(self, path: str, doing: str) -> None:
        super().__init__(path, doing)
        self.path, self.doing = path, doing

    def __str__(self) -> str:
        return f"{self.path}: {self.doing} failed: {_why(self.__cause__)}"


class StoreCorrupt(EsperError):
    """A file is not what it should be. It was not changed."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CheckpointCorrupt(StoreCorrupt):
    """A checkpoint did not load, and nothing was taken from it. Retrying fails the same way; use an earlier one."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file


class RestoreImpossible(EsperError):
    """There is no state to go back to in `folder`, which may be "memory"; `why` says what was tried."""

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(folder, why)
        self.folder, self.why = folder, why

    def __str__(self) -> str:
        return f"nothing can be restored from {self.folder}: {self.why}"


class RollbackDeadlineExceeded(EsperError):
    """A rollback took longer than its budget. Everything was restored; times in seconds. No run rolls back yet."""

    def __init__(self, tier: str, elapsed_s: float, budget_s: float) -> None:
        super().__init__(tier, elapsed_s, budget_s)
        self.tier, self.elapsed_s, self.budget_s = tier, elapsed_s, budget_s

    def __str__(self) -> str:
        return f"the {self.tier} rollback took {self.elapsed_s:.6g} s, its budget is {self.budget_s:.6g} s"


# -- between processes -------------------------------------------------------------------------------------------


class ActorError(EsperError):
    """Something between processes went wrong; `role` names the actor that was called."""

    def __init__(self, role: str, detail: str) -> None:
        super().__init__(role, detail)
        self.role, self.detail = role, detail

    def __str__(self) -> str:
        return f"{self.role}: {self.detail}"


class ActorLost(ActorError):
    """The actor's process is gone: killed, crashed or ended. What it was doing may be half done."""


class TrainerRankLost(ActorLost):
    """The process of a trainer rank is gone or hangs; the live host of this generation is lost with it."""


class ActorDoubtful(ActorError):
    """The connection broke: whether the call took effect is not known. It must not be repeated blindly."""


class CallDeadlineExceeded(ActorError):
    """The actor answered neither the call nor, in time, that it goes on. It was ended; its process is gone."""


class PlacementUnavailable(ActorError):
    """The actor was not ready within its start deadline; `detail` says what was asked and what there is."""


class StartDeadlineExceeded(PlacementUnavailable):
    """An actor, or Ray itself, had room and was slower to start than `ray.start_deadline_s` allows."""


class RestartIntensityExceeded(ActorError):
    """An actor died too often, or again and again at one fence. The run stops; the last death is the cause."""


class EmergencyStop(EsperError):
    """HALT was seen at a step boundary: training stopped there. `reason` is the signal's."""

    def __init__(self, reason: str, signal_id: str, step: int) -> None:
        super().__init__(reason, signal_id, step)
        self.reason, self.signal_id, self.step = reason, signal_id, step

    def __str__(self) -> str:
        return f"halted before step {self.step}: {self.reason or 'no reason given'} (signal {self.signal_id or '?'})"


class EmergencyQueueFull(EsperError):
    """The queue holds as many signals as it may; this one was not taken. Nothing that it held was dropped for it."""

    def __init__(self, signal_id: str, capacity: int) -> None:
        super().__init__(signal_id, capacity)
        self.signal_id, self.capacity = signal_id, capacity

    def __str__(self) -> str:
        return f"signal {self.signal_id}: the queue is full ({self.capacity})"


class EmergencyUnavailable(EsperError):
    """The run is ending and reads no signal any more; this one was not taken. What was taken before was heard."""

    def __init__(self, signal_id: str) -> None:
        super().__init__(signal_id)
        self.signal_id = signal_id

    def __str__(self) -> str:
        return f"signal {self.signal_id}: the run is ending and takes no signal any more"


class Drained(EsperError):
    """The run was asked to end (SIGTERM) and did so at the next fence; everything up to there is kept."""

    def __init__(self, fence: int) -> None:
        super().__init__(fence)
        self.fence = fence

    def __str__(self) -> str:
        return f"drained at fence {self.fence}"


class CannotBeWritten(EsperError):
    """A definition cannot be written out as text that stands alone; `reason` says which, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class FaultInjected(EsperError):
    """Raised on purpose at a fault point that was armed by the run's config."""

    def __init__(self, point: str) -> None:
        super().__init__(point)
        self.point = point

    def __str__(self) -> str:
        return f"the fault armed at {self.point} fired"
