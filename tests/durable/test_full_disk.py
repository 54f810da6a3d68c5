"""A disk that is full at any size, under any store of a run: a typed end, and the same bits once there is room."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filling import NO_MOUNT
from full_disk import ON_ACTORS, SIZES, STORES

from esper.flow.result import Result


@pytest.fixture
def weights(undisturbed: Result) -> str:
    """Of the run on a disk with room."""
    return undisturbed.weights_sha256


def on_a_disk_of(folder: Path, store: str, size: int, *more: str) -> dict[str, Any]:
    return told_and_printed(folder, store, size, *more)[0]


def told_and_printed(folder: Path, store: str, size: int, *more: str) -> tuple[dict[str, Any], str]:
    script = Path(__file__).parent / "kit" / "full_disk.py"
    command = [sys.executable, str(script), str(folder), store, str(size), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == NO_MOUNT:
        pytest.skip("this machine lets us mount no tmpfs")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(store, size, told)
    return told, done.stderr


def ends_well(told: dict[str, Any], weights: str) -> None:
    """Not begun at all, ended typed and resumed to the same bits, or run to the end with them."""
    assert told["code"] in (0, 2, 3)
    if told["code"] == 3:
        assert told["error"] == "StoreWriteFailed"
        assert ("then esper resume" in told["next"]) is told["began"]
    assert told["weights"] == (weights if told["began"] else None)


@pytest.mark.parametrize(
    ("store", "size"), [("checkpoints", 72 * 1024), pytest.param("limit", 40_000, marks=pytest.mark.slow)]
)
def test_a_run_on_a_full_disk_ends_typed_and_is_resumed_to_the_same_bits(
    tmp_path: Path, weights: str, store: str, size: int
) -> None:
    told = on_a_disk_of(tmp_path, store, size)
    ends_well(told, weights)
    assert (told["code"], told["began"]) == (3, True)
    assert f"then esper resume {tmp_path}/run" in told["next"]


@pytest.mark.slow
def test_a_full_telemetry_folder_stops_no_training_and_each_severe_event_is_logged_or_printed(
    tmp_path: Path, undisturbed: Result
) -> None:
    told, printed = told_and_printed(tmp_path, "telemetry", 4096)
    assert (told["code"], told["weights"]) == (0, undisturbed.weights_sha256)
    assert printed.count("spans are being lost") == 1
    lost = [line for line in printed.splitlines() if line.startswith("esper: a severe event is only here")]
    expected = (Path(undisturbed.run_dir) / "telemetry" / "severe-events.jsonl").read_text().splitlines()
    assert lost
    assert sorted([*map(name_of, lost), *told["logged"]]) == sorted(map(name_of, expected))


def name_of(line: str) -> str:
    return str(json.loads(line[line.index("{") :])["name"])


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("store", STORES)
def test_a_disk_full_at_twenty_sizes_ends_no_run_untyped(tmp_path: Path, weights: str, store: str) -> None:
    ended = []
    for size in SIZES:
        folder = tmp_path / str(size)
        folder.mkdir()
        told = on_a_disk_of(folder, store, size)
        ends_well(told, weights)
        ended.append(told["code"])
    assert store == "field_reports" or 3 in ended  # the reports of this run fit into the smallest disk


@pytest.mark.torture
@pytest.mark.integration
@pytest.mark.timeout(7200)
def test_a_full_disk_of_one_store_in_turn_ends_no_run_on_actors_untyped_at_any_of_twenty_sizes(
    tmp_path: Path, weights: str
) -> None:
    ended = []
    for number, size in enumerate(SIZES):
        folder = tmp_path / str(size)
        folder.mkdir()
        told = on_a_disk_of(folder, ON_ACTORS[number % len(ON_ACTORS)], size, "--ray")
        ends_well(told, weights)
        ended.append(told["code"])
    assert 3 in ended
