"""The effect of growth on the default task: the test losses of the grown network and its twin, for run seeds 1 to 3.

The figures of the README are from its result file. The twin trains on the same batches without growth.
"""

from __future__ import annotations

from _common import Outcome, Row, main, scratch

from esper import run
from esper.config.joined import load_config
from esper.user_code.task_reference import load_task

TASK = "esper.tasks.stdlib_text:task"


def measure(seeds: int) -> Outcome:
    """Make a run in this process for each run seed from 1 to `seeds`."""
    rows = []
    for seed in range(1, seeds + 1):
        task, reference = load_task(TASK)
        with scratch() as folder:
            config = load_config(None, {"run.seed": seed, "run.dir": str(folder / "run")})
            result = run(task, config, reference=reference)
        rows.append(Row.told(f"run seed {seed}: test loss over the twin's", result.test_loss, result.twin_test_loss))
        rows.append(
            Row.told(f"run seed {seed}: parameters over those at the start", result.params_end, result.params_start)
        )
    return Outcome(rows, {})


if __name__ == "__main__":
    main("default_task", __doc__, measure, repetitions=3)
