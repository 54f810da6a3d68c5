"""Each role dies in each phase of a run: it ends with the bits of one that nobody disturbed.

A fault point holds the phase open in the process that passes it; meanwhile the victim is killed from outside. One run
takes it through half of the phases, so it dies seven or eight times. The table of what was seen is in
docs/supervision.md, and is compared with it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import esper.loop
from actors.company import Company
from actors.handles import is_gone
from esper.faults import Fault, Firing, Firings
from esper.history import read_past
from esper.journal import Kind, read
from esper.recovery import Recovery
from esper.run_directory import faults_file
from esper.summary import Result
from esper.testing import tiny_config, tiny_task

ROLES = ("tolaria", "tamiyo", "tamiyo-spare", "kasmina", "manager-0", "emergency")
ALONE = frozenset({"tamiyo-spare", "manager-0"})
"""Who is replaced while all others go on."""
WHOLE = frozenset(ROLES) - {"tolaria"} - ALONE
"""Whose death takes the run back, though not its trainer."""
EITHER = "memory or checkpoint"


class Moment(NamedTuple):
    """Which passage of which fault point."""

    point: str
    when: Mapping[str, int] = {}
    own: Mapping[str, int] | None = None
    """The same where the victim itself passes it, whose successors begin to count anew."""
    open_for: frozenset[str] = frozenset()
    """Victims for whom it is open whether the checkpoint that is made beside it is so far that it needs them."""
    never_for: frozenset[str] = frozenset()
    """Victims whose deaths lead to no such phase."""


CHAINS: tuple[dict[str, Moment], ...] = (
    {
        "as the run begins": Moment("conductor.begin"),
        "in the first save": Moment("tolaria.save", {"round": 0}),
        "as a tournament begins": Moment("kasmina.step"),
        "in a graft": Moment("tolaria.apply", {"passage": 2}),
        "in a decision": Moment("tamiyo.decide", {"round": 5}),
        "in a round": Moment("tolaria.step", {"step": 150}),
        "before a COMMIT": Moment("conductor.commit", {"round": 12}, open_for=WHOLE),
        "at the end": Moment("conductor.end"),
    },
    {
        "at fence 0": Moment("conductor.fence", {"round": 0}),
        "in a tournament": Moment("kasmina.step", {"step": 52}),
        "as a command arrives": Moment("kasmina.receive", {"round": 5}),
        "in the recovery from that": Moment("conductor.restore", {"passage": 3}, never_for=ALONE),
        "as a round begins": Moment("tolaria.round", {"round": 7}),
        "in a save": Moment("tolaria.save", {"round": 8}),
        "as signals are asked for": Moment("emergency.pending", {"passage": 15}, {"passage": 3, "generation": 7}),
        "at a fence": Moment("conductor.fence", {"round": 15}),
    },
)
"""The phases of a run, in two runs. A victim that nobody asks is missed at the next fence, and no other phase may come
until then; a tournament may still begin when its round is over, and who dies then is missed one fence later.
"""
QUICK = {"in a tournament", "as a command arrives"}
STARTS = "as it starts"
HELD_S = 0.5
"""How long a point of the conductor is held; whoever kills is a thread beside it. An actor's process is stopped."""

DOCS = Path(__file__).parents[2] / "docs" / "supervision.md"
BEGIN, END = "<!-- matrix: made by tests/actors/test_recovery_matrix.py -->\n", "<!-- end of matrix -->\n"
seen: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return esper.loop.run(tiny_task(), tiny_config(run__dir=str(tmp_path_factory.mktemp("alone") / "run")))


def same(result: Result, alone: Result) -> None:
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert getattr(result, name) == getattr(alone, name), name


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> list[Company]:
    """The actors of each run that the test launches."""
    made: list[Company] = []
    start = Company.start

    def noted(self: Company) -> None:
        made.append(self)
        start(self)

    monkeypatch.setattr(Company, "start", noted)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=["one half", "the other"])
@pytest.mark.parametrize("victim", ROLES)
def test_whoever_dies_in_whatever_phase_no_bit_differs(
    launch_tiny: Any, alone: Result, company: list[Company], victim: str, chain: dict[str, Moment]
) -> None:
    reached = {phase: moment for phase, moment in chain.items() if victim not in moment.never_for}
    result = struck(launch_tiny, company, victim, reached)
    same(result, alone)
    outcomes = [how(recovery) for recovery in result.recoveries]
    for (phase, moment), outcome in zip(reached.items(), [*outcomes, LATE], strict=False):
        seen[phase, victim] = shown(moment, victim, outcome)
    seen.update({(phase, victim): NEVER for phase in chain if phase not in reached})


def test_a_manager_that_dies_twice_is_replaced_twice_and_no_bit_differs(
    launch_tiny: Any, alone: Result, company: list[Company]
) -> None:
    chain = {phase: moment for chain in CHAINS for phase, moment in chain.items() if phase in QUICK}
    result = struck(launch_tiny, company, "manager-0", chain)
    same(result, alone)
    assert [how(recovery) for recovery in result.recoveries] == ["alone", "alone"]
    rounds = [
        entry.body["fence"]
        for entry in read(launch_tiny.run_dir / "journal-1.log")[0]
        if entry.kind is Kind.ROUND_ENDED
    ]
    assert rounds == list(range(1, result.rounds + 1))  # the trainer did none again


@pytest.mark.slow
@pytest.mark.parametrize("victim", ROLES)
def test_whoever_dies_as_the_run_starts_is_started_again(launch_tiny: Any, alone: Result, victim: str) -> None:
    role = "kasmina" if victim == "manager-0" else victim.removesuffix("-spare")
    result = launch_tiny(restarting=True, faults=[{"point": f"{role}.start", "fault": "kill", "role": victim}])
    same(result, alone)
    assert (result.restarts, result.recoveries, result.fault_fired) == (1, (), True)
    past = read_past(launch_tiny.run_dir)
    assert (past.restarts, past.generation) == (1, 1)
    (told,) = [entry.body for entry in past.entries if entry.kind is Kind.DIED_STARTING]
    assert (told["actor"], told["error"]) == (victim, "TrainerRankLost" if victim == "tolaria" else "ActorLost")
    seen[STARTS, victim] = "started again"


@pytest.mark.slow
def test_the_matrix_in_the_docs_is_what_was_seen(request: pytest.FixtureRequest) -> None:
    phases = (STARTS, *(phase for chain in CHAINS for phase in chain))
    missing = [(phase, victim) for phase in phases for victim in ROLES if (phase, victim) not in seen]
    assert not missing, "run the whole file: the table is made of all cells"
    rows = [["died", *ROLES], ["---"] * (1 + len(ROLES)), *([p, *(seen[p, v] for v in ROLES)] for p in phases)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    before, _, rest = DOCS.read_text().partition(BEGIN)
    now, _, after = rest.partition(END)
    if request.config.getoption("--write-docs"):
        DOCS.write_text(f"{before}{BEGIN}{table}{END}{after}")
    else:
        assert now == table, "run this file with --write-docs, and look at what changed"


LATE = "not needed any more"
NEVER = "never"


def how(recovery: Recovery) -> str:
    """Where the host's state came from after a death."""
    if recovery.alone:
        return "alone"
    if recovery.from_memory:
        return "memory"
    return "built anew" if recovery.fence is None else "checkpoint"


def shown(moment: Moment, victim: str, outcome: str) -> str:
    """What the table says of an outcome."""
    if victim not in moment.open_for:
        return outcome
    assert outcome in EITHER.split(" or ")
    return EITHER


def struck(launch_tiny: Any, company: list[Company], victim: str, chain: Mapping[str, Moment]) -> Result:
    """Launch a run in which an actor dies in each phase of a chain."""
    faults = [fault(moment, victim) for moment in chain.values()]
    limits = {"supervision__deaths": 99, "supervision__without_progress": 99}
    with killing(victim, launch_tiny.run_dir, len(chain), company):
        result: Result = launch_tiny(restarting=True, faults=faults, **limits)
    past = read_past(launch_tiny.run_dir)
    assert [list(one.actors) for one in result.recoveries] == [[victim]] * past.restarts
    assert past.restarts in (len(chain), len(chain) - ("at the end" in chain))
    taken_back = [recovery for recovery in result.recoveries if not recovery.alone]
    assert (past.generation, result.resumes, result.rollbacks) == (1 + len(taken_back), 0, 0)
    return result


def fault(moment: Moment, victim: str) -> dict[str, Any]:
    """What holds a phase open."""
    when = moment.own if moment.own is not None and moment.point.startswith(f"{victim}.") else moment.when
    held = {"fault": "delay", "seconds": HELD_S} if moment.point.startswith("conductor.") else {"fault": "stop"}
    return {"point": moment.point, **when, **held}


@contextmanager
def killing(victim: str, run_dir: Path, times: int, company: list[Company]) -> Iterator[None]:
    """Kill an actor each time that a fault holds a process; then let that one go on."""
    over, wrong = threading.Event(), list[str]()

    def strike() -> None:
        for number in range(times):
            while len(firings := Firings(faults_file(run_dir, 1)).all()) <= number:
                if over.wait(0.002):
                    wrong.append(f"only {number} of {times} faults fired before the run was over")
                    return
            wrong.extend(_strike(company[0].remotes[victim].pid, firings[number]))

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        assert wrong == []


def _strike(target: int, firing: Firing) -> list[str]:
    """Kill a process while a fault holds another, or it itself. Returns what was other than it should be."""
    wrong, since = [], time.monotonic()
    while firing.fault is Fault.STOP and not _is_stopped(firing.pid):
        time.sleep(0.001)
    if is_gone(target):
        wrong.append(f"{firing.point}: the victim is dead already")
    else:
        os.kill(target, signal.SIGKILL)
    while not is_gone(target):
        time.sleep(0.001)
    if firing.fault is Fault.DELAY and time.monotonic() - since > HELD_S:
        wrong.append(f"{firing.point}: it took longer than the point is held")
    if firing.fault is Fault.STOP and firing.pid != target:
        os.kill(firing.pid, signal.SIGCONT)
    return wrong


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
