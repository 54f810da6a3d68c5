"""The value that `esper.run` and `esper.resume` return. The value is the summary of a run that reached its end, with
the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import PrivateAttr
from torch import nn

from esper.archive.summary import Summary
from esper.export.loading import load
from esper.task import Task


class Result(Summary):
    """Summary of a run, with its grown network. Times are in seconds; for losses see docs/figures.md."""

    _place: Path = PrivateAttr()
    _task: Task | str | None = PrivateAttr(None)
    _network: nn.Module | None = PrivateAttr(None)

    @classmethod
    def of(
        cls, summary: Summary, place: Path, *, network: nn.Module | None = None, task: Task | str | None = None
    ) -> Self:
        """Return the result of a run.

        Args:
            place: The run directory, absolute.
            network: The grown network. None: the network is loaded from `place` on first use.
            task: The task of the run, to load the network. None: the task is found by its reference in `run.json`.
        """
        result = cls(**dict(summary))
        result._place, result._task, result._network = place, task, network
        return result

    @property
    def network(self) -> nn.Module:
        """The grown network, as `esper.load` returns it: an ordinary module in evaluation mode that contains its seeds.

        It is never None. If the run had ended before `esper.resume`, the network is loaded here, on first use.

        Raises:
            Exception: as `esper.load`, if the network is loaded here. For example TaskError, if the task was not given
                to `esper.resume` and was not found by its reference.
        """
        if self._network is None:
            self._network = load(self._place, task=self._task, fence=self.rounds)
        return self._network
