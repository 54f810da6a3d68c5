"""Measures how often useless seeds pass the gate G2 on a task: runs of tournaments between seeds that cannot help.

The gate has an assumed chance of a false pass. This trial measures it on the user's own host, data and config. Each run
has a host of its own: another run seed, so other first weights, batches and judged samples. The samples that esper
splits off from `task.train` are split in another way for each run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from esper.errors import ConfigError
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.judging.statistics import exact_interval
from esper.setup.null_run import candidates, null_run
from esper.setup.null_tournament import NullVerdict
from esper.setup.survey import Survey, open_data
from esper.task import Task

INTERVAL = "Clopper-Pearson, exact, two-sided, 95 %"


@dataclass(frozen=True)
class NullTrial:
    """The results of all tournaments of a trial."""

    verdicts: tuple[NullVerdict, ...]
    """The verdicts of all tournaments and later looks."""
    candidates: int
    """Number of useless seeds in each first tournament of a run."""
    placebos: int
    tests: float
    """Number of tests among which G2 divided the chance of a false pass for z, at the end of a tournament."""
    in_a_run: int = 1
    """Largest number of tournaments in each run."""
    looks: int = 0
    """Largest number of later looks at the refused seeds of each tournament."""
    own_samples: bool = True
    """False: the task gives its own pick or gate shard, so runs may be judged on the same samples."""

    @property
    def tournaments(self) -> int:
        """Number of tournaments."""
        return sum(one.look == 0 for one in self.verdicts)

    @property
    def accepted(self) -> int:
        """Number of tournaments that accepted a useless seed, at their end or at a later look. A run ends with it."""
        return sum(one.accepted for one in self.verdicts)

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len({one.run_seed for one in self.verdicts})

    @property
    def only_placebos_refuse(self) -> int:
        """Number of verdicts whose first seed met every limit of G2, or every limit but that of the placebos."""
        return sum(one.only_placebos_refuse for one in self.verdicts)

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the share of tournaments that accept a useless seed."""
        return exact_interval(self.accepted, self.tournaments)

    @property
    def interval_of_runs(self) -> tuple[float, float]:
        """Exact 95 % interval of the share of runs that accept a useless seed."""
        return exact_interval(self.accepted, self.runs)

    @property
    def interval_of_those(self) -> tuple[float, float]:
        """Exact 95 % interval of the share among the verdicts of `only_placebos_refuse`. There is one or more."""
        return exact_interval(self.accepted, self.only_placebos_refuse)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values. Each interval is exact, by Clopper and Pearson."""
        count, could = self.tournaments, self.only_placebos_refuse
        return {
            "tournaments": count,
            "looks": len(self.verdicts) - count,
            "candidates": self.candidates,
            "placebos": self.placebos,
            "tests": self.tests,
            "accepted": self.accepted,
            "share": self.accepted / count,
            "interval": list(self.interval),
            "interval_kind": INTERVAL,
            "runs": self.runs,
            "tournaments_in_a_run": self.in_a_run,
            "looks_of_a_tournament": self.looks,
            "share_of_runs": self.accepted / self.runs,
            "interval_of_runs": list(self.interval_of_runs),
            "only_placebos_refuse": could,
            "share_of_those": self.accepted / could if could else None,
            "interval_of_those": list(self.interval_of_those) if could else None,
            "own_samples": self.own_samples,
            "accepted_by_kind": dict(Counter(one.kind for one in self.verdicts if one.accepted)),
            "first_by_kind": dict(Counter(str(one.kind) for one in self.verdicts)),
            "refused_by_reason": dict(Counter(reason for one in self.verdicts for reason in one.reasons)),
            "each": [_as_json(one) for one in self.verdicts],
        }


def _as_json(one: NullVerdict) -> dict[str, Any]:
    gains = [list(each) for each in one.placebo_gains]
    return vars(one) | {"reasons": list(one.reasons), "placebo_gains": gains}


def null_trial(
    survey: Survey,
    runs: int,
    told: Callable[[NullVerdict], None] = lambda _: None,
    *,
    whole: bool = False,
    task_of: Callable[[int], Task] | None = None,
) -> NullTrial:
    """Hold tournaments between useless seeds, and judge the first seed of each by G2, with the limits of the config.

    The gates G0 and G1 are left out, because G0 would refuse some of these seeds.

    Args:
        runs: Number of runs, 1 or more.
        told: Function that is called after each verdict.
        whole: True: each run holds as many tournaments and later looks as a run of the config can hold, until one
            accepts a seed. False: each run holds its first tournament only.
        task_of: Run seed -> the task with samples of its own for that run. None: all runs have the task of the survey.

    Raises:
        ConfigError: no seed can germinate in a run of this task and config, so it holds no tournament.
        DivergenceUnrecoverable: the training of a control diverged.
    """
    if not survey.can_grow:
        mend = "no seed can germinate in this run, so there is no tournament to repeat; see `esper plan`"
        raise ConfigError("--null", runs, mend)
    growth, found = survey.config.growth, list[NullVerdict]()
    with temporary_rng(0):
        size = candidates(survey, runs)
    for run_seed in range(survey.config.run.seed + 1, survey.config.run.seed + 1 + runs):
        with temporary_rng(0):
            found += null_run(_reseeded(survey, run_seed, task_of), size, told, whole=whole)
    own = task_of is not None or all(survey.data.shards[name].samples is survey.task.train for name in ("pick", "gate"))
    most, looks = (survey.tournaments, survey.looks) if whole else (1, 0)
    return NullTrial(tuple(found), size, growth.placebos, survey.g2_tests, most, looks, own)


def _reseeded(survey: Survey, run_seed: int, task_of: Callable[[int], Task] | None) -> Survey:
    """Return the survey of a task with another run seed and another split."""
    config = survey.config.model_copy(update={"run": survey.config.run.model_copy(update={"seed": run_seed})})
    task = task_of(run_seed) if task_of is not None else survey.task
    return replace(survey, task=task, config=config, data=open_data(task, config, run_seed))
