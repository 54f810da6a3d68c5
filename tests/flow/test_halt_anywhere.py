"""A HALT at each moment of a run: the run stops at the next boundary, and a resume ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from incidents import HALT, the_trace_of

from esper import InProcess, faults, resume, run
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import journal_file, run_file
from esper.errors import Drained, EmergencyStop, StoreCorrupt
from esper.flow.operator import Outcome, send
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.leyline.signals import Level
from esper.leyline.state import RoundState
from esper.testing import StopAt, fail_with, tiny_config, tiny_task
from esper.trace.event_log import severe_events
from esper.trace.span_files import Skipped


def the_halt_is_reported(run_dir: Path, stop: EmergencyStop, generation: int = 1) -> None:
    """The newest severe event is this stop: on a span and in the log, in the trace that the end of the run names."""
    told = severe_events(run_dir, Skipped())[-1]
    assert (told.name, told.severity) == ("emergency_halt", "CRITICAL")
    signal = {key: told.fields.pop(key) for key in ("origin", "issued_at")}
    assert told.fields == {"signal_id": stop.signal_id, "reason": stop.reason, "step": stop.step}
    assert signal == next(
        {"origin": sent["origin"], "issued_at": datetime.fromisoformat(sent["issued_at"]).isoformat()}
        for entry in read(journal_file(run_dir, generation))[0]
        if entry.kind is RecordKind.SIGNAL and (sent := entry.body)["signal_id"] == stop.signal_id
    )
    assert told.trace_id == read(journal_file(run_dir, generation))[0][-1].body["trace_id"] != ""
    the_trace_of(run_dir, ["emergency halt[role=conductor]@emergency_halt"], told.trace_id)


OFTEN = ("tolaria.apply", "tolaria.save", "kasmina.step")
RARELY = ("conductor.begin", "conductor.commit", "conductor.fence", "kasmina.receive", "tamiyo.decide", "tolaria.round")


@pytest.fixture
def halt_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Sends one HALT from outside when the run passes a fault point for the given time, and waits until it is taken.

    Returns the list of what the point said then: empty until the HALT was sent.
    """
    run_dir, pass_point = tmp_path / "run", faults.point

    def armed(point: str, passage: int = 1) -> list[dict[str, Any]]:
        passed, sent = list[str](), list[dict[str, Any]]()

        def look(name: str, **values: Any) -> None:
            pass_point(name, **values)
            if name != point or not run_file(run_dir).exists():
                return
            passed.append(name)
            if len(passed) == passage:
                assert send(run_dir, Level.HALT, "now", {}, wait_s=600)[1].outcome is Outcome.TAKEN
                sent.append(values)

        monkeypatch.setattr(faults, "point", look)
        return sent

    return armed


@pytest.mark.parametrize(
    "point",
    [
        *(pytest.param(point, marks=pytest.mark.slow) for point in OFTEN),
        *(pytest.param(point, marks=pytest.mark.torture) for point in RARELY),
    ],
)
def test_a_halt_at_any_moment_stops_the_run_and_a_resume_ends_with_the_same_bits(
    point: str, halt_at: Callable[..., list[dict[str, Any]]], tmp_path: Path, undisturbed: Result
) -> None:
    sent = halt_at(point)
    with pytest.raises(EmergencyStop) as stop:
        run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), on=InProcess())
    assert (len(sent), stop.value.reason) == (1, "now")
    the_halt_is_reported(tmp_path / "run", stop.value)
    assert resume(tmp_path / "run", tiny_task(), on=InProcess()).weights_sha256 == undisturbed.weights_sha256


def test_a_halt_within_a_step_stops_the_run_before_the_next_step(
    halt_at: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    sent = halt_at("tolaria.step", passage=30)
    with pytest.raises(EmergencyStop) as stop:
        run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False), on=InProcess())
    assert stop.value.step - sent[0]["step"] in (0, 1)
    trace_id = the_trace_of(tmp_path / "run", HALT)
    assert read(journal_file(tmp_path / "run", 1))[0][-1].body["trace_id"] == trace_id
    the_halt_is_reported(tmp_path / "run", stop.value)
    whole = ["emergency halt > process esper.emergency"]  # the signal was read between two fences, for its reason
    the_trace_of(tmp_path / "run", whole, trace_id)


@pytest.mark.slow
def test_a_halt_in_a_restore_stops_the_resume_before_its_first_step(
    halt_at: Callable[..., list[dict[str, Any]]], tmp_path: Path, undisturbed: Result
) -> None:
    run_dir = tmp_path / "run"
    halt_at("tolaria.round", passage=3)
    with pytest.raises(EmergencyStop):
        run(tiny_task(), tiny_config(run__dir=str(run_dir)), on=InProcess())
    halt_at("conductor.restore")
    with pytest.raises(EmergencyStop) as stop:
        resume(run_dir, tiny_task(), on=InProcess())
    assert stop.value.step == 40
    the_halt_is_reported(run_dir, stop.value, generation=2)
    assert resume(run_dir, tiny_task(), on=InProcess()).weights_sha256 == undisturbed.weights_sha256


class Careful(StopAt):
    """Sends a CONSERVATIVE signal when fence 1 has been passed, and stops the run at a later fence."""

    def __init__(self, run_dir: Path, fence: int) -> None:
        super().__init__(fence)
        self._run_dir = run_dir

    def fence(self, state: RoundState, tally: Tally) -> None:
        super().fence(state, tally)
        if state.fence == 1:
            assert send(self._run_dir, Level.CONSERVATIVE, "careful", {}, wait_s=600)[1].outcome is Outcome.TAKEN


@pytest.mark.slow
def test_a_run_that_was_careful_and_stopped_ends_with_the_bits_of_one_that_was_careful_only(
    tmp_path: Path, undisturbed: Result
) -> None:
    """`calm_fences` is 3: the signal is read at fence 2, and in force at the fences 2, 3 and 4."""

    def careful(run_dir: Path, fence: int) -> Result:
        watch = Careful(run_dir, fence)
        config = tiny_config(run__dir=str(run_dir), checkpoint__every_rounds=3)
        return run(tiny_task(), config, on=InProcess(), drain=watch.drain, progress=watch)

    straight = careful(tmp_path / "straight", 99)
    assert straight.weights_sha256 != undisturbed.weights_sha256
    for stop in (3, 4, 6):
        run_dir = tmp_path / str(stop)
        with pytest.raises(Drained):
            careful(run_dir, stop)
        assert resume(run_dir, tiny_task(), on=InProcess()).weights_sha256 == straight.weights_sha256, stop
        changes = [one.fields for one in severe_events(run_dir, Skipped()) if one.name == "emergency_level_changed"]
        assert changes[0] == {"before": "none", "after": "CONSERVATIVE", "fence": 2}
        assert changes[-1] == {"before": "CONSERVATIVE", "after": "none", "fence": 5}


class HaltAt(StopAt):
    """Sends a HALT when fence 2 has been passed, and does something else, too."""

    def __init__(self, run_dir: Path, act: Callable[[HaltAt], object]) -> None:
        super().__init__(99)
        self._run_dir, self._act = run_dir, act

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == 2:
            assert send(self._run_dir, Level.HALT, "now", {}, wait_s=600)[1].outcome is Outcome.TAKEN
            self._act(self)


@pytest.mark.slow
def test_a_halt_comes_before_a_requested_stop_and_is_not_lost_behind_another_failure(
    tmp_path: Path, undisturbed: Result
) -> None:
    both, failed = tmp_path / "both", tmp_path / "failed"
    watch = HaltAt(both, lambda watch: watch.drain.ask())
    with pytest.raises(EmergencyStop) as stop:
        run(tiny_task(), tiny_config(run__dir=str(both)), on=InProcess(), drain=watch.drain, progress=watch)
    the_halt_is_reported(both, stop.value)
    broken = HaltAt(failed, lambda _: fail_with(StoreCorrupt("x", "broken")))
    with pytest.raises(StoreCorrupt):
        run(tiny_task(), tiny_config(run__dir=str(failed)), on=InProcess(), progress=broken)
    with pytest.raises(EmergencyStop) as stop:
        resume(failed, tiny_task(), on=InProcess())
    assert resume(failed, tiny_task(), on=InProcess()).weights_sha256 == undisturbed.weights_sha256
    (cleared,) = [one for one in severe_events(failed, Skipped()) if one.name == "emergency_halt_cleared"]
    assert cleared.fields == {"signal_id": stop.value.signal_id}
    the_trace_of(failed, ["esper resume[generation=3]@emergency_halt_cleared"], cleared.trace_id)
