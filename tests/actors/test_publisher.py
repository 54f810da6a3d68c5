"""Publishers wait for the restart of the emergency actor, and send the same signal again. No actor is started here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.emergency_actor import ADDRESS
from actors.publisher import Publisher
from esper.errors import ActorLost, EmergencyQueueFull, EmergencyUnavailable
from esper.flow.result import Result
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import use
from esper.telemetry.events import LOG
from esper.telemetry.setup import Telemetry
from esper.testing import EPOCH, telling

SIGNAL = EmergencySignal.sealed(
    signal_id="a", run_id="run", generation=1, level=Level.NOTICE, origin="test", reason="why", issued_at=EPOCH
)


class Actors:
    """The actors of a Ray that is not there: each call is answered by the next answer, or raises it."""

    def __init__(self, *answers: Callable[[], int]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, EmergencySignal]] = []

    def send(self, name: str, signal: EmergencySignal, within_s: float) -> int:
        assert within_s >= 0
        self.calls.append((name, signal))
        return self.answers.pop(0)()


def dies() -> int:
    raise ActorLost("emergency", "killed")


def test_the_same_signal_goes_to_the_actor_that_replaces_a_dead_one(tmp_path: Path) -> None:
    def dies_and_is_replaced() -> int:
        (tmp_path / ADDRESS).write_text("second")
        raise ActorLost("emergency", "killed")

    (tmp_path / ADDRESS).write_text("first")
    actors = Actors(dies_and_is_replaced, dies, lambda: 7)
    assert Publisher(tmp_path, 600, actors.send).publish(SIGNAL) == 7
    assert actors.calls == [("first", SIGNAL), ("second", SIGNAL), ("second", SIGNAL)]


def test_the_deadline_is_that_of_the_run(tmp_path: Path, undisturbed: Result) -> None:
    known = json.loads((Path(undisturbed.run_dir) / "run.json").read_text())
    known["config"]["ray"]["publish_deadline_s"] = 77.0
    (tmp_path / "run.json").write_text(json.dumps(known))
    (tmp_path / "emergency").mkdir()
    (tmp_path / "emergency" / ADDRESS).write_text("first")
    waits_s = list[float]()

    def send(name: str, signal: EmergencySignal, within_s: float) -> int:
        waits_s.append(within_s)
        return int(name == "first" and signal is SIGNAL)

    assert Publisher.of(tmp_path, send).publish(SIGNAL) == 1
    assert 76 < waits_s[0] <= 77


def test_after_the_deadline_the_first_error_is_the_cause(tmp_path: Path) -> None:
    (tmp_path / ADDRESS).write_text("first")
    first = ActorLost("emergency", "the first death")
    answers = [dies] * 100

    def dies_first() -> int:
        raise first

    actors = Actors(dies_first, *answers)
    with (
        Telemetry.start(tmp_path, "tolaria") as telemetry,
        use(telemetry),
        pytest.raises(EmergencyUnavailable, check=telling("publish_deadline_s", signal_id="a")) as refused,
    ):
        Publisher(tmp_path, 0.2, actors.send).publish(SIGNAL)
    event = json.loads((tmp_path / LOG).read_text())
    assert (event["name"], event["fields"]["signal_id"]) == ("emergency_signal_unconfirmed", "a")
    assert refused.value.__cause__ is first
    assert len(actors.calls) > 1


def test_a_run_without_an_actor_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(EmergencyUnavailable) as refused:
        Publisher(tmp_path, 0.0, Actors().send).publish(SIGNAL)
    assert isinstance(refused.value.__cause__, FileNotFoundError)


def test_a_process_without_the_ray_of_the_run_is_refused_at_once_and_starts_no_ray(tmp_path: Path) -> None:
    source = """
import sys
from pathlib import Path

import ray

from actors.publisher import Publisher
from esper.errors import EmergencyUnavailable
from esper.leyline.signals import EmergencySignal

signal = EmergencySignal.model_validate_json(sys.argv[2])
try:
    Publisher(Path(sys.argv[1]), 0.5).publish(signal)
except EmergencyUnavailable as refused:
    print(refused.signal_id, "esper signal" in refused.why, ray.is_initialized())
"""
    (tmp_path / ADDRESS).write_text("first")
    words = [sys.executable, "-c", source, str(tmp_path), SIGNAL.model_dump_json()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["a", "True", "False"]


@pytest.mark.parametrize("error", [EmergencyQueueFull("a", 64), EmergencyUnavailable("a")])
def test_a_refusal_by_the_actor_is_raised_at_once(tmp_path: Path, error: Exception) -> None:
    def refuses() -> int:
        raise error

    (tmp_path / ADDRESS).write_text("first")
    actors = Actors(refuses)
    with pytest.raises(type(error)) as refused:
        Publisher(tmp_path, 600, actors.send).publish(SIGNAL)
    assert refused.value is error
    assert len(actors.calls) == 1
