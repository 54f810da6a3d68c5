"""The terminal view of a run: heading, live progress, and the table of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from esper.archive.recovery_record import Recovery
from esper.archive.run_directory import quarantined
from esper.archive.summary import SeedFate, Summary
from esper.cli.console import can_redraw
from esper.cli.plan_view import companions, no_effect, out_of_preset
from esper.cli.tables import cells, grid, table
from esper.flow.tally import Tally
from esper.ground import parent, workplace
from esper.ground.suggest import listed
from esper.leyline.decisions import Hold
from esper.leyline.incubation import Answer, IncubationOrder
from esper.leyline.reports import Check, GateReport, Transition
from esper.leyline.stages import IN_HOST, LIVE, Stage
from esper.leyline.state import RoundState, SeedState
from esper.setup.candidates import left_out_by_budgets
from esper.setup.forecast import batch_facts
from esper.setup.survey import Survey
from esper.setup.verdicts import figures, in_words, refusal, verdict_of
from esper.setup.wording import (
    a_second,
    beside_limit,
    beside_twin,
    choice,
    gain_and_z,
    growing,
    number,
    percent,
)

COLOURS = {
    Stage.TRAINING: "cyan",
    Stage.BLENDING: "yellow",
    Stage.SHADOWING: "magenta",
    Stage.PROBATIONARY: "blue",
    Stage.FOSSILIZED: "green",
    Stage.TERMINATED: "red",
}


class Terminal:
    """A live view on a terminal. If the output is not a terminal, it prints plain lines."""

    def __init__(self, console: Console, *, live: bool | None = None) -> None:
        self._console = console
        self._wants_live = can_redraw(console) if live is None else live
        self._live: Live | None = None
        self._fences = 0
        self._view: tuple[RenderableType, ...] = ()
        self._hold: Hold | None = None
        self._replicas: frozenset[str] = frozenset()
        self.path: Path | None = None
        """Directory of the run. None until it exists."""
        self._measured = 0, 0.0
        """Steps, and seconds of training, of the run up to the last round that was shown."""
        self._notes: list[str] = []
        """Notes on the losses of the run."""

    def started(self, survey: Survey, path: Path) -> None:
        """Print the heading, open the live view, and send the run's directory to the parent process."""
        parent.tell(run_dir=workplace.shown(path))
        self.path, self._fences = path, len(survey.fence_steps) - 1
        for line in heading(survey, path):
            self._console.print(line, soft_wrap=True)
        self._notes = companions(batch_facts(survey))
        for note in self._notes:
            self.found(note)
        if self._wants_live:
            self._live = Live(console=self._console, refresh_per_second=8)
            self._live.start()

    def found(self, what: str) -> None:
        """Print a finding, indented under the heading."""
        self._console.print(Text(f"  {what}"), soft_wrap=True)

    def working(self, what: str) -> None:
        """Show the current activity beside a spinner. Plain output does not show it."""
        if self._live is not None:
            self._live.update(Group(*self._view, Spinner("dots", Text(what, style="dim"))), refresh=True)

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Show the round, its loss, the speed, and each slot's seeds."""
        self._replicas = frozenset(seed.seed_id for seed in state.seeds if seed.replica_of is not None)
        begun = [s for s in state.seeds if s.stage is Stage.TRAINING and s.since_fence == state.fence]
        if begun:
            what = f"{len(begun)} candidates incubate" if len(begun) > 1 else f"{_name(begun[0])} incubates"
            copies = "copies of the network" if len(begun) > 1 else "a copy of the network"
            again = "a replica of " if begun[0].replica_of is not None else ""
            self._say(state.fence, f"{again}{what} in {copies}, beside a control")
        if self._live is not None:
            self._view = (self._bar(state, tally), _slots(state))
            self._live.update(Group(*self._view), refresh=True)
        elif state.fence:
            told = [Text(self._place(state), style="bold"), *self._figures(state, tally), *_rows(state)]
            self._console.print(Text("  ").join(told), soft_wrap=True)

    def hold(self, hold: Hold) -> None:
        """Print the reason why nothing germinates. Each reason is printed once."""
        if hold.fence and (self._hold is None or (hold.reason, hold.detail) != (self._hold.reason, self._hold.detail)):
            self._say(hold.fence, f"nothing new is tried: {hold.detail}")
        self._hold = hold

    def answer(self, answer: Answer) -> None:
        """Print the seeds that were grafted, adopted, fossilised, not accepted or culled from the host, with the
        measured values that decided.
        """
        if answer.order is not None:
            self._hold = None
            if answer.order.goes_on_from is not None:
                self._say(answer.gates[0].fence, _trains_on(answer.order, answer.gates[0]))
        told = {report.seed_id: report for report in answer.gates}
        for step in answer.transitions:
            text = _news(step, told.get(step.seed_id), replica=step.seed_id in self._replicas)
            if text:
                self._say(step.fence, f"{step.blueprint_id} at {step.slot} {text}")

    def ended(self, result: Summary) -> None:
        """Close the live view and print the table of results."""
        self.close()
        self._console.print("", results(result, self._notes), sep="\n")

    def close(self) -> None:
        """Close the live view, also after a failure."""
        if self._live is not None:
            self._live.update(Group(*self._view))
            self._live.stop()
            self._live = None

    def _say(self, fence: int, text: str) -> None:
        self._console.print(Text(f"round {fence:>2}  {text}", style="dim"), soft_wrap=True)

    def _place(self, state: RoundState) -> str:
        return f"round {state.fence:>2}/{self._fences}"

    def _pace(self, tally: Tally) -> float | None:
        """Return the steps per second of the last round. None: nothing was trained since the last call."""
        (steps, seconds), self._measured = self._measured, (tally.steps, tally.training_s)
        return (tally.steps - steps) / (tally.training_s - seconds) if tally.training_s > seconds else None

    def _figures(self, state: RoundState, tally: Tally) -> list[Text]:
        training, pace = state.training, self._pace(tally)
        figures = [f"step {training.step}/{training.total_steps}"]
        if training.train_loss is not None:
            figures.append(f"loss {number(training.train_loss)}")
        if pace is not None:
            figures.append(f"{a_second(pace)} steps/s")
        return [Text(figure) for figure in (*figures, f"{training.parameters:,} parameters")]

    def _bar(self, state: RoundState, tally: Tally) -> Table:
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._fences), completed=state.fence, width=20)
        row.add_row(Text(self._place(state), style="bold"), bar, *self._figures(state, tally))
        return row


def _slots(state: RoundState) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("slot", "kind", "seeds"):
        shown.add_column(header, overflow="fold")
    for slot in state.slots:
        seeds = [seed for seed in state.seeds if seed.slot == slot.spec.path]
        seeding = standing(seeds)
        if not seeding.plain:
            seeding.append("dormant", style="dim")
        trying = sum(seed.stage is Stage.TRAINING for seed in seeds)
        if trying:
            seeding.append(f"   {trying} incubating", style=COLOURS[Stage.TRAINING])
        shown.add_row(Text(slot.spec.path), str(slot.spec.kind), seeding)
    return shown


def _rows(state: RoundState) -> list[Text]:
    rows = [(slot.spec.path, standing([s for s in state.seeds if s.slot == slot.spec.path])) for slot in state.slots]
    return [Text(f"{path}: ").append_text(seeds) for path, seeds in rows if seeds.plain]


def standing(seeds: list[SeedState]) -> Text:
    """Return the seeds of one slot in the host, with blueprint, stage, number of equal seeds, and alpha during its
    ramp."""
    text, last = Text(), ""
    inside = [seed for seed in seeds if seed.stage in IN_HOST]
    for (blueprint, shown), alike in groupby(inside, key=lambda seed: (seed.blueprint_id, _stage(seed))):
        count = len(list(alike))
        text.append(", " if text.plain else "").append(f"{blueprint} " if blueprint != last else "")
        text.append(shown, style=COLOURS[Stage(shown.split()[0])])
        text.append(f" x{count}" if count > 1 else "")
        last = blueprint
    return text


def _stage(seed: SeedState) -> str:
    return (
        f"{seed.stage} alpha {seed.alpha:.2f}"
        if seed.stage is Stage.BLENDING and seed.alpha is not None
        else seed.stage
    )


def _name(seed: SeedState) -> str:
    return f"{seed.blueprint_id} at {seed.slot}"


def _trains_on(order: IncubationOrder, report: GateReport) -> str:
    """Return the message for refused candidates that train on."""
    names = listed(f"{plan.blueprint_id} at {plan.slot}" for plan in order.plans)
    again = f"{names} train on in copies, and are judged again in round {order.due_fence}"
    return f"not accepted yet: {refusal(report)}; {again}"


def _news(step: Transition, report: GateReport | None, *, replica: bool) -> str:
    """Return the message for a transition. The text is empty if the transition is not shown."""
    checks = {check.name: check for check in report.checks} if report is not None else {}
    if step.after is Stage.BLENDING:
        entered = "adopted, its fork becomes the network" if "host_changes" in checks else "grafted, alpha rises"
        if replica:
            return f"is not shown harmful ({beside_limit(checks['own_z'])}): {entered}"
        verdict = verdict_of(report) if report is not None else None
        assert verdict is not None, "G2 has judged a seed that enters the network"
        return f"beat its control: {figures(verdict)}; {entered}"
    if step.after is Stage.FOSSILIZED:
        return f"stays: FOSSILIZED{_twin(checks)}"
    lost_outright = step.before is Stage.TRAINING and ("rank" not in checks or not checks["rank"].passed)
    if step.after is not Stage.CULLED or step.before not in (Stage.TRAINING, *LIVE) or lost_outright:
        return ""
    why = refusal(report) if report is not None and not report.passed else "with the seed that failed"
    what = "came first, not accepted" if step.before is Stage.TRAINING else "was taken out of the network"
    return f"{what} by {step.cause}: {why}"


def _twin(checks: Mapping[str, Check]) -> str:
    if "twin_z" not in checks:
        return ""
    z = checks["twin_z"].measured
    assert isinstance(z, float)
    return f", {beside_twin(z)} ({beside_limit(checks['twin_z'])})"


def heading(survey: Survey, path: Path | None) -> list[str]:
    """Return the heading of a run: a few lines about its plan."""
    growth, run, shards = survey.config.growth, survey.config.run, survey.data.shards
    sizes = ", ".join(f"{name} {len(shards[name]):,}" for name in ("train", "valid", "test", "pick", "gate"))
    threads = "1 thread" if run.threads == 1 else f"{run.threads} threads"
    lines = [
        f"run {workplace.shown(path)}" if path is not None else "a run would be",
        f"  {survey.host_parameters:,} parameters; {survey.total_steps} steps of {survey.data.batch_size} samples"
        f" in {len(survey.fence_steps) - 1} rounds; seed {run.seed}, {threads}, {run.device}",
        f"  samples: {sizes}",
    ]
    declared = survey.config.failure_policy.declared()
    lines += [f"  failure_policy.{error} = {answer}" for error, answer in declared.items()]
    for spec in survey.specs:
        causal = {True: ", causal", False: ", not causal"}[spec.causal] if spec.kind.time is not None else ""
        mixed = "" if spec.samples_independent else ", a sample depends on others of its batch"
        lines.append(f"  slot {spec.path}: {spec.kind} {spec.shape}{causal}{mixed}")
    lines += left_out(survey.left_out)
    if not growth.enabled:
        return [*lines, "  no growth: the network trains alone"]
    units = "samples" if survey.data.slice("gate", 0).groups is None else "groups"
    excluded = left_out_by_budgets(survey)
    return [
        *lines,
        f"  {len(survey.options) - len(set().union(*excluded.values()))} candidates{of_copies(growth.copies)}; a seed"
        f" must beat its control by {percent(growth.margin)} of the loss{beside_placebos(growth.placebos)}"
        f" and z > {survey.g2_limit():.2f} on {survey.judged_units} {units}{_tests(survey)}",
        *over_budgets(excluded),
        "  stages of a seed: incubation > BLENDING (alpha rises) > SHADOWING (compared with the twin) > PROBATIONARY >"
        " FOSSILIZED (stays)",
        *(f"  {line}" for line in out_of_preset(growth.preset_left_out)),
        *(f"  {line}" for line in no_effect(growth.without_effect)),
        *_ends(growth.entry, growth.finish),
        *_beside(survey),
        *_limit(growth.max_cost),
    ]


def _ends(entry: str, finish: str) -> list[str]:
    """Return lines for settings that change how a seed enters the network, and with which network the run ends."""
    adopts = "  an accepted seed is adopted: its fork becomes the network, and the old network becomes the twin"
    better = "  the run ends with the better of network and twin, by the losses on pick and gate"
    live = "  the run ends with the grown network, even if it is worse than its twin (growth.finish=live)"
    ends = better if finish == "better" else live if entry == "adopt" else None  # else G4 removes such seeds
    return [*([adopts] if entry == "adopt" else []), *([ends] if ends is not None else [])]


def _limit(max_cost: float | None) -> list[str]:
    """Return a line about the limit of the compute of a run. Empty: there is no limit."""
    if max_cost is None:
        return []
    return [f"  no tournament begins with which the run could exceed {number(max_cost, 2)} GFLOP (growth.max_cost)"]


def _beside(survey: Survey) -> list[str]:
    """Return a line about refused candidates that train on. Empty: the settings ask for none."""
    looks, best, most = survey.looks, survey.config.growth.beside, survey.config.growth.max_looks
    if not best or most == 0:
        return []
    if not looks:
        return ["  no refused candidate trains on: the run is too short for a later look (growth.beside)"]
    times = "once" if looks == 1 else f"up to {looks} times"
    said = f"  the best {best} of a refused tournament train on and are judged again {times}, with z"
    fewer = "" if most is None or looks == most else f"; the run is too short for growth.max_looks = {most}"
    return [f"{said} > {survey.g2_limit(look=True):.2f}{fewer}"]


def of_copies(copies: int) -> str:
    """Return words for the number of modules in each seed. The text is empty for one module."""
    return f", {copies} copies each" if copies > 1 else ""


def beside_placebos(count: int) -> str:
    """Return words for the placebos of a tournament. The text is empty if there are none."""
    return f", and clearly more than {count} useless seeds gain (docs/growth.md#placebos)," if count else ""


def _tests(survey: Survey) -> str:
    """Return words for the tests among which G2 divides the chance of a false pass. The text is empty for one test."""
    growth, why = survey.config.growth, " (strict, because a run may"
    if growth.tests == "candidates":
        return f"{why} test {growth.max_tests} candidates)" if growth.max_tests > 1 else ""
    count = survey.tournaments
    held = f"{why} hold {count} tournament{'s' if count > 1 else ''}"
    looks = " and later looks" if survey.looks else ""
    return f"{held}{looks})" if count > 1 or looks else ""


def over_budgets(candidates: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each budget that leaves candidates out."""
    return [f"  left out, over {key}: {', '.join(names)}" for key, names in candidates.items()]


def left_out(modules: Mapping[str, str]) -> list[str]:
    """Return a line for each reason why modules that match a pattern are not slots."""
    paths: dict[str, list[str]] = {}
    for path, why in modules.items():
        paths.setdefault(why, []).append(path)
    return [f"  no slot, {why}: {', '.join(ones)}" for why, ones in paths.items()]


def results(result: Summary, notes: Sequence[str] = ()) -> RenderableType:
    """Return the table at the end of a run. `notes` on its losses stand under the losses."""
    judged = [seed for seed in result.seeds if seed.z is not None]
    inside = sum(seed.stage in IN_HOST for seed in result.seeds)
    tried = f"{len(result.seeds)} seeds were tried, {inside} are in the network"
    totals = _totals(result, notes)
    if not result.seeds:
        return totals
    first = _judged(judged, tried) if judged else Text(f"{tried}; none was the first of a tournament")
    return Group(first, totals)


def _judged(judged: Sequence[SeedFate], tried: str) -> Table:
    """Return the table of the winners of tournaments."""
    seeds = table(
        *("seed", "slot", "blueprint", "fate", "gain", "z", "parameters"),
        figures=("fate", "gain", "z", "parameters"),
        title=f"{tried}; first of their tournaments:",
        caption=f"gain: share of the loss of a control without the seed; z: in standard errors{_of_replicas(judged)}",
    )
    for seed in judged:
        name = seed.seed_id[:8] + (" replica" if seed.replica_of else "")
        fate = seed.stage if seed.stage in IN_HOST else "not kept"
        gain, z = gain_and_z(seed.gain, seed.z)
        made = seed.blueprint + of_copies(seed.copies)
        seeds.add_row(*cells(name, seed.slot, made, fate, gain, z, f"{seed.parameters:,}"))
    return seeds


def _totals(result: Summary, notes: Sequence[str]) -> Table:
    """Return losses, sizes, times and paths of a run."""
    totals = grid()
    totals.add_row("test loss", Text(f"{number(result.start_test_loss)} -> {number(result.test_loss)}", style="bold"))
    if result.twin_test_loss is not None:
        grown = growing(result.test_loss, result.twin_test_loss)
        totals.add_row(*cells("without growing", f"{number(result.twin_test_loss)} (the twin); {grown}"))
    if result.finish is not None:
        totals.add_row(*cells("network", choice(result.finish)))
    for note in notes:
        totals.add_row(*cells("these losses", note))
    for key, names in result.left_out_by_budgets.items():
        totals.add_row(*cells("not tried", f"over {key}: {', '.join(names)}"))
    if result.why_none_stayed is not None:
        totals.add_row(*cells("no growth", result.why_none_stayed))
    for seed in result.seeds:
        if seed.g2 is not None and seed.g2.own_z is None:  # a replica relies on the figures of its winner
            totals.add_row(*cells("G2", f"{seed.blueprint} at {seed.slot} {in_words(seed.g2)}"))
    for name, value in result.test_metrics.items():
        totals.add_row(*cells(f"test {name}", number(value)))
    for name, value in _not_finite(result):
        mend = "a division by 0, or the network gave no finite output"
        totals.add_row(*cells("no figure", f"{name} is {value}: {mend}"))
    totals.add_row(*cells("parameters", f"{result.params_start:,} -> {result.params_end:,}"))
    totals.add_row(*cells("steps", f"{result.steps}, {a_second(result.steps_per_s)} a second between decisions"))
    totals.add_row(*cells("time", _time(result)))
    for recovery in result.recoveries:
        totals.add_row(*cells("recovered", _recovered(recovery)))
    parts = {"trainer": result.trainer_gflops, "incubation": result.incubator_gflops, "twin": result.twin_gflops}
    compute = " + ".join(f"{name} {number(value, 2)}" for name, value in parts.items())
    totals.add_row(*cells("modelled GFLOP", f"{compute} = {number(sum(parts.values()), 2)}"))
    if aside := quarantined(workplace.fixed(Path(result.run_dir))):
        totals.add_row(*cells("in quarantine", f"{', '.join(aside)}: did not load, so an earlier checkpoint was used"))
    totals.add_row(*cells("weights", f"sha256 {result.weights_sha256[:16]}..."))
    totals.add_row(*cells("run", result.run_dir))
    return totals


def _time(result: Summary) -> str:
    """Return the seconds of the whole run, the seconds that the trainer waited, and the seconds of the last process."""
    waited = f"the trainer waited {number(result.fence_wait_s, 1)} s"
    if result.training_s is None or result.fences_s is None:
        whole = f"in the whole run {waited}"
    else:
        whole = f"{number(result.training_s + result.fences_s, 1)} s of rounds and fences, of which {waited}"
    process = "the last process" if result.resumes else "the process, with its start and end"
    return f"{whole}; {process}: {number(result.wall_s, 1)} s"


def _of_replicas(seeds: Sequence[SeedFate]) -> str:
    """Return the end of a caption, which explains replicas that are worse than their controls. The text is empty if the
    table has no such replica.
    """
    if not any(seed.replica_of and seed.stage in IN_HOST and not (seed.gain or 0.0) > 0 for seed in seeds):
        return ""
    return "; a replica need not beat its control: it stays unless it is shown to be harmful (docs/growth.md)"


def _not_finite(result: Summary) -> list[tuple[str, float]]:
    """Return the losses and metrics of a result that are not finite."""
    losses = {"test loss": result.test_loss, "valid loss": result.valid_loss, "first test loss": result.start_test_loss}
    metrics = {f"test {name}": value for name, value in result.test_metrics.items()}
    return [(name, value) for name, value in (losses | metrics).items() if not math.isfinite(value)]


def _recovered(recovery: Recovery) -> str:
    if recovery.alone:
        until = "its replacement was up; training continued meanwhile"
    elif recovery.restore_s is None:
        until = "another death interrupted the recovery"
    else:
        until = "the next good step" if recovery.first_step_s is not None else "all components were at a fence again"
    return f"{', '.join(recovery.actors)} ({recovery.error}), {number(recovery.total_s, 1)} s until {until}"
