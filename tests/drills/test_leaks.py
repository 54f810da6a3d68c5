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
from esper.testing import until

Starts = Callable[..., "subprocess.Popen[bytes]"]
CAT = shutil.which("cat")
STARTS_AGENT = f"import subprocess; subprocess.run([{AGENTS[0]!r}], executable={CAT!r})"


@pytest.fixture
def starts() -> Iterator[Starts]:
    """Return a function that starts a process with a title, which ends when its input is closed."""
    processes = list[subprocess.Popen[bytes]]()

    def start(title: str, *words: str, program: str | None = CAT) -> subprocess.Popen[bytes]:
        env = {**os.environ, MARK: str(os.getpid())}
        process = subprocess.Popen(
            [title, *words], executable=program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("title", AGENTS)
def test_an_agent_whose_raylet_has_ended_is_waited_for_until_it_has_ended(
    starts: Starts, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    before = Footprint.now()
    monkeypatch.setattr("drills.leaks.ENDING_S", 0.0)
    agent = starts(title)
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


def test_a_process_that_does_not_end_by_itself_is_reported(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent with its raylet, another process, and an agent that never ends."""
    before = Footprint.now()
    monkeypatch.setattr("drills.leaks.ENDING_S", 0.0)
    other = starts("ray::Shell")
    (left,) = settled(before)
    assert f"process {other.pid}" in left
    other.communicate(b"")
    raylet = starts(f"/ray{RAYLET}", "-c", STARTS_AGENT, program=sys.executable)
    until(lambda: any(AGENTS[0] in line for line in Footprint.now().since(before)))
    assert any(AGENTS[0] in line for line in settled(before))
    raylet.communicate(b"")
    orphan = starts(AGENTS[1])
    monkeypatch.setattr("drills.leaks.AGENTS_S", 0.0)
    assert f"process {orphan.pid}" in settled(before)[0]
