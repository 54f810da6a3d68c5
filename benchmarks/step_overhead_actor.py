"""Time of a step in a run on Ray actors, compared with the same step in a bare PyTorch loop.

After every fence, while the actors wait, this process trains one round of the same host in a plain loop, with the same
weights and batches. Both must end with the same bits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from _bare import BareLoop
from _common import Outcome, Row, Spread, main, scratch

from actors.embedded_ray import EmbeddedRay
from esper import OnRay, run
from esper.config.joined import load_config
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.ground.tensors import state_digest
from esper.leyline.state import RoundState
from esper.setup.survey import Survey, survey_of
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

TASK = "esper.tasks.stdlib_text:task"
RATIO, ALLOWED_S = 1.05, 300e-6


@dataclass
class InTurns(Quiet):
    """Follows a run. After each round it trains the same round in the bare loop."""

    survey: Survey
    bare: BareLoop
    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    _trained_s: float = 0.0

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Record the trainer's time, and train the round in the bare loop. The trainer waits meanwhile."""
        if state.fence == 0:
            return
        steps = self.survey.fence_steps[state.fence] - self.survey.fence_steps[state.fence - 1]
        self.ours_s.append((tally.training_s - self._trained_s) / steps)
        self._trained_s = tally.training_s
        start = time.monotonic()
        self.bare.train(steps)
        self.bare_s.append((time.monotonic() - start) / steps)


def measure(repetitions: int) -> Outcome:
    """Measure whole runs without growth, in alternation with the bare loop. The first round of each run is warm-up."""
    task, reference = load_task(TASK)
    ours_s: list[float] = []
    bare_s: list[float] = []
    with scratch() as folder, process_state(1), EmbeddedRay(slots=2) as embedded:
        for repetition in range(repetitions):
            told = {"run.seed": repetition, "run.dir": str(folder / str(repetition)), "growth.enabled": False}
            config = load_config(None, told)
            survey = survey_of(task, config)
            turns = InTurns(survey, BareLoop(survey))
            result = run(task, config, on=OnRay(embedded), reference=reference, progress=turns)
            if state_digest(turns.bare.host.state_dict()) != result.weights_sha256:
                raise SystemExit("the bare loop did not train the same network: there is nothing to compare")
            ours_s += turns.ours_s[1:]
            bare_s += turns.bare_s[1:]
    ours, bare = Spread(tuple(ours_s)), Spread(tuple(bare_s))
    value, limit = ours.lower_quartile, bare.lower_quartile
    met = value <= max(RATIO * limit, limit + ALLOWED_S)
    target = f"<= {RATIO} of the bare loop, or {ALLOWED_S * 1e6:.0f} us more"
    return Outcome(
        rows=[
            Row.judged("step on actors, whole rounds, lower quartile (s)", value, limit, target, met),
            Row.told("a step's overhead (us)", 1e6 * (value - limit)),
        ],
        spreads={"step on actors (s)": ours, "step in the bare loop (s)": bare},
    )


if __name__ == "__main__":
    main("step_overhead_actor", __doc__, measure)
