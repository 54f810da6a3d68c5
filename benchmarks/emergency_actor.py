"""Emergency signals on Ray: publishing through the actor, and the time until a trainer's step boundary sees the word.

The limit for a publish is the time of two raw writes (pwrite and fdatasync of as many bytes) and one call of the same
actor. All three are measured in turns. Each publish is then repeated. The queue knows the signal and writes nothing, so
this is the time of a publish without its durable write. The trainer is another process. It makes steps of about 1 ms,
and reads the word after each step.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import ray
import torch
from _common import Outcome, Row, Spread, main, scratch

from actors.actor_process import await_ready, end, spawn
from actors.embedded_ray import EmbeddedRay
from actors.emergency_actor import SinkVariables, emergency
from actors.publisher import Publisher
from actors.shell import ActorSpec
from esper.emergency.settings import EmergencyConfig
from esper.emergency.word import EmergencyWord
from esper.leyline.signals import EmergencySignal, Level
from esper.user_code.process_state import process_state

PUBLISHES, WORDS, BYTES = 100, 200, 700
START_S, DEADLINE_S, SEEN_MS = 120.0, 30.0, 5.0
RUN = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"


def signal(number: int) -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id=f"{number:032x}",
        run_id=RUN,
        generation=1,
        level=Level.NOTICE,
        origin="tolaria",
        reason="the loss of a batch is not finite",
        issued_at=datetime.now(UTC),
        monotonic_ns=time.monotonic_ns(),
        attributes={"step": number, "loss": 0.5},
    )


def trainer(word: Path, pipe: Connection) -> None:
    """Make steps until the word shows HALT. Send the time of each step boundary with a new count of signals."""
    torch.set_num_threads(1)
    side = torch.ones(256, 256)
    seen = 0
    with EmergencyWord.attach(word) as shared:
        pipe.send(0)
        while not shared.halted():
            side @ side @ side  # about 1 ms
            if (count := shared.read().count) != seen:
                seen = count
                pipe.send(time.monotonic_ns())


def timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def publishing(folder: Path, word: EmergencyWord, pipe: Connection) -> dict[str, list[float]]:
    """Milliseconds of publishes, repeated publishes, raw syncs and calls. Milliseconds from the call of `publish` to
    the trainer's step boundary.
    """
    config = EmergencyConfig()
    told = (folder, word.path, config, RUN, 1, SinkVariables.of(config))
    spec = ActorSpec("emergency", "emergency", RUN, 1, 0, 0, 1, None, emergency, told, asynchronous=True)
    actor, descriptor = spawn(spec), os.open(folder.parent / "raw", os.O_WRONLY | os.O_CREAT)
    await_ready(spec, actor, time.monotonic(), START_S)
    publisher, data, offset = Publisher(folder, DEADLINE_S), os.urandom(BYTES), 0

    def write() -> None:
        nonlocal offset
        offset += os.pwrite(descriptor, data, offset)
        os.fdatasync(descriptor)

    found: dict[str, list[float]] = {"publish": [], "repeated": [], "raw": [], "call": [], "boundary": []}
    for number in range(PUBLISHES):
        found["raw"].append(timed_ms(write))
        found["call"].append(timed_ms(lambda: ray.get(actor.progress.remote())))
        one = signal(number)
        began_ns = time.monotonic_ns()
        found["publish"].append(timed_ms(lambda one=one: publisher.publish(one)))
        found["boundary"].append((pipe.recv() - began_ns) / 1e6)
        found["repeated"].append(timed_ms(lambda one=one: publisher.publish(one)))
    os.close(descriptor)
    end(actor)
    return found


def words(word: EmergencyWord, pipe: Connection) -> list[float]:
    """Milliseconds from a change of the word to the trainer's step boundary that sees the change."""
    found = []
    for number in range(PUBLISHES + 1, PUBLISHES + 1 + WORDS):
        began_ns = time.monotonic_ns()
        word.set(Level.NOTICE, 1, number)
        found.append((pipe.recv() - began_ns) / 1e6)
    return found


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def measure(repetitions: int) -> Outcome:
    """Measure all in each repetition, with a new trainer, actor and queue. All repetitions use the same Ray."""
    found: dict[str, list[float]] = {}
    with process_state(1), scratch() as folder, EmbeddedRay(slots=1) as _:
        for repetition in range(repetitions):
            here = folder / str(repetition)
            here.mkdir()
            ours, theirs = multiprocessing.Pipe()
            with EmergencyWord.create(here / "word") as word:
                context = multiprocessing.get_context("spawn")
                process = context.Process(target=trainer, args=(word.path, theirs))
                process.start()
                ours.recv()
                part = publishing(here / "emergency", word, ours) | {"word": words(word, ours)}
                word.set(Level.HALT, 1, PUBLISHES + WORDS + 1)
                process.join()
            for name, values in part.items():
                found.setdefault(name, []).extend(values)
    spreads = {f"{name}, ms": Spread(tuple(values)) for name, values in found.items()}
    publish_ms, raw_ms, call_ms = (spreads[f"{name}, ms"].median for name in ("publish", "raw", "call"))
    limit_ms, seen_ms = 2 * raw_ms + call_ms, p95(found["word"])
    met, seen = publish_ms <= limit_ms, seen_ms <= SEEN_MS
    return Outcome(
        [
            Row.judged("publish through the actor, ms, p50", publish_ms, limit_ms, "<= 2 raw syncs + a call", met),
            Row.judged("word to trainer, ms, p95", seen_ms, SEEN_MS, f"<= {SEEN_MS:g} ms", seen),
            Row.told("publish of a signal that the queue has, ms, p50", spreads["repeated, ms"].median),
            Row.told("call of publish to the trainer's boundary, ms, p95", p95(found["boundary"])),
        ],
        spreads,
    )


if __name__ == "__main__":
    main("emergency_actor", __doc__, measure)
