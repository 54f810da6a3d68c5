"""The summary of a run that reached its end: the last measurements of its network, and the cost of the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from esper.archive.history import Past
from esper.archive.no_growth import why_none_stayed
from esper.archive.summary import Summary, fate
from esper.flow.line import Line
from esper.ground.workplace import shown
from esper.leyline.finish import Finish
from esper.leyline.incubation import TwinReport
from esper.setup.candidates import left_out_by_budgets
from esper.setup.survey import Survey


def summarise(
    line: Line, survey: Survey, path: Path, task: str, past: Past | None, fallbacks: int, wall_s: float
) -> partial[Summary]:
    """Return the summary of a run that reached its end, without deaths and `fault_fired`.

    Args:
        past: Valid history before this process. None: this process began the run.
        wall_s: Duration of the run in this process, in seconds.
    """
    twin = line.components.incubator.twin_report() if line.view.has_twin else None
    network = _network(line, survey, twin)
    return partial(
        Summary,
        **network.keywords,
        **_cost(line, survey, twin).keywords,
        run_dir=shown(path),
        task=task,
        wall_s=wall_s,
        resumes=past.resumes + 1 if past is not None else 0,
        rollbacks=line.tally.rollbacks,
        fallbacks=fallbacks,
        trace_id=line.trace_id,
    )


def with_deaths(summary: partial[Summary], line: Line, past: Past | None) -> partial[Summary]:
    """Add the restarts to a summary, and journal the last of them. Call this function when no process will be called
    any more.
    """
    line.deaths.tell()
    restarts = line.deaths.restarts + (past.restarts if past is not None else 0)
    return partial(summary, restarts=restarts, recoveries=tuple(line.deaths.recoveries))


def _network(line: Line, survey: Survey, twin: TwinReport | None) -> partial[Summary]:
    """Return the losses, sizes and digests of the network, and the fates of the seeds."""
    trainer, growth, finish = line.components.trainer, line.tally.growth, line.at.finish
    ends_with_twin = finish is not None and finish.network == "twin"
    means = line.components.incubator.twin_means if ends_with_twin else trainer.shard_means
    end = means("test")
    live, of_twin = _test_losses(line, end["loss"], ends_with_twin=ends_with_twin)
    seeds = tuple(fate(seed, growth.verdicts.get(seed.seed_id)) for seed in line.view.seeds)
    why = f"the run ends with its twin: {finish.why}" if finish is not None and ends_with_twin else None
    return partial(
        Summary,
        test_loss=end["loss"],
        valid_loss=means("valid")["loss"],
        start_test_loss=line.at.start["loss"],
        twin_test_loss=of_twin,
        test_metrics={name: value for name, value in end.items() if name != "loss"},
        params_start=survey.host_parameters,
        params_end=survey.host_parameters if ends_with_twin else trainer.parameter_count(),
        seeds=seeds,
        left_out_by_budgets=left_out_by_budgets(survey),
        growth=growth.model_copy(update={"verdicts": {}}),
        why_none_stayed=why or why_none_stayed(survey, growth, seeds),
        ends_with=finish.network if finish is not None else "live",
        finish=finish,
        live_test_loss=live if finish is not None else None,
        weights_sha256=trainer.weights_sha256() if finish is None else _weights_of(finish),
        twin_weights_sha256=twin.weights_sha256 if twin is not None else None,
    )


def _test_losses(line: Line, test_loss: float, *, ends_with_twin: bool) -> tuple[float, float | None]:
    """Return the test losses of live host and twin. `test_loss` is that of the network, which is not measured again.
    The second is None if the run has no twin."""
    trainer, incubator = line.components.trainer, line.components.incubator
    if ends_with_twin:
        return trainer.shard_means("test")["loss"], test_loss
    return test_loss, incubator.twin_means("test")["loss"] if line.view.has_twin else None


def _weights_of(finish: Finish) -> str:
    chosen = finish.twin if finish.network == "twin" else finish.live
    assert chosen is not None, "a run without a twin ends with the live host"
    return chosen.weights_sha256


def _cost(line: Line, survey: Survey, twin: TwinReport | None) -> partial[Summary]:
    """Return the length and cost of the run: settings, steps, modelled GFLOPs and seconds."""
    tally, config = line.tally, survey.config
    assert tally.steps_per_s is not None, "a run has at least one round"
    return partial(
        Summary,
        seed=config.run.seed,
        threads=config.run.threads,
        workers=1,
        rounds=len(survey.fence_steps) - 1,
        steps=tally.steps,
        trainer_gflops=tally.trainer_flops / 1e9,
        incubator_gflops=tally.incubator_flops / 1e9,
        twin_gflops=twin.steps * survey.host_flops / 1e9 if twin is not None else 0.0,
        steps_per_s=tally.steps_per_s,
        training_s=tally.training_s,
        fences_s=tally.fences_s,
        fence_wait_s=tally.fence_wait_s,
        checkpoint_s=tally.checkpoint_s,
    )
