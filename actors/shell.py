"""The one actor class: a room's object behind a mailbox. It has no rule of its own.

It opens the caller's trace, refuses what comes from an older generation, calls, and answers with its counters.
"""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle

from esper import faults
from esper.errors import ActorError, DependencyViolationError, causes, text_of
from esper.faults import FaultSpec
from esper.ground.heartbeat import beats
from esper.telemetry.context import continue_from, span, use
from esper.telemetry.setup import Telemetry
from esper.user_code.their_code import any_of_their_code

CAUSE = "_esper_cause"
"""Attribute under which an error takes its cause along."""
CAUSES_SENT = 32
"""Causes of one error that are sent to the caller, itself included: pickle nests them."""


TOLD_TO_ANY_GENERATION = frozenset({"saved"})
"""Methods that only wait for what was begun, which may be told when its generation has been succeeded."""


@dataclass(frozen=True)
class ActorSpec:
    """All that an actor is started with. It is small and picklable; after a restart only its generation differs."""

    role: str
    """What it is: tolaria, tamiyo, kasmina, emergency."""
    name: str
    """Which one: `manager-1`."""
    run_id: str
    generation: int
    cpus: float
    gpus: float
    threads: int
    telemetry_folder: Path | None
    build: Any  # Any: a picklable function that makes the room's object
    arguments: tuple[Any, ...] = ()
    faults: tuple[FaultSpec, ...] = ()
    faults_file: Path | None = None
    """Where firings are written."""


@dataclass(frozen=True)
class Envelope:
    """What travels with every message."""

    generation: int
    traceparent: str


@dataclass(frozen=True)
class Reply:
    """An answer, and what the actor has counted since it began."""

    value: Any  # Any: whatever the method returns
    counters: dict[str, int] = field(default_factory=dict)


class Shell:
    """An actor. Build it without Ray to test it."""

    def __init__(self, spec: ActorSpec) -> None:
        self._spec = spec
        self._telemetry = Telemetry.start(spec.telemetry_folder, spec.name, spec.run_id)
        faults.arm(spec.faults, spec.name, spec.faults_file, spec.generation)
        with use(self._telemetry), span("actor start", role=spec.role, actor=spec.name):
            faults.point(f"{spec.role}.start")
            with _sendable_errors(spec.role):
                self._room = spec.build(*spec.arguments)

    def pid(self) -> int:
        """The process id; answering it at all says that the actor is up."""
        return os.getpid()

    def progress(self) -> int:
        """How much work this process has finished."""
        return beats()

    def rebind(self, generation: int) -> Reply:
        """Take messages of a newer generation from now on, and no others.

        Raises:
            DependencyViolationError: it is not newer.
        """
        if generation <= self._spec.generation:
            raise DependencyViolationError(
                "rebind", "an older generation", f"{generation}, here {self._spec.generation}"
            )
        self._spec = replace(self._spec, generation=generation)
        return Reply(None, self._counted())

    def call(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Reply:
        """Call one public method of the room's object.

        Raises:
            DependencyViolationError: the message is of another generation.
            Exception: whatever the method raises, unchanged.
        """
        return Reply(self._do(method, envelope, arguments), self._counted())

    def hand_out(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> tuple[Any, Reply]:
        """As `call`, but the value stands bare beside the reply: the caller keeps a reference and passes it on unseen.

        The reply is what the caller looks at, so that it sees an error before it passes anything on.
        """
        return self._do(method, envelope, arguments), Reply(None, self._counted())

    def _counted(self) -> dict[str, int]:
        totals = {name: sum(rows.values()) for name, rows in self._telemetry.counters.snapshot().items()}
        return {name: total for name, total in totals.items() if total}

    def _do(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Any:  # Any: as the method
        if envelope.generation != self._spec.generation and method not in TOLD_TO_ANY_GENERATION:
            detail = f"{envelope.generation}, here {self._spec.generation}"
            raise DependencyViolationError(f"message {method}", "another generation's", detail)
        if method.startswith("_"):
            raise DependencyViolationError(f"message {method}", "not a public method")
        with use(self._telemetry), continue_from(envelope.traceparent), _sendable_errors(self._spec.role):
            return getattr(self._room, method)(*arguments)


@contextmanager
def _sendable_errors(role: str) -> Iterator[None]:
    try:
        with any_of_their_code:
            yield
    except BaseException as error:  # `SystemExit` and its like would end the worker, or say nothing of themselves
        sent = sendable(error, role)
        if sent is error:
            raise
        raise sent from sent.__cause__


def sendable(error: BaseException, role: str) -> BaseException:
    """The error with its causes; each that cannot be sent becomes an `ActorError` with its text.

    A chain that runs into a loop ends before it; of a longer one than `CAUSES_SENT` the rest is left out, with a note.
    """
    *chain, last = itertools.islice(causes(error), CAUSES_SENT)
    if last.__cause__ is not None and len(chain) == CAUSES_SENT - 1:
        last.add_note(f"its own cause, {type(last.__cause__).__name__}, and what came before are not sent")
    last.__cause__ = None
    sent = _sendable(last, role)
    for one in reversed(chain):
        one.__cause__ = vars(one)[CAUSE] = sent  # pickle drops the first
        sent = _sendable(one, role)
    return sent


def _sendable(error: BaseException, role: str) -> BaseException:
    why = _unsendable(error)
    if not why:
        return error
    text = ActorError(role, f"{type(error).__name__}: {text_of(error)}")
    if error.__cause__ is not None:
        text.__cause__ = vars(text)[CAUSE] = error.__cause__
    text.add_note("".join(traceback.format_exception(error)) + f"(it cannot be sent as it is: {why})")
    return text


def _unsendable(error: BaseException) -> str:
    """Why an error would not come out on the other side as it is; "" if it would."""
    if not isinstance(error, Exception):
        return "it is no Exception"
    try:
        same = type(cloudpickle.loads(cloudpickle.dumps(error))) is type(error)  # type: ignore[no-untyped-call]
    except Exception as refusal:  # whatever the error's own code raises; it is named in what is sent
        return f"{type(refusal).__name__}: {text_of(refusal)}"
    return "" if same else "it comes back as another class"


def relinked(error: BaseException) -> BaseException:
    """An error that was sent, with the causes that it was sent with."""
    for one in causes(error):
        one.__cause__ = vars(one).pop(CAUSE, one.__cause__)
    return error
