"""What people see: a newcomer can follow a run from it, on a terminal and in a file."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from deciding import make_state
from growing import THREE
from rich.console import Console

from esper import InProcess, run
from esper.archive.recovery_record import Lost, Stopwatch
from esper.cli.terminal import COLOURS, Terminal, heading, results, standing
from esper.config.joined import RunConfig
from esper.errors import PolicyFailed, TrainerRankLost
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.leyline.finish import EndLosses, Finish
from esper.leyline.incubation import Answer
from esper.leyline.reports import Check, Gate, GateReport, PlaceboBasis, Transition
from esper.leyline.stages import IN_HOST, Stage
from esper.leyline.state import RoundState, SeedState
from esper.setup.growth_log import GrowthLog
from esper.setup.survey import survey_of
from esper.setup.verdicts import in_words, verdict_of
from esper.setup.wording import choice
from esper.testing import ScriptedPolicy, tiny_config, tiny_task


def console(*, terminal: bool = False, width: int = 140) -> Console:
    return Console(record=True, force_terminal=terminal, width=width, file=io.StringIO())


@dataclass(frozen=True)
class Seen:
    result: Result
    text: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines()]

    def said(self, start: str, part: str) -> bool:
        return any(line.startswith(start) and part in line for line in self.lines)


def watch(path: Path, shown: Console, **overrides: object) -> Seen:
    terminal = Terminal(shown, live=shown.is_terminal)
    result = run(tiny_task(), tiny_config(run__dir=str(path), **THREE, **overrides), progress=terminal)
    return Seen(result, shown.export_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return watch(tmp_path_factory.mktemp("plain") / "run", console())


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return watch(tmp_path_factory.mktemp("live") / "run", console(terminal=True))


# -- plain lines -------------------------------------------------------------------------------------------------


def test_every_round_is_one_line_with_step_loss_speed_and_size(plain: Seen) -> None:
    rounds = [line for line in plain.lines if "/16  step" in line]
    assert [line.split()[1] for line in rounds] == [f"{n}/16" for n in range(1, 17)]
    for word in ("step 20/320", "loss 1.", "steps/s", "108 parameters"):
        assert word in rounds[0]


def test_the_speed_in_a_line_is_that_of_its_round() -> None:
    shown, tally = console(), Tally()
    terminal = Terminal(shown, live=False)
    for steps, seconds in ((20, 0.1), (40, 1.1)):
        tally.steps, tally.training_s = steps, seconds
        terminal.fence(make_state(), tally)
    first, second = shown.export_text().splitlines()
    assert "200 steps/s" in first
    assert "20 steps/s" in second


def test_the_stage_of_every_seed_in_the_host_is_in_the_line_of_its_slot(plain: Seen) -> None:
    rounds = [line for line in plain.lines if "/16  step" in line]
    assert rounds[1].endswith("body: mlp BLENDING alpha 0.00")
    assert rounds[2].endswith("body: mlp BLENDING alpha 0.67, BLENDING alpha 0.00")
    assert rounds[-1].endswith("body: mlp FOSSILIZED x2")


def test_what_happens_to_a_seed_is_told_with_the_figure_that_decided(plain: Seen) -> None:
    assert plain.said("round  1", "3 candidates incubate in copies of the network, beside a control")
    figures = "gain 16.94% (margin 0.20%), z 8.078 (limit 3.715)"
    assert plain.said("round  2", f"mlp at body beat its control: {figures}; grafted")
    assert plain.said("G2", f"mlp at body accepted: {figures}")
    assert plain.said("round  2", "a replica of mlp at body incubates")
    assert plain.said("round  3", "mlp at body is not shown harmful (z 6.088, needs at least -3)")
    assert plain.said("round  4", "not accepted by G2: no improvement: gain -2.67% (margin 0.20%), z -0.625 (limit")
    assert plain.said("round  7", "stays: FOSSILIZED, the network is ahead of its twin (z ")


def test_what_happens_fits_one_line_of_a_terminal(plain: Seen) -> None:
    assert max(len(line) for line in plain.lines if line.startswith("round") and "/16" not in line) <= 120


def test_a_loss_that_depends_on_the_batch_is_told_at_the_start_and_beside_the_losses_at_the_end(
    plain: Seen, tmp_path: Path
) -> None:
    told, shown = "the loss of a sample depends on the other samples of its batch", console(width=400)
    terminal = Terminal(shown, live=False)
    terminal.started(replace(survey_of(tiny_task(), tiny_config()), loss_depends_on_batch=True), tmp_path / "run")
    terminal.ended(plain.result)
    lines = [line for line in shown.export_text().splitlines() if told in line]
    assert [line.startswith("these losses") for line in lines] == [False, True]
    assert told not in plain.text


def test_a_reason_to_hold_is_told_once(plain: Seen) -> None:
    holds = [line for line in plain.lines if "nothing new is tried" in line]
    assert len(holds) == len(set(holds)) == 2
    assert holds[1].endswith("could not be fossilised before the end")


def test_a_run_without_growth_says_so_and_needs_no_table_of_seeds(tmp_path: Path) -> None:
    seen = watch(tmp_path / "run", console(), growth__enabled=False, run__epochs=1)
    assert "no growth: the network trains alone" in seen.text
    assert "without growing" not in seen.text
    assert "blueprint" not in seen.text


# -- the live view -----------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_each_slot_and_what_is_going_on(live: Seen) -> None:
    for word in ("round  7/16", "━", "slot", "kind", "NC", "dormant", "incubating", "BLENDING alpha 0.67"):
        assert word in live.text
    assert "round 3: 20 steps" in live.text
    assert "round 3: incubating" in live.text


def test_the_live_view_is_left_as_the_last_round_stood_without_its_spinner(live: Seen) -> None:
    last = live.text[live.text.rindex("round 16/16") :]
    assert "mlp FOSSILIZED x2" in last
    assert "round 16: 20 steps" not in last


def test_the_live_view_is_closed_after_a_failure(tmp_path: Path) -> None:
    output = io.StringIO()
    terminal = Terminal(Console(force_terminal=True, width=140, file=output), live=True)
    with pytest.raises(PolicyFailed):
        run(
            tiny_task(),
            tiny_config(run__dir=str(tmp_path / "run")),
            on=InProcess(policy=ScriptedPolicy(ValueError())),
            progress=terminal,
        )
    terminal.close()
    terminal.close()  # a second time does nothing
    assert terminal.path == tmp_path / "run"
    assert output.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_what_is_shown_changes_no_bit(plain: Seen, live: Seen) -> None:
    assert plain.result.weights_sha256 == live.result.weights_sha256


# -- beginning and end -------------------------------------------------------------------------------------------


def test_the_heading_says_what_will_be_run_and_how_strict_it_is() -> None:
    text = "\n".join(heading(survey_of(tiny_task(), tiny_config(run__seed=3, **THREE)), Path("runs/x")))
    for word in (
        "run runs/x",
        "108 parameters; 320 steps of 32 samples in 16 rounds; seed 3, 1 thread, cpu",
        "train 1,024, valid 64, test 512, pick 256, gate 256",
        "slot body: NC (8,)",
        "3 candidates; a seed must beat its control by 0.2% of the loss and z > 3.71 on 256 samples",
        "FOSSILIZED (stays)",
    ):
        assert word in text
    assert "causal" not in text  # it has no meaning where there are no positions
    assert "train on" not in text


@pytest.mark.parametrize(
    ("entry", "finish", "said"),
    [
        ("adopt", "better", "with the better of network and twin, by the losses on pick and gate"),
        ("adopt", "live", "with the grown network, even if it is worse than its twin (growth.finish=live)"),
        ("graft", "live", None),  # G4 removes seeds behind the twin
    ],
)
def test_the_heading_says_with_which_network_the_run_ends(entry: str, finish: str, said: str | None) -> None:
    lines = heading(survey_of(tiny_task(), tiny_config(growth__entry=entry, growth__finish=finish)), None)
    ends = [line for line in lines if "the run ends" in line]
    assert ends == ([f"  the run ends {said}"] if said else [])


def test_the_heading_counts_the_candidates_that_a_run_can_try() -> None:
    config = tiny_config(growth__cost_budget=2.0, growth__memory_budget=2.0, **THREE)
    text = "\n".join(heading(survey_of(tiny_task(), config), None))
    assert "\n  2 candidates; a seed must" in text  # one of the three exceeds two budgets
    assert "\n  left out, over growth.cost_budget: mlp at body" in text


@pytest.mark.parametrize(
    ("epochs", "max_looks", "said"),
    [
        (10, 2, "  no refused candidate trains on: the run is too short for a later look (growth.beside)"),
        (11, 2, "are judged again once, with z > {z}; the run is too short for growth.max_looks = 2"),
        (20, 2, "are judged again up to 2 times, with z > {z}"),
        (20, 0, None),
    ],
)
def test_the_heading_says_how_often_refused_candidates_are_judged_again(
    epochs: int, max_looks: int, said: str | None
) -> None:
    settings = {"growth.beside": 2, "growth.max_looks": max_looks, "run.epochs": epochs, "run.round_steps": 20}
    survey = survey_of(tiny_task(), RunConfig(**settings))
    told = [line for line in heading(survey, None) if "train on" in line or "trains on" in line]
    assert len(told) == (said is not None)
    assert not told or told[0].endswith((said or "").format(z=f"{survey.g2_limit(look=True):.2f}"))


@pytest.mark.parametrize("width", [80, 140])
def test_the_results_fit_a_terminal_and_say_what_growing_came_to(plain: Seen, width: int) -> None:
    shown = console(width=width)
    shown.print(results(plain.result))
    text = shown.export_text()
    result = plain.result
    assert result.twin_test_loss is not None
    less = 1 - result.test_loss / result.twin_test_loss
    for word in (
        "5 seeds were tried, 2 are in the network",
        "FOSSILIZED   +16.94%   +8.1   568",
        "not kept     -2.67%    -0.6   568",
        f"{result.start_test_loss:.4f} -> {result.test_loss:.4f}",
        f"{result.twin_test_loss:.4f} (the twin); growing made it {less:.1%} better",
        "108 -> 1,244",
        "320, ",
        "trainer 0.0",
        "waited",
        result.weights_sha256[:16],
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= width
    assert next(line for line in text.splitlines() if "replica" in line).count("568") == 1  # no row is broken


@pytest.mark.parametrize(("gain", "told"), [(-0.0021, True), (0.0021, False)])
def test_a_replica_that_was_kept_beside_a_better_control_has_a_word_beside_the_table(
    undisturbed: Result, gain: float, told: bool
) -> None:
    first = next(one for one in undisturbed.seeds if one.stage == "FOSSILIZED")
    copy = first.model_copy(update={"replica_of": first.seed_id, "gain": gain, "z": -1.7})
    console = Console(width=120)
    with console.capture() as shown:
        console.print(results(undisturbed.model_copy(update={"seeds": (first, copy)})))
    assert ("a replica need not beat its control" in " ".join(shown.get().split())) is told


def seed(stage: Stage, *, blueprint: str = "mlp", alpha: float | None = 1.0) -> SeedState:
    return SeedState(
        seed_id=f"{blueprint}-{stage}",
        slot="body",
        blueprint_id=blueprint,
        ordinal=0,
        stage=stage,
        alpha=alpha,
        since_fence=1,
        due=False,
        command_id="c",
        replica_of=None,
        required_mesh=(),
        parameters=1,
        gain=None,
        z=None,
    )


def test_seeds_that_stand_alike_are_counted_and_those_outside_the_host_left_out() -> None:
    stack = [seed(Stage.FOSSILIZED), seed(Stage.FOSSILIZED), seed(Stage.BLENDING, alpha=0.5), seed(Stage.CULLED)]
    assert standing([*stack, seed(Stage.SHADOWING, blueprint="norm")]).plain == (
        "mlp FOSSILIZED x2, BLENDING alpha 0.50, norm SHADOWING"
    )
    assert standing([]).plain == ""


def test_every_stage_in_the_host_has_a_colour() -> None:
    assert set(IN_HOST) <= COLOURS.keys()


def told(
    after: Stage, before: Stage, gate: GateReport | None = None, cause: str = "G2", *, replica: bool = False
) -> str:
    """What is said as a seed moves."""
    ids = {"seed_id": "s", "slot": "body", "blueprint_id": "mlp", "command_id": "c"}
    step = Transition(before=before, after=after, fence=9, cause=cause, **ids)
    shown = console()
    terminal = Terminal(shown)
    own = seed(before).model_copy(update={"seed_id": "s", "replica_of": "t" if replica else None})
    terminal.fence(RoundState.model_construct(fence=0, seeds=(own,)), Tally())
    terminal.answer(Answer(transitions=(step,), gates=() if gate is None else (gate,)))
    return shown.export_text().strip()


def report(gate: Gate, *checks: Check) -> GateReport:
    return GateReport(gate=gate, seed_id="s", fence=9, checks=checks)


def test_a_seed_taken_out_of_the_network_is_told_with_the_figure_that_failed() -> None:
    worse = Check(name="twin_z", reason="worse_than_twin", measured=-4.2, at_least=-3.0)
    fine = Check(name="cost_ratio", reason="cost_exceeded", measured=0.5, at_most=1.0)
    assert told(Stage.CULLED, Stage.SHADOWING, report(Gate.G4, fine, worse), "G4") == (
        "round  9  mlp at body was taken out of the network by G4: worse than twin (z -4.2, needs at least -3)"
    )


def of_g2(gain: float, z: float, *others: Check) -> GateReport:
    basis = PlaceboBasis(count=8, mean=-0.01, rms=0.005, factor=4.0, tests=48)
    return report(
        Gate.G2,
        Check(name="rank", reason="outperformed", measured=1, at_most=1),
        *others,
        Check(name="z", reason="no_improvement", measured=z, above=1.96),
        Check(name="relative_gain", reason="no_improvement", measured=gain, above=0.005),
        Check(name="gain_over_placebos", reason="within_placebo", measured=gain, above=basis.limit, placebos=basis),
    )


def test_g2_is_told_with_all_its_figures_and_a_refusal_with_all_its_reasons() -> None:
    shown = told(Stage.BLENDING, Stage.TRAINING, of_g2(0.021, 2.5))
    assert "beat its control: gain 2.10% (margin 0.50%, limit of 8 placebos 2.00%), z 2.5 (limit 1.96); graft" in shown
    unstable = Check(name="loss_variation", reason="unstable", measured=0.7, at_most=0.5)
    assert told(Stage.CULLED, Stage.TRAINING, of_g2(0.0199999, 1.9, unstable)).endswith(
        "came first, not accepted by G2: unstable (loss_variation 0.7, needs at most 0.5), no improvement, within"
        " placebo: gain 1.99999% (margin 0.50000%, limit of 8 placebos 2.00000%), z 1.9 (limit 1.96)"
    )
    log = GrowthLog().judged(of_g2(0.01, 2.5, unstable))
    assert [one.reason for one in log.refusals] == ["unstable", "within_placebo"]
    beyond = PlaceboBasis(count=8, mean=-0.2, rms=0.3, factor=5.0, tests=48)
    check = Check(name="gain_over_placebos", reason="within_placebo", measured=0.6, above=beyond.limit, placebos=beyond)
    others = [one for one in of_g2(0.6, 2.5).checks if one.name != check.name]
    spread = verdict_of(report(Gate.G2, *others, check))
    assert spread is not None
    assert "limit of 8 placebos 150.00%: no seed can pass, unless the loss can be negative)" in in_words(spread)
    replica = verdict_of(of_g2(0.03, 2.5, Check(name="own_z", reason="harmful", measured=-3.5, at_least=-3)))
    assert replica is not None
    assert in_words(replica).startswith("not accepted, harmful: its winner's gain 3.00% (")
    assert in_words(replica).endswith("z 2.5 (limit 1.96), own z -3.5 (at least -3)")


def test_a_seed_that_goes_with_another_is_told_too() -> None:
    assert told(Stage.CULLED, Stage.BLENDING, cause="G4") == (
        "round  9  mlp at body was taken out of the network by G4: with the seed that failed"
    )


def test_no_word_says_more_than_the_figure_where_a_seed_is_let_in_with_a_worse_loss() -> None:
    own = Check(name="own_z", reason="harmful", measured=-2.7, at_least=-3.0)
    copied = told(Stage.BLENDING, Stage.TRAINING, report(Gate.G2, own), replica=True)
    assert "mlp at body is not shown harmful (z -2.7, needs at least -3): grafted" in copied
    behind = Check(name="twin_z", reason="worse_than_twin", measured=-1.2, at_least=-3.0)
    assert told(Stage.FOSSILIZED, Stage.PROBATIONARY, report(Gate.G4, behind)).endswith(
        "stays: FOSSILIZED, the network is behind its twin, by less than the limit (z -1.2, needs at least -3)"
    )


def test_a_seed_whose_fork_becomes_the_network_is_told_so_and_the_heading_says_how_the_run_ends() -> None:
    own = Check(name="own_z", reason="harmful", measured=-2.7, at_least=-3.0)
    same = Check(name="host_changes", reason="host_changed", measured=0, at_most=0)
    shown = told(Stage.BLENDING, Stage.TRAINING, report(Gate.G2, own, same), replica=True)
    assert shown.endswith("(z -2.7, needs at least -3): adopted, its fork becomes the network")
    lines = heading(survey_of(tiny_task(), tiny_config(growth__entry="adopt", growth__finish="better")), None)
    assert [line.split()[:5] for line in lines[-2:]] == [
        *(["an", "accepted", "seed", "is", "adopted:"], ["the", "run", "ends", "with", "the"]),
    ]


def test_the_network_that_a_run_chose_is_told_with_both_losses() -> None:
    live, twin = (EndLosses(pick=loss, gate=loss, mean=loss, weights_sha256="") for loss in (1.25, 1.0))
    ends = Finish(fence=9, network="twin", why="its mean loss is lower", live=live, twin=twin)
    assert choice(ends) == (
        "the twin, because its mean loss is lower (live host 1.2500 pick, 1.2500 gate; twin 1.0000 pick, 1.0000 gate)"
    )


def test_the_results_of_a_run_that_growing_made_worse_say_so(plain: Seen) -> None:
    shown = console()
    shown.print(results(plain.result.model_copy(update={"test_loss": 1.058, "twin_test_loss": 1.0})))
    assert "1.0000 (the twin); growing made it 5.8% worse" in shown.export_text()


def test_one_of_many_that_lost_its_tournament_is_not_worth_a_line() -> None:
    lost = Check(name="rank", reason="outperformed", measured=2, at_most=1.0)
    assert told(Stage.CULLED, Stage.TRAINING, report(Gate.G2, lost)) == ""


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False, run__epochs=1)
    run(tiny_task(), config, progress=Quiet())
    assert capsys.readouterr() == ("", "")


def test_what_is_declared_of_failures_and_every_recovery_is_told(plain: Seen, tmp_path: Path) -> None:
    config = tiny_config(failure_policy__FaultInjected="restart")
    assert "  failure_policy.FaultInjected = restart" in heading(survey_of(tiny_task(), config), None)
    death = Stopwatch(TrainerRankLost("tolaria", "gone"))
    for phase in ("decide", "stop", "start", "restore"):
        death.lap(phase)
    recovery = death.recovery(Lost({"tolaria": "tolaria"}, None), 3, 2, from_memory=False)
    result = plain.result.model_copy(
        update={
            "recoveries": (recovery.model_copy(update={"start_s": 2.5, "first_step_s": 0.7}),),
            "run_dir": str(tmp_path),
        }
    )
    (tmp_path / "checkpoints" / "quarantine").mkdir(parents=True)
    (tmp_path / "checkpoints" / "quarantine" / "fence-4-g1.pt").touch()
    shown = console()
    shown.print(results(result))
    text = shown.export_text()
    assert "tolaria (TrainerRankLost), 3.2 s until the next good step" in text
    assert "fence-4-g1.pt: did not load" in text


def test_a_figure_that_is_not_finite_is_said_in_every_place(plain: Seen, tmp_path: Path) -> None:
    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    figures = {"test_metrics": {"a.b": float("nan"), "c": 0.5}, "valid_loss": float("-inf")}
    result = plain.result.model_copy(update=figures)
    shown = console()
    shown.print(results(result))
    assert "test a.b is nan: a division by 0" in shown.export_text(clear=False)
    assert "valid loss is -inf" in shown.export_text()

    result.save(tmp_path)
    told = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refused)
    assert told["not_finite"] == {"test_metrics": {"a.b": "nan"}, "valid_loss": "-inf"}
    assert told["test_metrics"] == {"a.b": None, "c": 0.5}

    plain.result.save(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == plain.result.as_json()
    journal = json.loads(json.dumps(result.as_json()))  # as the journal writes and reads it
    assert math.isnan(Result.model_validate_json(json.dumps(journal)).test_metrics["a.b"])


def test_the_time_and_the_wait_are_those_of_the_whole_run_also_after_a_resume(plain: Seen) -> None:
    result, whole_s = plain.result, 21.0
    assert (result.training_s or 0) > 0
    assert result.fence_wait_s <= (result.fences_s or 0)
    seconds = {"training_s": 4.0, "fences_s": whole_s - 4.0, "fence_wait_s": 15.0, "wall_s": 6.5, "resumes": 1}
    shown = console(width=200)
    shown.print(results(result.model_copy(update=seconds)))
    shown.print(results(result.model_copy(update=seconds | {"training_s": None, "fences_s": None})))
    said = shown.export_text()
    assert "21.0 s of rounds and fences, of which the trainer waited 15.0 s; the last process: 6.5 s" in said
    assert "in the whole run the trainer waited 15.0 s; the last process: 6.5 s" in said  # an older version
