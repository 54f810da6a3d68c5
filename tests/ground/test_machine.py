"""What is asked of this machine."""

from __future__ import annotations

import os

from esper.ground.machine import is_alive, process_began


def test_a_process_is_alive_until_it_ends_whether_its_parent_has_collected_it_or_not() -> None:
    assert is_alive(os.getpid())
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child)
    os.waitpid(child, 0)
    assert not is_alive(child)


def test_a_process_began_at_one_moment_and_one_that_has_ended_at_none() -> None:
    assert process_began(os.getpid()) == process_began(os.getpid()) is not None
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert process_began(child) is None
