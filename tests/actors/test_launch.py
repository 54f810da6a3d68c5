"""A run across processes is the run in one process: the same bits, the same story, and every failure typed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import esper.loop
from actors.handles import is_gone
from esper.errors import ActorLost, CallDeadlineExceeded, FaultInjected, PolicyDeadlineExceeded, TrainerRankLost
from esper.journal import Kind, read
from esper.testing import tiny_config, tiny_task


def story(run_dir: Path) -> list[tuple[Kind, Any]]:
    """The journal without what differs by run: ids, times, signatures."""
    entries, errors = read(run_dir / "journal-1.log")
    assert errors == []
    keys = ("gate", "fence", "before", "after", "checks", "losses", "reason")
    return [(entry.kind, {k: v for k, v in entry.body.items() if k in keys}) for entry in entries]


@pytest.mark.parametrize("managers", [1, 3])
def test_actors_end_with_the_bits_of_one_process(launch_tiny: Any, tmp_path: Path, managers: int) -> None:
    alone = esper.loop.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "alone")))
    together = launch_tiny(growth__managers=managers)
    assert together.weights_sha256 == alone.weights_sha256
    assert together.twin_weights_sha256 == alone.twin_weights_sha256
    assert together.test_loss == alone.test_loss
    assert any(seed.stage == "FOSSILIZED" for seed in together.seeds)
    assert story(tmp_path / "run") == story(tmp_path / "alone")


def test_a_user_error_in_the_model_arrives_as_itself(launch_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(FaultInjected) as caught:
        launch_tiny(faults=[{"point": "tolaria.step", "fault": "raise", "passage": 50}])
    assert "raised in tolaria" in caught.value.__notes__[0]
    entries, _ = read(tmp_path / "run" / "journal-1.log")
    assert entries[-1].kind is Kind.RUN_FAILED
    assert entries[-1].body["error"] == "FaultInjected"
    assert len(entries[-1].body["trace_id"]) == 32


SLOW = pytest.mark.slow
FAILURES = [
    pytest.param("tolaria.step", "kill", 30, TrainerRankLost, "ActorDiedError", id="tolaria killed in a step"),
    pytest.param("tolaria.apply", "kill", 1, TrainerRankLost, "ActorDiedError", id="tolaria killed", marks=SLOW),
    pytest.param("tolaria.step", "hang", 30, TrainerRankLost, "", id="tolaria hangs in Python", marks=SLOW),
    pytest.param("tolaria.step", "hang_c", 30, TrainerRankLost, "", id="tolaria hangs in C", marks=SLOW),
    pytest.param("tolaria.step", "stop", 30, TrainerRankLost, "", id="tolaria frozen", marks=SLOW),
    pytest.param("tolaria.start", "raise", 1, FaultInjected, "", id="tolaria's constructor raises", marks=SLOW),
    pytest.param("tolaria.start", "kill", 1, TrainerRankLost, "ActorDiedError", id="tolaria dies at start", marks=SLOW),
    pytest.param("tamiyo.decide", "raise", 1, FaultInjected, "", id="the policy raises", marks=SLOW),
    pytest.param("tamiyo.decide", "kill", 1, ActorLost, "ActorDiedError", id="the policy is killed", marks=SLOW),
    pytest.param("tamiyo.start", "raise", 1, FaultInjected, "", id="tamiyo's constructor raises", marks=SLOW),
    pytest.param("kasmina.receive", "raise", 1, FaultInjected, "", id="kasmina raises", marks=SLOW),
    pytest.param("kasmina.receive", "kill", 1, ActorLost, "ActorDiedError", id="kasmina killed", marks=SLOW),
    pytest.param("kasmina.receive", "stop", 1, ActorLost, "", id="kasmina frozen", marks=SLOW),
    pytest.param("kasmina.step", "raise", 5, FaultInjected, "", id="a manager raises", marks=SLOW),
    pytest.param("kasmina.step", "kill", 5, ActorLost, "ActorDiedError", id="a manager is killed"),
    pytest.param("kasmina.step", "hang_c", 5, ActorLost, "", id="a manager hangs in C", marks=SLOW),
    pytest.param("kasmina.start", "raise", 1, FaultInjected, "", id="kasmina's constructor raises", marks=SLOW),
    pytest.param("emergency.start", "raise", 1, FaultInjected, "", id="emergency's constructor raises", marks=SLOW),
    pytest.param("emergency.pending", "raise", 2, FaultInjected, "", id="emergency raises", marks=SLOW),
    pytest.param("emergency.pending", "kill", 2, ActorLost, "ActorDiedError", id="emergency killed", marks=SLOW),
    pytest.param("emergency.pending", "hang", 2, ActorLost, "", id="emergency hangs", marks=SLOW),
]


@pytest.mark.parametrize(("point", "fault", "passage", "error", "cause"), FAILURES)
def test_failure_of_an_actor_is_typed_with_its_cause(
    launch_tiny: Any, tmp_path: Path, point: str, fault: str, passage: int, error: type[Exception], cause: str
) -> None:
    armed = {"point": point, "fault": fault, "passage": passage}
    with pytest.raises(error) as caught:
        launch_tiny(faults=[armed], ray__collective_timeout_s=2.0)
    assert type(caught.value) is error
    assert type(caught.value.__cause__).__name__ == (cause or "NoneType")
    entries, _ = read(tmp_path / "run" / "journal-1.log")
    assert entries[-1].kind is Kind.RUN_FAILED
    assert entries[-1].body["error"] == error.__name__
    assert len(entries[-1].body["trace_id"]) == 32
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("fault", ["hang", "hang_c"])
def test_policy_beyond_its_deadline_is_ended_and_its_process_is_gone(
    launch_tiny: Any, tmp_path: Path, fault: str
) -> None:
    with pytest.raises(PolicyDeadlineExceeded) as caught:
        launch_tiny(faults=[{"point": "tamiyo.decide", "fault": fault}], policy__deadline_s=1.0)
    assert 1.0 <= caught.value.elapsed_s <= 1.1
    assert isinstance(caught.value.__cause__, CallDeadlineExceeded)
    assert is_gone(severe_event(tmp_path, "policy_timeout")["pid"])


def test_a_late_answer_within_patience_changes_nothing(launch_tiny: Any, tmp_path: Path) -> None:
    alone = esper.loop.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "alone")))
    late = [
        {"point": "tolaria.round", "fault": "delay", "seconds": 0.5, "passage": 3},
        {"point": "kasmina.step", "fault": "delay", "seconds": 0.5, "passage": 7},
        {"point": "tamiyo.decide", "fault": "delay", "seconds": 0.5},
    ]
    assert launch_tiny(faults=late).weights_sha256 == alone.weights_sha256


def severe_event(tmp_path: Path, name: str) -> dict[str, Any]:
    lines = (tmp_path / "run" / "telemetry" / "severe-events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (event,) = [event for event in events if event["name"] == name]
    found: dict[str, Any] = event["fields"]
    return found


def test_nothing_of_a_run_is_left_on_a_ray_that_stays(launch_tiny: Any) -> None:
    launch_tiny()
    words = [name for name in os.listdir("/dev/shm") if name.startswith(f"esper-word-{os.getpid()}-")]
    assert words == []
