"""Each role dies in each phase of a run: it ends with the bits of an undisturbed one.

A fault point holds the phase open in the process that passes it, until the victim has been killed from outside. One run
takes it through half of the phases, so it dies seven or eight times. docs/supervision.md has a table of where the state
came from; each run is compared with its own cells of it. `make check` makes four of the runs, `make torture` all:
`make torture ARGS="tests/actors/test_recovery_matrix.py --write-docs"` writes the table.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from actors.ray_crew import RayCrew
from actors.remote_incubator import RemoteIncubator
from esper.archive.history import read_past
from esper.archive.journal import RecordKind, read
from esper.archive.recovery_record import Recovery
from esper.archive.run_directory import faults_file
from esper.faults import Fault, Firing, Firings, acts
from esper.flow.result import Result
from esper.ground.machine import is_alive
from esper.testing import until
from esper.trace.event_log import severe_events
from esper.trace.span_files import Skipped

ROLES = ("tolaria", "tamiyo", "tamiyo-spare", "kasmina", "manager-0", "emergency")
ALONE = frozenset({"tamiyo-spare", "manager-0", "emergency"})
"""Who is replaced while all others go on."""
WHOLE = frozenset(ROLES) - {"tolaria"} - ALONE
"""Whose death takes the run back, though not its trainer."""
EITHER = "memory or checkpoint"


class Moment(NamedTuple):
    """A passage of a fault point."""

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
        "as signals are asked for": Moment("emergency.pending", {"passage": 15}, {"passage": 5}),
        "at a fence": Moment("conductor.fence", {"round": 15}),
    },
)
"""The phases of a run, in two runs. A victim that nobody asks is missed at the next fence, and no other phase may come
until then; a tournament may still begin when its round is over, and who dies then is missed one fence later.
"""
STARTS = "as it starts"
PHASES = (STARTS, *(phase for chain in CHAINS for phase in chain))

RECOVERIES = {("tolaria", 0), ("kasmina", 1), ("manager-0", 1)}
"""Which chains `make check` makes: one for each way to recover."""


def runs() -> Iterator[Any]:
    """Each victim with each chain."""
    for victim in ROLES:
        for number, chain in enumerate(CHAINS):
            marks = [] if (victim, number) in RECOVERIES else [pytest.mark.torture]
            yield pytest.param(victim, chain, id=f"{victim}-{('one half', 'the other')[number]}", marks=marks)


def same(result: Result, undisturbed: Result) -> None:
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert getattr(result, name) == getattr(undisturbed, name), name


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[RayCrew]:
    """The actors of each run that the test launches."""
    made: list[RayCrew] = []
    start = RayCrew.start

    def noted(self: RayCrew) -> RemoteIncubator:
        made.append(self)
        return start(self)

    monkeypatch.setattr(RayCrew, "start", noted)
    return made


@pytest.mark.parametrize(("victim", "chain"), list(runs()))
def test_no_bit_differs_whichever_actor_dies_in_whichever_phase(
    launch_tiny: Any,
    undisturbed: Result,
    crews: list[RayCrew],
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    chain: dict[str, Moment],
) -> None:
    reached = {phase: moment for phase, moment in chain.items() if victim not in moment.never_for}
    with killing(victim, launch_tiny.run_dir, len(reached), crews, monkeypatch):
        result = struck(launch_tiny, victim, reached)
    same(result, undisturbed)
    outcomes = [how(recovery) for recovery in result.recoveries]
    for (phase, moment), outcome in zip(reached.items(), [*outcomes, LATE], strict=False):
        table.compare(phase, victim, shown(moment, victim, outcome))
    for phase in chain.keys() - reached.keys():
        table.compare(phase, victim, NEVER)
    if victim in ALONE:
        entries = read(launch_tiny.run_dir / "journal-1.log")[0]
        rounds = [entry.body["fence"] for entry in entries if entry.kind is RecordKind.ROUND_ENDED]
        assert rounds == list(range(1, result.rounds + 1))  # the trainer did none again


@pytest.mark.parametrize(
    "victim", [name if name == "tolaria" else pytest.param(name, marks=pytest.mark.torture) for name in ROLES]
)
def test_an_actor_that_dies_as_the_run_starts_is_restarted(
    launch_tiny: Any, undisturbed: Result, table: Table, victim: str
) -> None:
    role = "kasmina" if victim == "manager-0" else victim.removesuffix("-spare")
    result = launch_tiny(restarting=True, faults=[{"point": f"{role}.start", "fault": "kill", "role": victim}])
    same(result, undisturbed)
    assert (result.restarts, result.recoveries, result.fault_fired) == (1, (), True)
    past = read_past(launch_tiny.run_dir)
    assert (past.restarts, past.generation) == (1, 1)
    (told,) = [entry.body for entry in past.entries if entry.kind is RecordKind.DIED_STARTING]
    assert (told["actor"], told["error"]) == (victim, "TrainerRankLost" if victim == "tolaria" else "ActorLost")
    (severe,) = [one for one in severe_events(launch_tiny.run_dir, Skipped()) if one.name == "actor_died_starting"]
    assert severe.fields["actor"] == victim
    table.compare(STARTS, victim, AGAIN)


def test_the_matrix_in_the_docs_has_a_word_for_every_role_in_every_phase(table: Table) -> None:
    assert table.cells.keys() == {(phase, victim) for phase in PHASES for victim in ROLES}
    assert set(table.cells.values()) == {AGAIN, LATE, NEVER, EITHER, "alone", "memory", "checkpoint", "built anew"}


# -- the table ---------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "supervision.md"
BEGIN, END = "<!-- matrix: made by tests/actors/test_recovery_matrix.py -->\n", "<!-- end of matrix -->\n"


class Table:
    """The table in the docs. Outcomes are compared with it, or written into it on request."""

    def __init__(self, writes: bool) -> None:
        self._writes = writes
        self._before, _, rest = DOCS.read_text().partition(BEGIN)
        rows, _, self._after = rest.partition(END)
        heading, _, *lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]
        self.cells = {
            (phase, role): cell
            for phase, *cells in lines
            for role, cell in zip(heading[1:], cells, strict=True)  # by its place
        }

    def compare(self, phase: str, victim: str, word: str) -> None:
        """Compare a cell with an outcome, or write the outcome into it."""
        if self._writes:
            self.cells = {(p, role): "?" for p in PHASES for role in ROLES} | self.cells | {(phase, victim): word}
            DOCS.write_text(f"{self._before}{BEGIN}{self._text()}{END}{self._after}")
        assert self.cells[phase, victim] == word, f"{victim} died {phase}; the table: --write-docs, and look at it"

    def _text(self) -> str:
        rows = [[phase, *(self.cells[phase, role] for role in ROLES)] for phase in PHASES]
        return "".join(f"| {' | '.join(row)} |\n" for row in [["died", *ROLES], ["---"] * (1 + len(ROLES)), *rows])


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """The table of docs/supervision.md."""
    return Table(writes=request.config.getoption("--write-docs"))


LATE = "not needed any more"
NEVER = "never"
AGAIN = "started again"


def how(recovery: Recovery) -> str:
    """Where the host's state came from after a death."""
    if recovery.alone:
        return "alone"
    if recovery.from_memory:
        return "memory"
    return "built anew" if recovery.fence is None else "checkpoint"


def shown(moment: Moment, victim: str, outcome: str) -> str:
    """An outcome in the words of the table."""
    if victim not in moment.open_for:
        return outcome
    assert outcome in EITHER.split(" or ")
    return EITHER


def struck(launch_tiny: Any, victim: str, chain: Mapping[str, Moment]) -> Result:
    """Launch a run in which an actor dies in each phase of a chain."""
    held = [fault(moment, victim) for moment in chain.values()]
    limits = {"supervision__deaths": 99, "supervision__without_progress": 99}
    result: Result = launch_tiny(restarting=True, faults=held, **limits)
    past = read_past(launch_tiny.run_dir)
    assert [list(one.actors) for one in result.recoveries] == [[victim]] * past.restarts
    assert past.restarts in (len(chain), len(chain) - ("at the end" in chain))
    taken_back = [recovery for recovery in result.recoveries if not recovery.alone]
    assert (past.generation, result.resumes, result.rollbacks) == (1 + len(taken_back), 0, 0)
    return result


def fault(moment: Moment, victim: str) -> dict[str, Any]:
    """What holds a phase open: an actor's process is stopped; a delay of the conductor, which is this process, lasts
    until `killing` has done.
    """
    when = moment.own if moment.own is not None and moment.point.startswith(f"{victim}.") else moment.when
    return {"point": moment.point, **when, "fault": "delay" if moment.point.startswith("conductor.") else "stop"}


@contextmanager
def killing(
    victim: str, run_dir: Path, times: int, crews: list[RayCrew], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Kill an actor each time that a fault holds a process; then let that one go on."""
    over, done, wrong = threading.Event(), threading.Semaphore(0), list[str]()
    monkeypatch.setattr(acts, "time", SimpleNamespace(sleep=lambda _: done.acquire()))

    def strike() -> None:
        for number in range(times):
            while len(firings := Firings(faults_file(run_dir, 1)).all()) <= number:
                if over.wait(0.002):
                    wrong.append(f"only {number} of {times} faults fired before the run was over")
                    return
            wrong.extend(_strike(crews[0].remotes[victim].pid, firings[number]))
            if firings[number].fault is Fault.DELAY:
                done.release()

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
    wrong = []
    until(lambda: firing.fault is not Fault.STOP or _is_stopped(firing.pid))
    if not is_alive(target):
        wrong.append(f"{firing.point}: the victim is dead already")
    else:
        os.kill(target, signal.SIGKILL)
    until(lambda: not is_alive(target))
    if firing.fault is Fault.STOP and firing.pid != target:
        os.kill(firing.pid, signal.SIGCONT)
    return wrong


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
