"""The port through which a run reports its progress. An implementation must not change the run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from esper.archive.summary import Summary
from esper.flow.tally import Tally
from esper.leyline.decisions import Hold
from esper.leyline.incubation import Answer
from esper.leyline.state import RoundState
from esper.setup.survey import Survey


class Progress(Protocol):
    """Receives the progress of one run."""

    def started(self, survey: Survey, path: Path) -> None:
        """The run begins."""
        ...

    def found(self, what: str) -> None:
        """Report a finding: damage that a resume found, or a change of the emergency level."""
        ...

    def working(self, what: str) -> None:
        """A longer activity begins."""
        ...

    def fence(self, state: RoundState, tally: Tally) -> None:
        """A fence has been passed."""
        ...

    def hold(self, hold: Hold) -> None:
        """Nothing germinates at this fence."""
        ...

    def answer(self, answer: Answer) -> None:
        """Kasmina judged a seed or changed its stage."""
        ...

    def ended(self, result: Summary) -> None:
        """The run is done."""
        ...


class Quiet:
    """Shows nothing."""

    def started(self, survey: Survey, path: Path) -> None:
        """Nothing."""

    def found(self, what: str) -> None:
        """Nothing."""

    def working(self, what: str) -> None:
        """Nothing."""

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Nothing."""

    def hold(self, hold: Hold) -> None:
        """Nothing."""

    def answer(self, answer: Answer) -> None:
        """Nothing."""

    def ended(self, result: Summary) -> None:
        """Nothing."""
