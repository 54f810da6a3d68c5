"""Requests of an operator to a run: send a signal, and retry or drop signals in the queue.

If a process leads the run, it owns the queue. The request is then written into the inbox, and the owner carries it out.
If no process leads the run, a signal waits in the inbox for the next resume. The other requests are then carried out in
this process.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from esper.archive.identity import Identity, load_identity
from esper.archive.inspection import inspect_run
from esper.archive.run_directory import RunDirectory, emergency_folder, telemetry_folder
from esper.emergency.emergency_service import subscribers
from esper.emergency.queue import EmergencyQueue
from esper.emergency.reading import QUEUE
from esper.emergency.requests import (
    DropRequest,
    Request,
    RetryRequest,
    SignalRequest,
    is_taken,
    refusal,
    submit,
    waits,
    withdraw,
)
from esper.errors import ConfigError
from esper.ground.clock import SystemClock
from esper.ground.problems import first_problem
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import traceparent, use
from esper.telemetry.setup import Telemetry

LOOK_S = 0.02
"""Seconds between two checks for the answer to a request."""
IDS_OF_A_REQUEST = 64
"""Largest number of signals in one request."""


_FINISHED = "the run has finished, and a resume of it reads no request"


class Outcome(StrEnum):
    """The result of a request."""

    TAKEN = "taken"
    """The signal is durable in the queue, or the order was carried out."""
    WAITING = "waiting"
    """The request is in the inbox. The process that leads the run, or the next resume, will carry it out."""
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """The request has left the inbox without an answer: somebody removed its file, or the answer could not be
    written."""


@dataclass(frozen=True)
class Answer:
    """The result of a request, and the reason."""

    outcome: Outcome
    why: str


def send(
    run_dir: Path, level: Level, reason: str, attributes: Mapping[str, str], wait_s: float
) -> tuple[EmergencySignal, Answer]:
    """Send a signal to a run. It is durable on return.

    Args:
        wait_s: Longest wait, in seconds, for the process that leads the run to accept the signal.

    Raises:
        RunDirectoryError, StoreCorrupt: the folder has no run, or its `run.json` cannot be read.
        ConfigError: the reason or an attribute is too long. Nothing was written.
        StoreWriteFailed: the signal could not be written.
    """
    identity = load_identity(run_dir)
    try:
        signal = EmergencySignal.sealed(
            signal_id=uuid.uuid4().hex,
            run_id=identity.run_id,
            generation=identity.generation,
            level=level,
            origin="operator",
            reason=reason,
            issued_at=SystemClock().now(),
            traceparent=traceparent(),
            attributes=attributes,
            monotonic_ns=time.monotonic_ns(),
        )
    except ValidationError as error:
        raise ConfigError("signal", reason[:80], str(first_problem(error))) from error
    return signal, _request(run_dir, SignalRequest(signal=signal), wait_s)


def retry(run_dir: Path, signal_ids: Sequence[str], wait_s: float) -> tuple[Answer, ...]:
    """Make dead letters due again (a dead letter is a signal that esper no longer tries to deliver). Return one answer
    for each `IDS_OF_A_REQUEST` signals. Raises: as in `send`.
    """
    return _ordered(run_dir, [RetryRequest(ids=ids) for ids in _parts(signal_ids)], wait_s)


def drop(run_dir: Path, signal_ids: Sequence[str], why: str, wait_s: float) -> tuple[Answer, ...]:
    """Remove signals from the queue. Return one answer for each `IDS_OF_A_REQUEST` signals. Raises: as in `send`."""
    return _ordered(run_dir, [DropRequest(ids=ids, why=why) for ids in _parts(signal_ids)], wait_s)


def is_led(run_dir: Path) -> bool:
    """Return whether a process leads the run, or may lead it on another machine."""
    return inspect_run(run_dir)["state"] in ("running", "open")


def _has_finished(run_dir: Path) -> bool:
    return bool(inspect_run(run_dir)["state"] == "finished")


def _parts(signal_ids: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        tuple(signal_ids[start : start + IDS_OF_A_REQUEST]) for start in range(0, len(signal_ids), IDS_OF_A_REQUEST)
    ]


def _request(run_dir: Path, request: Request, wait_s: float) -> Answer:
    """Write a request into the inbox. If a process leads the run, wait for its answer."""
    folder = emergency_folder(run_dir)
    if _has_finished(run_dir):
        return Answer(Outcome.REFUSED, _FINISHED)
    name = submit(folder, request)
    if not is_led(run_dir):
        if _has_finished(run_dir) and withdraw(folder, name):
            return Answer(Outcome.REFUSED, _FINISHED)
        return Answer(Outcome.WAITING, "no process leads the run; it is taken when the run is resumed")
    until = time.monotonic() + wait_s
    while waits(folder, name):
        if not is_led(run_dir) and _has_finished(run_dir) and withdraw(folder, name):
            return Answer(Outcome.REFUSED, _FINISHED)
        if time.monotonic() >= until:
            return Answer(Outcome.WAITING, f"it was not taken within {wait_s:g} s; it stays in the inbox")
        time.sleep(LOOK_S)
    if is_taken(folder, name):
        return Answer(Outcome.TAKEN, "")
    if (refused := refusal(folder, name)) is not None:
        return Answer(Outcome.REFUSED, refused.why)
    return Answer(Outcome.UNKNOWN, "the request has left the inbox without an answer; see esper queue list")


def _ordered(run_dir: Path, requests: Sequence[RetryRequest | DropRequest], wait_s: float) -> tuple[Answer, ...]:
    if is_led(run_dir):
        return tuple(_request(run_dir, request, wait_s) for request in requests)
    identity = load_identity(run_dir)
    with ExitStack() as stack:
        stack.enter_context(RunDirectory.reopen(run_dir))
        stack.enter_context(use(stack.enter_context(_telemetry(run_dir, identity))))
        queue = stack.enter_context(_queue(run_dir, identity))
        return tuple(_carried_out(queue, request) for request in requests)


def _telemetry(run_dir: Path, identity: Identity) -> Telemetry:
    folder = telemetry_folder(run_dir) if identity.config.telemetry.enabled else None
    return Telemetry.start(folder, "operator", identity.run_id)


def _queue(run_dir: Path, identity: Identity) -> EmergencyQueue:
    config = identity.config.emergency
    return EmergencyQueue.open(
        emergency_folder(run_dir) / QUEUE,
        capacity=config.capacity,
        subscribers=subscribers(config),
        cap_per_minute=config.cap_per_minute,
    )


def _carried_out(queue: EmergencyQueue, request: RetryRequest | DropRequest) -> Answer:
    if isinstance(request, RetryRequest):
        done, otherwise = queue.retry(request.ids), "is no dead letter"
    else:
        done, otherwise = queue.drop(request.ids, request.why), "is not in the queue"
    left = [one for one in request.ids if one not in done]
    return Answer(Outcome.REFUSED, f"{left[0]} {otherwise}") if left else Answer(Outcome.TAKEN, "")
