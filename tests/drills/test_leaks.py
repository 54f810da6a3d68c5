"""What a drill leaves behind: an agent of Ray that is about to end is waited for, and a real leak is reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from actors.ray_private import AGENTS, RAYLET
from drills.leaks import MARK, Footprint, settled

Starts = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def starts() -> Iterator[Starts]:
    """Return a function that starts a process with a title, which ends when its input is closed."""
    processes = list[subprocess.Popen[bytes]]()

    def start(title: str, raylet: int) -> subprocess.Popen[bytes]:
        env = {**os.environ, MARK: str(os.getpid()), RAYLET: str(raylet)}
        process = subprocess.Popen(
            [title], executable=shutil.which("cat"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def ended() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("title", AGENTS)
def test_an_agent_whose_raylet_has_ended_is_waited_for_until_it_has_ended(
    starts: Starts, ended: int, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    before = Footprint.now()
    monkeypatch.setattr("drills.leaks.ENDING_S", 0.0)
    agent = starts(title, raylet=ended)
    looks = list[tuple[str, ...]]()

    def look(self: Footprint, before: Footprint) -> tuple[str, ...]:
        """The agent ends after the second look, so that it is still there in the first two."""
        looks.append(since(self, before))
        if len(looks) == 2:
            agent.communicate(b"")
        return looks[-1]

    since = Footprint.since
    monkeypatch.setattr(Footprint, "since", look)
    assert settled(before) == ()
    assert len(looks) >= 3
    for seen in looks[:2]:
        assert len(seen) == 1
        assert f"process {agent.pid}" in seen[0]


def test_a_process_that_does_not_end_by_itself_is_reported(
    starts: Starts, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent with its raylet, another process, and an agent that never ends."""
    before = Footprint.now()
    monkeypatch.setattr("drills.leaks.ENDING_S", 0.0)
    for title, raylet in ((AGENTS[0], os.getpid()), ("ray::Shell", ended)):
        process = starts(title, raylet)
        (left,) = settled(before)
        assert f"process {process.pid}" in left
        process.communicate(b"")
    orphan = starts(AGENTS[1], ended)
    monkeypatch.setattr("drills.leaks.AGENTS_S", 0.0)
    assert f"process {orphan.pid}" in settled(before)[0]
