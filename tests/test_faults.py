"""Fault points: each fault fires exactly where and when it was armed to, and nothing fires that was not armed."""

from __future__ import annotations

import ast
import errno
import os
import re
import select
import signal
import subprocess
import sys
import time
import timeit
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esper import errors, faults
from esper.durable.files import DISK, atomic_write, write_all
from esper.errors import ConfigError, EmergencyQueueFull, FaultInjected, PolicyFailed, StoreWriteFailed
from esper.faults import POINTS, Fault, FaultSpec, Firings, missed
from esper.faults.altered_messages import ANY_COMMAND, ANY_OBSERVATION, ANY_SEED
from esper.ground.clock import SystemClock
from esper.leyline.commands import Command, sign
from esper.testing import telling

ROOT = Path(__file__).resolve().parents[1]
POINT = "tolaria.step"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm([])


def armed(**values: Any) -> FaultSpec:
    return FaultSpec.model_validate({"point": POINT, "fault": "raise", **values})


def passages(count: int, name: str = POINT) -> list[int]:
    """The passages, counted from 1, that raised."""
    raised = []
    for number in range(1, count + 1):
        before = faults.fired()
        try:
            faults.point(name)
        except FaultInjected:
            raised.append(number)
        assert faults.fired() - before == (number in raised)
    return raised


# -- where and when ----------------------------------------------------------------------------------------------


def test_a_point_at_which_nothing_is_armed_does_nothing() -> None:
    faults.point(POINT)
    faults.arm([armed(point="tamiyo.decide")])
    faults.point(POINT)
    faults.point("no such point")
    assert faults.fired() == 0


def test_a_point_at_which_nothing_is_armed_takes_less_than_100_ns() -> None:
    names = {"point": faults.point, "message": faults.message, "passed": ANY_COMMAND}
    for words in ("point('tolaria.step', round=3, step=4)", "message('kasmina.receive', passed, round=3)"):
        assert min(timeit.repeat(words, globals=names, number=2000, repeat=50)) / 2000 < 100e-9


@pytest.mark.parametrize(
    ("specs", "fires"),
    [
        ([{"passage": 3}], [3]),
        ([{"passage": 1, "times": 2}], [1, 2]),
        ([{"passage": 4, "times": 3}], [4, 5, 6]),
        ([{"passage": 9}], []),
        ([{"passage": 2}, {"passage": 3}, {"passage": 5}], [2, 3, 5]),  # none pushes another to a later passage
        ([{"passage": 2}, {"passage": 3, "point": "tamiyo.decide"}], [2]),
    ],
)
def test_a_fault_fires_at_exactly_its_passages(specs: list[dict[str, Any]], fires: list[int]) -> None:
    faults.arm([armed(**spec) for spec in specs])
    assert passages(8) == fires
    assert passages(4, "tamiyo.decide") == [spec["passage"] for spec in specs if "point" in spec]


def test_arming_replaces_what_was_armed_and_counts_afresh() -> None:
    faults.arm([armed(passage=2)])
    assert passages(1) == []
    faults.arm([armed(passage=2)])
    assert passages(2) == [2]
    faults.arm([])
    assert passages(4) == []


def test_a_passage_that_raised_counts_like_any_other() -> None:
    faults.arm([armed(times=2), armed(fault="delay", passage=3, seconds=0.001)])
    assert passages(2) == [1, 2]
    faults.point(POINT)
    assert faults.fired() == 3


def test_a_fault_of_a_round_and_a_step_fires_there_alone_and_counts_passages_there_alone() -> None:
    faults.arm([armed(round=3, step=40, passage=2)])
    for round, step in ((3, 39), (2, 40), (3, None), (None, 40), (None, None), (3, 40)):
        faults.point(POINT, round=round, step=step)
    with pytest.raises(FaultInjected):
        faults.point(POINT, round=3, step=40)


def test_a_fault_that_means_another_actor_is_not_armed(tmp_path: Path) -> None:
    specs = [armed(role="manager-1"), armed(role="manager-0", passage=2)]
    faults.arm(specs, "manager-0", tmp_path / "faults.jsonl")
    assert passages(4) == [2]
    (firing,) = Firings(tmp_path / "faults.jsonl").all()
    assert (firing.fault_index, firing.actor, firing.passage, firing.pid) == (1, "manager-0", 2, os.getpid())


def test_a_fault_of_the_second_incarnation_fires_there_alone() -> None:
    for incarnation, fires in ((1, []), (2, [1]), (3, [])):
        faults.arm([armed(incarnation=2)], "manager-0", None, 1, incarnation)
        assert passages(2) == fires


def test_a_process_that_takes_the_place_of_another_does_not_fire_what_has_fired(tmp_path: Path) -> None:
    """Else a process that was killed by a fault would be killed by it for ever."""
    record = tmp_path / "faults.jsonl"
    for fires in ([2], []):
        faults.arm([armed(passage=2)], "tolaria", record)
        assert passages(5) == fires


def test_times_are_counted_over_the_run_and_each_fault_for_itself(tmp_path: Path) -> None:
    record = tmp_path / "faults.jsonl"
    specs = [armed(passage=2, times=3), armed(point="tamiyo.decide", times=1)]
    faults.arm(specs, "tolaria", record)
    assert passages(3) == [2, 3]
    faults.arm(specs, "tolaria", record)
    assert passages(5) == [2]
    assert passages(2, "tamiyo.decide") == [1]
    assert [firing.fault_index for firing in Firings(record).all()] == [0, 0, 0, 1]


def test_nothing_fires_that_cannot_be_written_down(tmp_path: Path) -> None:
    faults.arm([armed(fault="kill")], "tolaria", tmp_path / "absent" / "faults.jsonl")
    with pytest.raises(StoreWriteFailed, check=telling("faults.jsonl", doing="writing a fault down")):
        faults.point(POINT)


def test_a_run_whose_faults_never_fired_has_no_firings(tmp_path: Path) -> None:
    assert Firings(tmp_path / "faults.jsonl").all() == ()


# -- what is refused ---------------------------------------------------------------------------------------------

PASSED = {
    "tolaria": {"tolaria.step"},
    "kasmina": {"kasmina.receive"},
    "manager-0": {"kasmina.step"},
    "tamiyo": {"tamiyo.decide"},
    "emergency": {"emergency.pending"},
}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"role": "manager-7", "point": "kasmina.step"}, "faults.role = 'manager-7': no such actor; .* manager-0"),
        ({"role": "tamiyo"}, "faults.role = 'tamiyo': it does not pass tolaria.step; these pass it: tolaria"),
        ({"role": "kasmina", "point": "kasmina.step"}, "it does not pass kasmina.step; these pass it: manager-0"),
        ({"point": "emergency.publish"}, "faults.point = 'emergency.publish': no process of this run passes it"),
        ({"rank": 1}, "faults.rank = 1: it needs several ranks; the only rank is 0"),
        ({"rank": 0, "point": "tamiyo.decide"}, "faults.rank = 0: only points of tolaria"),
        ({"step": 3, "point": "tamiyo.decide"}, "faults.step = 3: only these points know it: .*tolaria.step"),
        ({"round": 3, "point": "emergency.pending"}, "faults.round = 3: only these points know it: .*conductor.commit"),
    ],
)
def test_a_fault_that_could_never_fire_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        faults.check([armed(**values)], PASSED)


# -- what happens ------------------------------------------------------------------------------------------------


def test_raise_raises_the_class_it_names() -> None:
    faults.arm([armed()])
    with pytest.raises(FaultInjected) as plain:
        faults.point(POINT)
    assert plain.value.point == POINT
    faults.arm([armed(error="PolicyFailed")])
    with pytest.raises(PolicyFailed, match=POINT):
        faults.point(POINT)


def test_delay_delays_and_goes_on() -> None:
    faults.arm([armed(fault="delay", seconds=0.05)])
    start = time.monotonic()
    faults.point(POINT)
    assert time.monotonic() - start >= 0.05
    assert faults.fired() == 1


CHILD = """
import os, sys, threading
from esper import faults
from esper.faults import FaultSpec

def echo():
    while word := os.read(0, 1):
        os.write(1, word)

faults.arm([FaultSpec(point="tolaria.step", fault=sys.argv[1], passage=2)])
faults.point("tolaria.step")
threading.Thread(target=echo, daemon=True).start()
os.write(1, b"2")
faults.point("tolaria.step")
os.write(1, b"on")
"""


@pytest.fixture
def child() -> Iterator[Callable[[Fault], subprocess.Popen[bytes]]]:
    """A process that has passed the point once, says so, and passes it again; another of its threads echoes."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(fault: Fault) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(
            [sys.executable, "-c", CHILD, fault], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        begun.append(made)
        assert made.stdout is not None
        assert made.stdout.read(1) == b"2"  # the first passage is behind it
        return made

    yield begin
    for made in begun:
        made.kill()
        with made:
            pass


def echoes(process: subprocess.Popen[bytes], within_s: float | None = None) -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"?")
    if not select.select([process.stdout], [], [], within_s)[0]:
        return False
    assert process.stdout.read(1) == b"?"
    return True


def test_kill_kills_the_process_there(child: Callable[[Fault], subprocess.Popen[bytes]]) -> None:
    process = child(Fault.KILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stdout is not None
    assert process.stdout.read() == b""


def test_stop_freezes_the_process_there(child: Callable[[Fault], subprocess.Popen[bytes]]) -> None:
    process = child(Fault.STOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def test_hang_hangs_the_thread_and_leaves_the_others_running(child: Callable[[Fault], subprocess.Popen[bytes]]) -> None:
    process = child(Fault.HANG)
    assert [echoes(process) for _ in range(20)] == [True] * 20
    assert process.poll() is None


def test_hang_c_keeps_the_interpreter_from_every_thread(child: Callable[[Fault], subprocess.Popen[bytes]]) -> None:
    process = child(Fault.HANG_C)
    assert False in (echoes(process, 0.3) for _ in range(20))
    assert process.poll() is None


@pytest.mark.slow
def test_a_pause_ends_by_itself(child: Callable[[Fault], subprocess.Popen[bytes]]) -> None:
    process = child(Fault.PAUSE)  # of a second
    began = time.monotonic()
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"on"
    assert time.monotonic() - began >= 0.5


def test_a_skewed_clock_is_wrong_until_faults_are_armed_anew() -> None:
    clock = SystemClock()
    for seconds in (-120.0, 3600.0):
        faults.arm([armed(fault="skew", seconds=seconds)])
        faults.point(POINT)
        assert (clock.now() - datetime.now(UTC)).total_seconds() == pytest.approx(seconds, abs=1)
    faults.arm([])
    assert clock.now() - datetime.now(UTC) < timedelta(seconds=1)


KEY = b"k" * 32


def signed(number: int) -> Command:
    command = ANY_COMMAND.model_copy(update={"command_id": f"c{number}"})
    return command.model_copy(update={"signature": sign(command, KEY)})


def received(*numbers: int) -> list[Command]:
    return [faults.message("kasmina.receive", signed(number), round=number) for number in numbers]


def test_a_command_is_altered_forged_or_replayed_in_its_round_alone() -> None:
    at = {"point": "kasmina.receive", "round": 2}
    faults.arm([armed(fault="alter", fields={"mesh_host_layers": ["a"], "policy_version": "x"}, **at)])
    first, altered, last = received(1, 2, 3)
    assert (first, last) == (signed(1), signed(3))
    assert (altered.mesh_host_layers, altered.policy_version) == (("a",), "x")
    assert altered.signature == signed(2).signature
    faults.arm([armed(fault="forge", **at)])
    _, forged, _ = received(1, 2, 3)
    assert forged.signature not in ("", signed(2).signature)
    assert forged.model_copy(update={"signature": signed(2).signature}) == signed(2)
    faults.arm([armed(fault="replay", **at)])
    assert received(1, 2, 3) == [signed(1), signed(1), signed(3)]
    assert received(2) == [signed(2)]


def test_a_command_without_an_earlier_one_is_not_replayed() -> None:
    faults.arm([armed(fault="replay", point="kasmina.receive")])
    assert received(1) == [signed(1)]
    assert faults.fired() == 0


def test_an_observation_is_altered_in_each_seed() -> None:
    seen = ANY_OBSERVATION.model_copy(update={"seeds": (ANY_SEED, ANY_SEED)})
    faults.arm([armed(fault="alter", point="kasmina.evidence", fields={"registered_layers": ["a"], "alpha": 0.5})])
    altered = faults.message("kasmina.evidence", seen, round=1)
    assert (altered.fence, altered.registered_layers) == (0, ("a",))
    assert [seed.alpha for seed in altered.seeds] == [0.5, 0.5]


BROKEN = {"no_space": b"abcd", "io_error": b"", "bit_flip": b"abcddfgh", "truncate": b"abcd"}
"""What is on the disk after a broken write of eight letters, by fault."""
REFUSED = {"no_space": [errno.ENOSPC], "io_error": [errno.EIO], "bit_flip": [], "truncate": []}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_first_write_to_the_file_after_its_point_is_broken_and_no_other(tmp_path: Path, fault: str) -> None:
    specs = [armed(fault=fault, file="journal-*.log")]
    faults.arm(specs, "", record := tmp_path / "faults-1.jsonl")
    written, refused = {}, []
    for name in ("journal-1.log", "other", "journal-2.log", "journal-3.log"):
        descriptor = os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT)
        try:
            write_all(descriptor, b"abcdefgh", 0, DISK)
        except OSError as error:
            refused.append(error.errno)
        os.close(descriptor)
        written[name] = (tmp_path / name).read_bytes()
        faults.point(POINT, step=len(written))
    whole = b"abcdefgh"
    assert written == {"journal-1.log": whole, "other": whole, "journal-2.log": BROKEN[fault], "journal-3.log": whole}
    assert refused == REFUSED[fault]
    assert [firing.passage for firing in Firings(record).all()] == [1]


def test_an_atomic_write_on_a_full_disk_leaves_the_old_file_and_a_fault_without_a_write_has_not_fired(
    tmp_path: Path,
) -> None:
    specs = [armed(fault="no_space", file="run.json"), armed(fault="no_space", file="absent")]
    atomic_write(tmp_path / "run.json", b"old")
    faults.arm(specs, "", record := tmp_path / "faults-1.jsonl")
    faults.point(POINT)
    with pytest.raises(StoreWriteFailed) as caught:
        atomic_write(tmp_path / "run.json", b"new one")
    assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / "run.json").read_bytes() == b"old"
    assert missed(specs, Firings(record).all()) == ("fault 2, no_space at tolaria.step: fired 0 of 1 times",)


def test_faults_that_fired_less_often_than_asked_are_named(tmp_path: Path) -> None:
    specs = [armed(), armed(times=3), armed(point="tamiyo.decide", fault="kill")]
    faults.arm(specs, "", record := tmp_path / "faults.jsonl")
    assert passages(3) == [1, 2, 3]
    assert missed(specs, Firings(record).all()) == (
        "fault 2, raise at tolaria.step: fired 2 of 3 times",
        "fault 3, kill at tamiyo.decide: fired 0 of 1 times",
    )


# -- what can be armed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("point", "near"), [("tolaria.stpe", "tolaria.step"), ("emergency.begin", "emergency")])
def test_an_unknown_point_is_refused_with_the_nearest(point: str, near: str) -> None:
    with pytest.raises(ConfigError, check=telling(near, field="faults.point", value=point)):
        faults.check([armed(point=point)])


@pytest.mark.parametrize("error", ["FaultInject", "ValueError", "Sequence", "annotations", "__doc__"])
def test_only_an_error_of_ours_can_be_raised(error: str) -> None:
    with pytest.raises(ConfigError, check=telling(field="faults.error", value=error)):
        faults.check([armed(error=error)])


def test_an_error_that_cannot_be_made_is_refused_when_it_is_armed_and_not_when_it_fires() -> None:
    for cls in (errors.EmergencyStop, errors.Drained, errors.ConfigError):
        with pytest.raises(ConfigError, check=telling(field="faults.error")):
            faults.arm([armed(error=cls.__name__)])
    faults.arm([armed(error=EmergencyQueueFull.__name__)])
    with pytest.raises(EmergencyQueueFull):
        faults.point(POINT)


def test_a_refusal_leaves_armed_what_was() -> None:
    faults.arm([armed(passage=2)])
    with pytest.raises(ConfigError):
        faults.arm([armed(), armed(point="nowhere")])
    assert passages(3) == [2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fault": "forge"}, "faults.fault = 'forge': .* only these points pass one for it: kasmina.receive"),
        ({"fault": "forge", "point": "tamiyo.command"}, "faults.fault = 'forge'"),  # it is not signed yet
        ({"fault": "alter", "fields": {"run_id": ""}}, "faults.fault = 'alter'"),
        ({"fault": "alter", "point": "tamiyo.command", "fields": {"run": ""}}, "faults.fields = 'run': .*run_id"),
        ({"fault": "alter", "point": "kasmina.receive", "fields": {"generation": -1}}, "faults.fields.generation = -1"),
        ({"fault": "alter", "point": "kasmina.evidence", "fields": {"seeds": []}}, "faults.fields = 'seeds'"),
        ({"fault": "alter", "point": "kasmina.evidence", "fields": {"alpha": "high"}}, "faults.fields.alpha = 'high'"),
    ],
)
def test_a_message_that_could_not_be_altered_so_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        faults.check([armed(**values)])


@pytest.mark.parametrize(
    "entry",
    [
        {"passage": 0},
        {"times": 0},
        {"seconds": 0},
        {"seconds": -1},
        {"fault": "explode"},
        {"when": 1},
        {"fields": {"run_id": ""}},
        {"file": "journal-1.log"},
    ],
)
def test_a_fault_that_means_nothing_is_no_fault(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(entry))):
        armed(**entry)


def test_every_point_in_the_source_is_on_the_list_and_the_other_way_round() -> None:
    named = set()
    for path in [*ROOT.glob("esper/**/*.py"), *ROOT.glob("actors/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("faults.point", "faults.message"):
                named.add(ast.unparse(node.args[0]))
    roles = {"emergency", "kasmina", "tamiyo", "tolaria"}
    dynamic = {"f'{spec.role}.start'": roles, "self._fault_point": {"kasmina", "tolaria"}}
    points = {ast.literal_eval(name) for name in named - dynamic.keys()}
    assert dynamic.keys() <= named
    points |= {f"{role}.start" for role in dynamic["f'{spec.role}.start'"]}
    points |= {f"{role}.step" for role in dynamic["self._fault_point"]}
    assert points == set(POINTS)


def test_the_page_of_faults_names_every_point_fault_and_field() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "faults.md").read_text(encoding="utf-8")
    points, kinds, fields = (
        re.findall(r"^\| `([^`]+)` \| (.+) \|$", part, re.MULTILINE) for part in page.split("\n## ")[1:]
    )
    assert points == [
        (point, ", ".join(f"`{name}`" for name in sorted(knows)) or "nothing") for point, knows in POINTS.items()
    ]
    assert [name for name, _ in kinds] == list(Fault)
    assert [name for name, _ in fields] == list(FaultSpec.model_fields)
    FaultSpec.model_validate(tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])["faults"][0])
