"""Stops a run at a fence, as SIGTERM does."""

from __future__ import annotations

from esper.flow.progress import Quiet
from esper.flow.stopping import Drain
from esper.flow.tally import Tally
from esper.leyline.state import RoundState


class StopAtFence(Quiet):
    """Progress of a run that asks for a stop at a fence. Give its `drain` to the run, too."""

    def __init__(self, fence: int) -> None:
        self.drain, self._fence = Drain(), fence

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Ask for the stop at the given fence."""
        del tally
        if state.fence == self._fence:
            self.drain.ask()
