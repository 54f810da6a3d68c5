"""The classes of actors that call the methods of a component's object.

For each message they continue the caller's trace, refuse a message of another generation, call the method, and answer
with the result and the process's metrics. Methods in `TOLD_TO_ANY_GENERATION` accept messages of any generation.
`async_shell.py` has the class for components whose methods are coroutines.
"""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from esper import faults
from esper.errors import ActorError, DependencyViolationError, causes, text_of
from esper.faults import FaultSpec
from esper.ground.heartbeat import beats
from esper.telemetry.context import continue_from, span, use
from esper.telemetry.environment import TelemetryVariables
from esper.telemetry.metric_snapshot import MetricSnapshot
from esper.telemetry.setup import Telemetry
from esper.user_code.their_code import any_of_their_code

CAUSE = "_esper_cause"
"""Name of the attribute for the cause of an error that is sent. Pickle would drop the cause itself."""
METRICS = "_esper_metrics"
"""Name of the attribute for the metrics of the process, of an error that is sent."""
CAUSES_SENT = 32
"""Largest number of errors in a chain of causes that is sent. Pickle recurses once for each error, and its depth is
limited."""


TOLD_TO_ANY_GENERATION = frozenset({"saved", "publish"})
"""Methods that accept messages of any generation: `saved`, because it only waits for earlier work, and `publish`,
because a restart does not undo the event that an emergency signal reports."""


@dataclass(frozen=True)
class ActorSpec:
    """The arguments with which an actor is started. A restart changes only the generation and the incarnation."""

    role: str
    """Component of the actor: tolaria, tamiyo, kasmina or emergency."""
    name: str
    """Name of the actor in its run, such as `manager-1`."""
    run_id: str
    generation: int
    cpus: float
    gpus: float
    threads: int
    telemetry_folder: Path | None
    build: Any  # Any: a picklable function that returns the component's object
    arguments: tuple[Any, ...] = ()
    faults: tuple[FaultSpec, ...] = ()
    faults_file: Path | None = None
    """File to which fired faults are written."""
    variables: TelemetryVariables | None = None
    """None: the actor's process has the right OTEL_* variables already."""
    traceparent: str = ""
    """Span of the conductor that starts the actor."""
    incarnation: int = 1
    """Number of this process among the processes of this actor in this run or resume, from 1."""
    asynchronous: bool = False
    """True: the methods of the component's object are coroutines, and its actor is an `AsyncShell`."""


SnapshotRef = list["ray.ObjectRef[Any]"]  # Any: a HostSnapshot
"""A list with a reference to a snapshot. In a list, Ray passes the reference on and does not fetch the snapshot."""


@dataclass(frozen=True)
class Envelope:
    """Data that every message has."""

    generation: int
    traceparent: str


@dataclass(frozen=True)
class Reply:
    """An answer, with the metrics of the actor's process."""

    value: Any  # Any: the return value of the method
    metrics: MetricSnapshot = field(default_factory=MetricSnapshot)


class BaseShell:
    """The base class of all actors. Ray makes an actor in a new process. A test may make an actor without Ray."""

    def __init__(self, spec: ActorSpec) -> None:
        self._spec = spec
        if spec.variables is not None:
            spec.variables.put_into(os.environ)
        self._telemetry = Telemetry.start(spec.telemetry_folder, spec.name, spec.run_id)
        faults.arm(spec.faults, spec.name, spec.faults_file, spec.generation, spec.incarnation)
        started = span("actor start", role=spec.role, actor=spec.name)
        with use(self._telemetry), continue_from(spec.traceparent), started:
            faults.point(f"{spec.role}.start")
            with sendable_errors(spec.role):
                self._component = spec.build(*spec.arguments)

    def _flushed(self) -> Reply:
        """Export what waits for a collector, and close the telemetry. Nothing may be called afterwards."""
        self._telemetry.close()
        return self._reply(None)

    def _rebound(self, generation: int) -> Reply:
        """Accept messages of a newer generation, and refuse messages of all other generations.

        Raises:
            DependencyViolationError: `generation` is not newer than the present generation.
        """
        if generation <= self._spec.generation:
            raise DependencyViolationError(
                "rebind", "an older generation", f"{generation}, here {self._spec.generation}"
            )
        self._spec = replace(self._spec, generation=generation)
        return self._reply(None)

    def _reply(self, value: Any) -> Reply:  # Any: the return value of a method
        return Reply(value, self._telemetry.metrics.snapshot())

    def _method(self, name: str, envelope: Envelope) -> Callable[..., Any]:  # Any: the method's result
        """Return a method of the component's object.

        Raises:
            DependencyViolationError: the message is of another generation, or the method is not public.
        """
        if envelope.generation != self._spec.generation and name not in TOLD_TO_ANY_GENERATION:
            detail = f"{envelope.generation}, here {self._spec.generation}"
            raise DependencyViolationError(f"message {name}", "another generation's", detail)
        if name.startswith("_"):
            raise DependencyViolationError(f"message {name}", "not a public method")
        found: Callable[..., Any] = getattr(self._component, name)
        return found

    @contextmanager
    def _serving(self, envelope: Envelope) -> Iterator[None]:
        """Continue the caller's trace, and make errors sendable. An error has the metrics of the process, too."""
        try:
            with use(self._telemetry), continue_from(envelope.traceparent), sendable_errors(self._spec.role):
                yield
        except Exception as error:
            vars(error)[METRICS] = self._telemetry.metrics.snapshot()
            raise


class Shell(BaseShell):
    """The actor of a component with plain methods.

    Ray runs `call` and `hand_out` in the actor's working thread, unless the caller names a concurrency group. Callers
    name "watch" for `progress` and "ctl" for `rebind`. These groups have other threads, so both methods answer while
    another method runs.
    """

    def pid(self) -> int:
        """Return the process id. The answer shows that the actor is up."""
        return os.getpid()

    def progress(self) -> Reply:
        """Return the number of finished units of work in this process; see `esper.ground.heartbeat`."""
        return self._reply(beats())

    def rebind(self, generation: int) -> Reply:
        """Accept messages of a newer generation, and refuse messages of all other generations.

        Raises:
            DependencyViolationError: `generation` is not newer than the present generation.
        """
        return self._rebound(generation)

    def flush(self) -> Reply:
        """Export what waits for a collector, at most for some seconds. Call it last, before the actor is ended."""
        return self._flushed()

    def call(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Reply:
        """Call one public method of the component's object.

        Raises:
            DependencyViolationError: the message is of another generation, or the method is not public.
            Exception: the error of the method, unchanged.
        """
        return self._reply(self._do(method, envelope, arguments))

    def hand_out(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> tuple[Any, Reply]:
        """Like `call`, but return the value and the reply separately.

        So the caller can pass on a reference to the value. The caller first fetches the reply. This raises the error of
        the method, if any.
        """
        return self._do(method, envelope, arguments), self._reply(None)

    def _do(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Any:  # Any: the method's result
        found = self._method(method, envelope)
        with self._serving(envelope):
            return found(*arguments)


@contextmanager
def sendable_errors(role: str) -> Iterator[None]:
    """Raise the errors of the block in a form that can be sent; see `sendable`."""
    try:
        with any_of_their_code:
            yield
    except BaseException as error:  # also `SystemExit`, because it would end Ray's worker
        sent = sendable(error, role)
        if sent is error:
            raise
        raise sent from sent.__cause__


def sendable(error: BaseException, role: str) -> BaseException:
    """Return the error with its causes. An error that cannot be sent is replaced by an `ActorError` with its text.

    A chain of causes with a loop is cut before it repeats. A chain is cut after `CAUSES_SENT` errors, and gets a note
    about the cut.
    """
    *chain, last = itertools.islice(causes(error), CAUSES_SENT)
    if last.__cause__ is not None and len(chain) == CAUSES_SENT - 1:
        last.add_note(f"its own cause, {type(last.__cause__).__name__}, and earlier causes are not sent")
    last.__cause__ = None
    sent = _sendable(last, role)
    for one in reversed(chain):
        one.__cause__ = vars(one)[CAUSE] = sent  # pickle drops `__cause__`
        sent = _sendable(one, role)
    return sent


def _sendable(error: BaseException, role: str) -> BaseException:
    why = _unsendable(error)
    if not why:
        return error
    text = ActorError(role, f"{type(error).__name__}: {text_of(error)}")
    if error.__cause__ is not None:
        text.__cause__ = vars(text)[CAUSE] = error.__cause__
    text.add_note("".join(traceback.format_exception(error)) + f"(it cannot be sent: {why})")
    return text


def _unsendable(error: BaseException) -> str:
    """Return the reason why an error cannot be sent to another process. "": it can be sent."""
    if not isinstance(error, Exception):
        return "it is no Exception"
    try:
        same = type(cloudpickle.loads(cloudpickle.dumps(error))) is type(error)  # type: ignore[no-untyped-call]
    except Exception as refusal:  # `__reduce__` of the error may raise any error; the sent error names it
        return f"{type(refusal).__name__}: {text_of(refusal)}"
    return "" if same else "it comes back as another class"


def relinked(error: BaseException) -> BaseException:
    """Restore the causes of a received error from the attributes in which `sendable` has stored them."""
    for one in causes(error):
        one.__cause__ = vars(one).pop(CAUSE, one.__cause__)
    return error
