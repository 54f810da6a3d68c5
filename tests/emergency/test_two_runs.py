"""Two runs in one process: a second thread cannot begin a run, and two services share no signal and no word."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from queues import signal
from services import opened, word_in

import esper
from esper.emergency.hosting import hosted
from esper.errors import ConfigError
from esper.flow.one_run import only_run
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.leyline.signals import Level
from esper.leyline.state import RoundState
from esper.testing import telling, tiny_config, tiny_task


class BeginsAnother(Quiet):
    """At fence 1, begins a run in another thread."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == 1:
            with ThreadPoolExecutor(1) as pool:
                config = tiny_config(run__dir=str(self._run_dir), growth__enabled=False)
                other = pool.submit(esper.run, tiny_task(), config)
                with pytest.raises(ConfigError, check=telling("another thread", field="run")):
                    other.result()


def test_a_run_in_a_second_thread_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    config = tiny_config(run__dir=str(tmp_path / "one"), growth__enabled=False)
    esper.run(tiny_task(), config, progress=BeginsAnother(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_forked_process_may_run_although_a_thread_of_its_parent_runs() -> None:
    begun, over = threading.Event(), threading.Event()

    def runs() -> None:
        with only_run():
            begun.set()
            over.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(runs)
        begun.wait()
        child = os.fork()
        if child == 0:
            try:
                with only_run():
                    os._exit(7)
            finally:
                os._exit(1)
        over.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_signals_of_one_service_do_not_reach_another_in_the_same_process(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with hosted(opened(one), 0.0, print) as first, hosted(opened(other), 0.0, print) as second:
        first.publish(signal("halt", Level.HALT))
        second.publish(signal("notice"))
        assert (word_in(one).halted(), word_in(other).halted()) == (True, False)
        assert [[found.signal_id for found in host.pending("conductor")] for host in (first, second)] == [
            ["halt"],
            ["notice"],
        ]
