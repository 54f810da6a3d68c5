"""Makes the run directory that every later version must restore or refuse: tests/data/golden-run. Made once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from esper.errors import Drained
from esper.leyline.state import RoundState
from esper.line import Drain
from esper.loop import run
from esper.progress import Quiet
from esper.references import load_task
from esper.summary import Tally
from esper.testing import tiny_config

PLACE = Path(__file__).parents[1] / "tests" / "data" / "golden-run"
FENCE = 6


class StopAt(Quiet):
    """Asks for a drain once a fence has been held."""

    def __init__(self, fence: int) -> None:
        self.drain, self._fence = Drain(), fence

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Ask, if it is this one."""
        del tally
        if state.fence == self._fence:
            self.drain.ask()


def main() -> None:
    """Make it, where there is none yet."""
    if PLACE.exists():
        sys.exit(f"{PLACE} is there already; it is made once")
    task, reference = load_task("esper.testing:tiny_task")
    watch = StopAt(FENCE)
    try:
        run(task, tiny_config(run__dir=str(PLACE)), reference=reference, progress=watch, drain=watch.drain)
    except Drained:
        shutil.rmtree(PLACE / "telemetry", ignore_errors=True)
        (PLACE / "lease").unlink()


if __name__ == "__main__":
    main()
