"""Both tiers of rollback take every component back to the last fence, to the bit, across whatever was grafted since."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from damage import flip
from no_inbox import NoInbox

from esper.archive.history import read_past
from esper.archive.journal import FIRST_GENERATION, Journal, RecordKind, read
from esper.archive.recovery_record import Lost
from esper.archive.run_directory import checkpoints_folder, reports_folder
from esper.config.joined import RunConfig
from esper.errors import (
    ActorLost,
    CommandRejected,
    DependencyViolationError,
    EsperError,
    RestoreImpossible,
    RollbackDeadlineExceeded,
)
from esper.flow.checkpoints import Checkpoints
from esper.flow.crew import Components, OneProcess
from esper.flow.going_back import Tier
from esper.flow.identifying import identify
from esper.flow.line import Line
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.stopping import Drain
from esper.ground.clock import SystemClock
from esper.leyline.ids import new_run_id
from esper.leyline.stages import LIVE
from esper.setup.assembly import RunKey, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.setup.survey import survey_of
from esper.tamiyo.field_reports import FieldReportStore
from esper.testing import tiny_config, tiny_task
from esper.tolaria.snapshot import HostSnapshot
from esper.user_code.task_reference import Reference

LAST = 16


@contextmanager
def line_of(path: Path, config: RunConfig) -> Iterator[Line]:
    """A run of the tiny task in this process, to be led round by round."""
    survey, key = survey_of(tiny_task(), config), RunKey(new_run_id(), FIRST_GENERATION, bytes(32))
    checkpoints_folder(path).mkdir(parents=True)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(path, FIRST_GENERATION))
        identity = identify(survey, key.run_id, FIRST_GENERATION, Reference(), SystemClock().now(), "of the test")
        identity.save(path)
        journal.write(RecordKind.RUN_STARTED, identity)
        store = stack.enter_context(closing(FieldReportStore(reports_folder(path))))
        kept = stack.enter_context(closing(Checkpoints(checkpoints_folder(path), journal, config.checkpoint)))
        components = Components(
            trainer=make_trainer(survey, key),
            tamiyo=make_tamiyo(survey, key, SystemClock()),
            kasmina=make_kasmina(survey, key, SystemClock()),
            incubator=make_incubator(survey, key),
            inbox=NoInbox(),
            crew=OneProcess(),
        )
        yield Line(components, journal, store, kept, survey.fence_steps, True, Quiet(), Drain())


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with line_of(tmp_path / "run", tiny_config()) as line:
        yield line


def fences(test: Sequence[int | None], check: Sequence[int | None], torture: Sequence[int]) -> list[Any]:
    """At which fences a test is made, by what makes it."""
    return [
        *test,
        *(pytest.param(fence, marks=pytest.mark.slow) for fence in check),
        *(pytest.param(fence, marks=pytest.mark.torture) for fence in torture),
    ]


def to_the_end(line: Line) -> str:
    while line.passed < line.last:
        line.round()
    line.checkpoints.settle()
    return line.components.trainer.weights_sha256()


def stray(line: Line) -> None:
    """Half a round that is to be taken back."""
    line.components.trainer.run_round(line.passed + 1, line.fence_steps[line.passed] + 7)


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("fence", fences([6], [0, LAST - 1], [1, 3, 10]))
def test_a_run_taken_back_in_a_round_ends_as_one_that_was_not(
    line: Line, undisturbed: Result, tier: Tier, fence: int
) -> None:
    line.begin()
    while line.passed < fence:
        line.round()
    before = line.components.trainer.weights_sha256()
    stray(line)
    assert line.components.trainer.weights_sha256() != before
    line.back.roll_back(tier)
    assert (line.passed, line.components.trainer.weights_sha256()) == (fence, before)
    assert to_the_end(line) == undisturbed.weights_sha256
    assert line.components.incubator.twin_report().weights_sha256 == undisturbed.twin_weights_sha256
    assert line.tally.rollbacks == 1


@pytest.mark.slow
def test_both_tiers_in_one_run_and_one_after_the_other_give_the_same_bits(
    line: Line, undisturbed: Result, told: Callable[[], list[str]]
) -> None:
    line.begin()
    for tier in (Tier.FAST, Tier.FULL, Tier.FULL, Tier.FAST, Tier.FAST):
        line.round()
        line.round()
        stray(line)
        line.back.roll_back(tier)
    assert to_the_end(line) == undisturbed.weights_sha256
    assert line.tally.rollbacks == 5
    assert line.journal.generation == 6
    assert (told().count("rollback_fast"), told().count("rollback_full")) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("tier", Tier)
def test_fences_without_a_checkpoint_are_done_again_with_all_that_was_grafted_at_them(
    tmp_path: Path, undisturbed: Result, tier: Tier
) -> None:
    """From a host with other seeds than the one that was kept: grown since, or culled since."""
    with line_of(tmp_path / "run", tiny_config(checkpoint__every_rounds=5)) as line:
        line.begin()
        kept = here = host_plans(line)
        while here == kept:
            line.round()
            here = host_plans(line)
            kept = here if line.passed % 5 == 0 else kept
        line.back.roll_back(tier)
        assert line.passed % 5 == 0
        assert [plan.seed_id for plan in host_plans(line)] == [plan.seed_id for plan in kept]
        assert to_the_end(line) == undisturbed.weights_sha256


def host_plans(line: Line) -> tuple[Any, ...]:
    snapshot: Any = line.components.trainer.snapshot()
    plans: tuple[Any, ...] = snapshot.topology
    return plans


def test_what_is_taken_back_stays_in_the_old_journal_and_does_not_count(line: Line, tmp_path: Path) -> None:
    line.begin()
    line.round()
    line.round()
    line.back.roll_back(Tier.FAST)
    line.round()
    line.checkpoints.settle()
    past = read_past(tmp_path / "run")
    assert past.generation == 2
    assert [e.body["fence"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED] == [1, 2, 3]
    (taken_over,) = [e.body for e in past.entries if e.kind is RecordKind.SUPERSEDED]
    assert (taken_over["from_fence"], taken_over["generation"]) == (2, 2)
    (restored,) = [e.body for e in past.entries if e.kind is RecordKind.RESTORED]
    assert restored["seconds"] > 0
    assert {written.generation for written in past.commits if written.fence == 3} == {2}


def test_a_plan_and_a_command_of_before_are_refused_afterwards(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.begin()
    sent: list[Any] = []
    receive = line.components.kasmina.receive

    def received(command: Any, fence: int) -> Any:
        sent.append(command)
        return receive(command, fence)

    monkeypatch.setattr(line.components.kasmina, "receive", received)
    while not any(seed.stage in LIVE for seed in line.view.seeds):
        line.round()
    plan, snapshot = host_plans(line)[-1], line.components.trainer.snapshot()
    line.back.roll_back(Tier.FAST)
    with pytest.raises(DependencyViolationError, match="generation"):
        line.components.trainer.apply(plan, snapshot.weights)
    with pytest.raises(CommandRejected):
        line.components.kasmina.receive(sent[-1], line.passed)


def test_a_rollback_over_its_budget_says_so_and_has_restored_everything(tmp_path: Path, undisturbed: Result) -> None:
    with line_of(tmp_path / "run", tiny_config(checkpoint__fast_rollback_s=1e-6)) as line:
        line.begin()
        line.hold(1, line.train(1))
        with pytest.raises(RollbackDeadlineExceeded, match="the fast rollback took 0"):
            line.back.roll_back(Tier.FAST)
        assert to_the_end(line) == undisturbed.weights_sha256


def test_there_is_nothing_to_go_back_to_before_the_first_fence(line: Line) -> None:
    with pytest.raises(RestoreImpossible, match=r"memory: .*trainer"):
        line.back.roll_back(Tier.FAST)
    line.back.keep_beginning()
    with pytest.raises(RestoreImpossible, match="no checkpoint was made yet"):
        line.back.roll_back(Tier.FAST)


def test_a_full_rollback_puts_a_damaged_checkpoint_aside(line: Line, undisturbed: Result, tmp_path: Path) -> None:
    line.begin()
    line.round()
    line.round()
    line.checkpoints.settle()
    flip(checkpoints_folder(tmp_path / "run") / line.checkpoints.committed[-1].file)
    line.back.roll_back(Tier.FULL)
    assert line.passed == 1
    line.back.roll_back(Tier.FAST)  # to where the full one went, and not forward again
    assert line.passed == 1
    assert to_the_end(line) == undisturbed.weights_sha256
    assert read(tmp_path / "run" / "journal-2.log")[0][0].kind is RecordKind.SUPERSEDED


# -- after a death -----------------------------------------------------------------------------------------------


def dies(line: Line, name: str, role: str) -> None:
    """Recover as if an actor had died; of the trainer, there is a new one then, which knows nothing."""

    class Mortal(OneProcess):
        def lost(self, error: EsperError, fence: int | None) -> Lost:
            del error, fence
            return Lost({name: role}, None)

        def revive(self, generation: int) -> None:
            if role == "tolaria":
                key = RunKey(line.components.kasmina.view(0).run_id, generation, bytes(32))
                line.components.trainer = make_trainer(survey_of(tiny_task(), tiny_config()), key)

    line.components.crew = Mortal()
    line.back.recover(ActorLost(role, "gone"))


@pytest.mark.parametrize(
    ("name", "role"), [("tolaria", "tolaria"), pytest.param("manager-0", "kasmina", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fence", fences([6], [None, LAST], [0, 1, 10]))
def test_a_run_that_lost_an_actor_goes_back_to_its_last_fence_and_ends_the_same(
    line: Line, undisturbed: Result, name: str, role: str, fence: int | None
) -> None:
    if fence is None:
        line.back.keep_beginning()
    else:
        line.begin()
        while line.passed < fence:
            line.round()
        if fence < LAST:
            stray(line)
    dies(line, name, role)
    (recovery,) = line.deaths.recoveries
    assert recovery.from_memory is (role != "tolaria")
    assert recovery.fence == fence
    dies(line, name, role)  # again, before it has done anything
    line.begin()
    assert to_the_end(line) == undisturbed.weights_sha256
    if fence != LAST:
        assert [one.first_step_s is not None for one in line.deaths.recoveries] == [False, True]
    if line.view.has_twin:
        assert line.components.incubator.twin_report().weights_sha256 == undisturbed.twin_weights_sha256
    assert (line.tally.rollbacks, line.journal.generation) == (0, 3)


def dead(*_: object) -> None:
    raise ActorLost("any", "it died too")


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(("tolaria", "tolaria"), id="tolaria"),
        pytest.param(("manager-0", "kasmina"), id="manager", marks=pytest.mark.torture),
    ],
)
@pytest.mark.parametrize(
    "who",
    [
        "trainer",
        pytest.param("incubator", marks=pytest.mark.slow),
        *(pytest.param(who, marks=pytest.mark.torture) for who in ("kasmina", "tamiyo")),
    ],
)
def test_a_death_that_breaks_a_recovery_off_is_told_beside_the_one_that_it_broke_off(
    line: Line,
    undisturbed: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: tuple[str, str],
    who: str,
) -> None:
    line.begin()
    while line.passed < 6:
        line.round()
    stray(line)
    second, method = (who, who), "restore"
    if who == "trainer":
        second, method = ("tolaria", "tolaria"), {"tolaria": "copy_state", "manager-0": "roll_back"}[first[0]]
    with monkeypatch.context() as patch:
        patch.setattr(type(getattr(line.components, who)), method, dead)
        with pytest.raises(ActorLost):
            dies(line, *first)
    assert line.deaths.recoveries == []
    dies(line, *second)
    assert to_the_end(line) == undisturbed.weights_sha256
    assert [(one.actors, one.restore_s is None) for one in line.deaths.recoveries] == [
        ((first[0],), True),
        ((second[0],), False),
    ]
    assert line.deaths.recoveries[0].first_step_s is None
    assert line.deaths.recoveries[1].first_step_s is not None
    assert (line.deaths.restarts, read_past(tmp_path / "run").restarts) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role"), [("tolaria", "tolaria"), ("manager-0", "kasmina")])
def test_a_death_before_anything_was_kept_begins_the_run_anew(
    line: Line, undisturbed: Result, name: str, role: str
) -> None:
    dies(line, name, role)
    line.begin()
    assert to_the_end(line) == undisturbed.weights_sha256
    assert [(one.fence, one.from_memory) for one in line.deaths.recoveries] == [(None, False)]


def test_what_was_taken_back_is_counted_also_after_a_death_and_nothing_else_is(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.begin()
    line.round()
    stray(line)
    line.back.roll_back(Tier.FAST)
    stray(line)
    dies(line, "manager-0", "kasmina")
    line.round()
    line.back.roll_back(Tier.FULL)
    monkeypatch.setattr(line.deaths, "tell", lambda: None)  # killed before it could
    dies(line, "manager-0", "kasmina")
    assert (line.tally.rollbacks, read_past(tmp_path / "run").rollbacks) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("breaks", ["revive", "restore"])
def test_a_death_on_the_way_back_to_an_older_fence_does_not_bring_the_later_one_back(
    line: Line, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    line.begin()
    while line.passed < 6:
        line.round()
    with monkeypatch.context() as patch:
        broken = line.components.crew if breaks == "revive" else line.components.kasmina
        patch.setattr(type(broken), breaks, dead)
        with pytest.raises(ActorLost):
            line.back.roll_back(Tier.FULL, 5)
    dies(line, "manager-0", "kasmina")
    assert (line.passed, line.tally.rollbacks) == (5, 1)
    assert to_the_end(line) == undisturbed.weights_sha256
    past = read_past(tmp_path / "run")
    assert [e.body["fence"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED] == list(range(1, LAST + 1))


@pytest.mark.slow
def test_two_copies_of_a_host_are_held_beside_what_is_alive_and_one_for_a_tournament(line: Line) -> None:
    def snapshots() -> int:
        gc.collect()
        return sum(type(one) is HostSnapshot for one in gc.get_objects())

    gc.freeze()  # what there is already is looked at no more, which would take most of the time
    try:
        others, held = snapshots(), []
        line.begin()
        while line.passed < LAST:
            line.round()
            line.checkpoints.settle()
            pending = line.view.incubating
            held.append(snapshots() - others - pending)
    finally:
        gc.unfreeze()
    assert max(held) == 2  # what the trainer keeps, and the twin's
