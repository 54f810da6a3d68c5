"""What people see of a run while it goes on. It shows what it is told and influences nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from esper.leyline.decisions import Hold
from esper.leyline.incubation import Answer
from esper.leyline.stages import IN_HOST, Stage
from esper.leyline.state import RoundState, SeedState
from esper.prospect import Prospect
from esper.summary import Result, Tally

COLOURS = {
    Stage.TRAINING: "cyan",
    Stage.BLENDING: "yellow",
    Stage.SHADOWING: "magenta",
    Stage.PROBATIONARY: "blue",
    Stage.FOSSILIZED: "green",
    Stage.TERMINATED: "green",
}


class Progress(Protocol):
    """Follows one run."""

    def started(self, prospect: Prospect, path: Path) -> None:
        """The run begins."""
        ...

    def fence(self, state: RoundState, tally: Tally) -> None:
        """A fence has been passed."""
        ...

    def hold(self, hold: Hold) -> None:
        """Nothing germinates at this fence."""
        ...

    def answer(self, answer: Answer) -> None:
        """Kasmina judged or moved something."""
        ...

    def ended(self, result: Result) -> None:
        """The run is done."""
        ...


class Quiet:
    """Shows nothing."""

    def started(self, prospect: Prospect, path: Path) -> None:
        """Nothing."""

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Nothing."""

    def hold(self, hold: Hold) -> None:
        """Nothing."""

    def answer(self, answer: Answer) -> None:
        """Nothing."""

    def ended(self, result: Result) -> None:
        """Nothing."""


class Terminal:
    """A live view on a terminal; plain lines where the output is none."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._fences = 0
        self._hold: Hold | None = None
        self.path: Path | None = None
        """The run's directory, once there is one."""

    def started(self, prospect: Prospect, path: Path) -> None:
        """Say what will be run, and open the live view."""
        self.path, self._fences = path, len(prospect.fence_steps) - 1
        for line in heading(prospect, path):
            self._console.print(line)
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=False)
            self._live.start()

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Show the round, its loss, the speed, and each slot's seeds."""
        if self._live is not None:
            self._live.update(Group(self._status(state, tally), self._slots(state)))
        elif state.fence:
            self._console.print(self._status(state, tally), Text("  "), _row(state), soft_wrap=True)

    def hold(self, hold: Hold) -> None:
        """Remember why nothing germinates."""
        self._hold = hold

    def answer(self, answer: Answer) -> None:
        """Print what was grafted, fossilised or culled from the host, and why."""
        if answer.order is not None:
            self._hold = None
            count = len(answer.order.plans)
            what = "a replica" if count == 1 else f"{count} candidates"
            self._say(
                f"fence {answer.order.fence:>2}  {what} and a control incubate until fence {answer.order.due_fence}"
            )
        for report in answer.gates:
            moved = [t for t in answer.transitions if t.seed_id == report.seed_id and t.cause == report.gate]
            for step in moved:
                if step.after in (Stage.BLENDING, Stage.FOSSILIZED):
                    figures = ", ".join(
                        f"{c.name} {c.measured:.3g}" for c in report.checks if isinstance(c.measured, float)
                    )
                    self._say(f"fence {step.fence:>2}  {step.blueprint_id} at {step.slot} -> {step.after}  ({figures})")
                if step.after is Stage.CULLED and step.before is not Stage.TRAINING:
                    why = ", ".join(report.reasons)
                    self._say(
                        f"fence {step.fence:>2}  {step.blueprint_id} at {step.slot} culled by {report.gate}: {why}"
                    )

    def ended(self, result: Result) -> None:
        """Close the live view and print the table of results."""
        self.close()
        self._console.print(results(result))

    def close(self) -> None:
        """Close the live view, also after a failure."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def _status(self, state: RoundState, tally: Tally) -> Text:
        training = state.training
        text = Text(f"round {state.fence}/{self._fences}", style="bold")
        text.append(f"  step {training.step}/{training.total_steps}", style="default")
        if training.train_loss is not None:
            text.append(f"  loss {training.train_loss:.4f}")
        if tally.steps_per_s is not None:
            text.append(f"  {tally.steps_per_s:.0f} steps/s")
        text.append(f"  {training.parameters:,} parameters")
        if state.incubating:
            text.append("  incubating", style="cyan")
        elif self._hold is not None:
            text.append(f"  holding: {self._hold.reason} ({self._hold.detail})", style="dim")
        return text

    def _slots(self, state: RoundState) -> Table:
        table = Table("slot", "kind", "seeds", box=None, pad_edge=False)
        for slot in state.slots:
            seeds = [seed for seed in state.seeds if seed.slot == slot.spec.path]
            cells = standing(seeds)
            trying = sum(seed.stage is Stage.TRAINING for seed in seeds)
            if trying:
                cells.append(f"  {trying} incubating", style="cyan")
            table.add_row(slot.spec.path, str(slot.spec.kind), cells if cells.plain else Text("dormant", style="dim"))
        return table


def standing(seeds: list[SeedState]) -> Text:
    """The seeds of one slot that are in the host: blueprint, stage, and alpha while it ramps."""
    text, last = Text(), ""
    for seed in seeds:
        if seed.stage not in IN_HOST:
            continue
        name = f"{seed.blueprint_id} " if seed.blueprint_id != last else ""
        ramp = f" {seed.alpha:.2f}" if seed.stage is Stage.BLENDING else ""
        text.append("  " if text.plain else "").append(name)
        text.append(f"{seed.stage}{ramp}", style=COLOURS.get(seed.stage, "default"))
        last = seed.blueprint_id
    return text


def _row(state: RoundState) -> Text:
    rows = [(slot.spec.path, standing([s for s in state.seeds if s.slot == slot.spec.path])) for slot in state.slots]
    return Text("  ").join(Text(f"{path}: ").append_text(seeds) for path, seeds in rows if seeds.plain)


def heading(prospect: Prospect, path: Path | None) -> list[str]:
    """What a run will do, in a few lines."""
    sizes = ", ".join(f"{name} {len(shard):,}" for name, shard in prospect.data.shards.items())
    growth = prospect.config.growth
    lines = [
        f"run {path}" if path is not None else "a run would be",
        f"  {prospect.total_steps} steps of {prospect.data.batch_size} samples, {len(prospect.fence_steps) - 1} rounds,"
        f" seed {prospect.config.run.seed}, {prospect.config.run.threads} thread(s), {prospect.config.run.device}",
        f"  samples: {sizes}",
    ]
    for spec in prospect.specs:
        traits = "causal" if spec.causal else "not causal"
        lines.append(f"  slot {spec.path}: {spec.kind} {spec.shape}, {traits}")
    if growth.enabled:
        lines.append(
            f"  {len(prospect.options)} candidate pairs; a seed must beat its control by z > {prospect.g2_limit():.2f}"
            f" (at most {growth.max_tests} tests) and {growth.margin:.1%}"
        )
    return lines


def results(result: Result) -> RenderableType:
    """The table at the end of a run."""
    seeds = Table(
        "seed", "slot", "blueprint", "fate", "gain", "z", title="first of their tournaments", title_justify="left"
    )
    tried = 0
    for seed in result.seeds:
        if seed.z is None:
            tried += 1
            continue
        gain = "" if seed.gain is None else f"{seed.gain:+.2%}"
        fate = "not accepted" if seed.stage in ("DORMANT", "EMBARGOED", "RESETTING") else seed.stage
        name = seed.seed_id[:8] + (" replica" if seed.replica_of else "")
        seeds.add_row(name, seed.slot, seed.blueprint, fate, gain, f"{seed.z:+.1f}")
    totals = Table.grid(padding=(0, 2))
    totals.add_row("test loss", f"{result.start_test_loss:.4f} -> [bold]{result.test_loss:.4f}[/bold]")
    if result.twin_test_loss is not None:
        change = result.test_loss / result.twin_test_loss - 1
        totals.add_row("the host alone (twin)", f"{result.twin_test_loss:.4f}  ({change:+.1%} by growing)")
    for name, value in result.test_metrics.items():
        totals.add_row(f"test {name}", f"{value:.4f}")
    totals.add_row("parameters", f"{result.params_start:,} -> {result.params_end:,}")
    totals.add_row("steps", f"{result.steps} at {result.steps_per_s:.0f}/s, {result.wall_s:.1f} s in all")
    compute = (
        f"trainer {result.trainer_gflops:.0f}, incubation {result.incubator_gflops:.0f}, twin {result.twin_gflops:.0f}"
    )
    totals.add_row("modelled GFLOP", compute)
    totals.add_row("also tried", f"{tried} candidates that lost their tournament")
    totals.add_row("weights", result.weights_sha256[:16])
    totals.add_row("run", result.run_dir)
    return Group(seeds, totals)
