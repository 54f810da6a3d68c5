"""Ray's start: a deadline and a second signal end it; and what killed runs left is swept. No Ray is started here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actors import end_signals, starting, temporary_folders
from actors.heads import Heads
from actors.starting import start
from actors.temporary_folders import make_place, sweep
from actors.witness import ENDED
from esper.errors import PlacementUnavailable, StartDeadlineExceeded
from esper.ground.machine import process_began
from esper.testing import telling


class Stuck:
    """A start that goes on until it is given up."""

    def __init__(self) -> None:
        self.began, self.given_up, self.ended = threading.Event(), threading.Event(), threading.Event()

    def begin(self) -> None:
        self.began.set()
        self.given_up.wait()
        raise ConnectionError("its processes are gone")

    def start(self, deadline_s: float) -> None:
        start(self.begin, self.given_up.set, deadline_s, self.ended)


def test_a_start_that_does_not_end_is_given_up_at_its_deadline() -> None:
    stuck = Stuck()
    with pytest.raises(StartDeadlineExceeded, check=telling("within 0.1", role="ray")) as caught:
        stuck.start(0.1)
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_start_that_does_not_end_even_then_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "GIVE_UP_WITHIN_S", 0.1)
    stuck, given_up = Stuck(), list[bool]()
    with pytest.raises(StartDeadlineExceeded, check=telling("within 0.1", role="ray")):
        start(stuck.begin, lambda: given_up.append(True), 0.1, stuck.ended)
    assert given_up == [True]
    stuck.given_up.set()


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_signal_ends_a_start_and_the_first_is_answered_then(
    monkeypatch: pytest.MonkeyPatch, first: signal.Signals
) -> None:
    monkeypatch.setattr(starting, "SAME_REQUEST_S", 0.0)
    heard, stuck = list[int](), Stuck()
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in end_signals.ENDING}

    def ask() -> None:
        stuck.began.wait()
        os.kill(os.getpid(), first)
        while not heard and not stuck.given_up.wait(0.05):  # one signal alone ends nothing
            os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(PlacementUnavailable, check=telling("interrupted", role="ray")):
            stuck.start(3600.0)
    finally:
        asking.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert {*heard} == {first, signal.SIGINT}  # two that wait at once are handled in the order of their numbers


def test_a_start_ends_at_once_with_the_death_of_a_process_that_it_needs(head: subprocess.Popen[bytes]) -> None:
    stuck, heads = Stuck(), Heads()
    heads.add("log_monitor", 1)
    heads.add("raylet", head.pid)
    heads.check()
    head.communicate(b"\n")
    with pytest.raises(PlacementUnavailable, check=telling(str(head.pid), role="ray")):
        start(stuck.begin, stuck.given_up.set, 3600.0, stuck.ended, heads.gone)
    assert stuck.given_up.is_set()


def test_no_start_begins_while_one_that_was_given_up_is_in_rays_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "GIVE_UP_WITHIN_S", 0.1)
    stuck = Stuck()
    with pytest.raises(StartDeadlineExceeded):
        start(stuck.begin, lambda: None, 0.1, stuck.ended)
    with pytest.raises(PlacementUnavailable, check=telling("given up", role="ray")):
        start(lambda: None, lambda: None, 3600.0, threading.Event())
    stuck.given_up.set()


def test_the_thread_of_a_start_stays_for_as_long_as_its_processes_are_needed() -> None:
    threads, ended = list[threading.Thread](), threading.Event()
    start(lambda: threads.append(threading.current_thread()), lambda: None, 3600.0, ended)
    assert threads[0].is_alive()  # the system ends Ray's processes when the thread that started them ends
    ended.set()
    threads[0].join()


# -- what killed runs left ------------------------------------------------------------------------------------------


def left_by_a_dead_process(parent: Path) -> Path:
    """A place whose mark names a process that had our id before us."""
    place = make_place("ray", parent)
    mark = place / temporary_folders.OWNER
    mark.write_text(mark.read_text().replace(str(process_began(os.getpid())), "1"))
    return place


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    left, ours = left_by_a_dead_process(tmp_path), make_place("word", tmp_path)
    assert (ours.stat().st_mode & 0o777, left.stat().st_mode & 0o777) == (0o700, 0o700)
    assert sweep(tmp_path, tmp_path / "absent") == (left,)
    assert ours.is_dir()


@pytest.mark.parametrize("doubt", ["no mark", "another boot", "another name", "a link", "another user"])
def test_what_may_be_in_use_or_not_ours_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubt: str) -> None:
    left = left_by_a_dead_process(tmp_path)
    mark = left / temporary_folders.OWNER
    if doubt == "no mark":
        mark.unlink()
    elif doubt == "another boot":
        mark.write_text(mark.read_text().replace("-", "0"))
    elif doubt == "another name":
        left = left.rename(tmp_path / "esper-mine")
    elif doubt == "a link":
        target = left.rename(tmp_path / "target")
        left.symlink_to(target)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert sweep(tmp_path) == ()
    assert left.exists()


# -- a process that ends without a word -------------------------------------------------------------------------------


LAST_WORDS = "error: ActorLost\nmessage: conductor: {reason}\nnext: esper resume /runs/one\n"

ENDS = """
import os
from pathlib import Path
from actors.witness import Witness

for act in (
    lambda witness: os._exit(1),
    lambda witness: (witness.close(), os._exit(2)),
    lambda witness: witness.leave("the raylet has ended"),
    lambda witness: (os.close(2), witness.leave("nobody reads this")),
):
    child = os.fork()
    if child == 0:
        act(Witness(Path("/runs/one")))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_ends_from_within_c_has_its_last_words_said() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2", "3", "3"]
    ends = [LAST_WORDS.format(reason=reason) for reason in (ENDED, "the raylet has ended")]
    assert done.stderr in ("".join(ends), "".join(reversed(ends)))  # the shell speaks once the process is gone


@pytest.mark.parametrize(
    ("lost", "limit_s", "error", "mend"),
    [
        ("raylet (process 3) has ended", float("inf"), PlacementUnavailable, starting.TRY_AGAIN),
        ("", 0.0, StartDeadlineExceeded, starting.RAISE_IT),
    ],
)
def test_a_start_that_failed_names_its_mend(lost: str, limit_s: float, error: type[Exception], mend: str) -> None:
    why = starting._why_to_stop(lost, (), limit_s, 1.0)
    assert type(why) is error
    assert mend in str(why)
