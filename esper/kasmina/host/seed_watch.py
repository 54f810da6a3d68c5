"""Finds what the calls of one seed change outside the seed. An editor judges the findings; see `SeedEditor.audit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from esper.kasmina.host.isolation import WHOLE, Edge, edge_of
from esper.user_code.attributes import Held, different, held_by, path_in_words


@dataclass
class Findings:
    """The findings on a seed since the last `SeedWatch.take`."""

    branch: Tensor | None = None
    """The seed's output in an audited call. None: no call was audited."""
    cut: Edge | None = None
    """Place of the seed's input in the autograd graph of the audited call. None: the input needed no gradient."""
    changed: set[str] = field(default_factory=set)
    """Names of everything outside the seed that the seed changed."""


class SeedWatch:
    """Compares the surroundings of a seed before and after its calls. In an audited call all values are compared."""

    def __init__(self, slot: str, record: Callable[[], Held]) -> None:
        """Make the watch of a seed at a slot.

        Args:
            record: Function that returns the digests of everything that the seed must not change.
        """
        self.audits = False
        """Whether the next calls are audited."""
        self.found = Findings()
        self._output, self._record = f"['output of {slot}']", record

    def before_audited(self, host: Tensor) -> tuple[Held, Edge | None]:
        """Read everything before an audited call.

        Args:
            host: Output of the slot's module, [B, ...]: the tensor from which the seed's input is taken.
        """
        return self._read(host), edge_of(host)

    def after_audited(self, before: tuple[Held, Edge | None], host: Tensor, correction: Tensor) -> None:
        """Record what the call has changed, and the input and the output of the seed.

        Args:
            before: The result of `before_audited`.
            correction: Output of the seed, [B, ...].
        """
        digests, edge = before
        self.found.changed |= {path_in_words(path) for path in different(digests, self._read(host))}
        self.found.branch, self.found.cut = correction, edge

    def _read(self, host: Tensor) -> Held:
        return self._record() | {self._output: held_by([host], limits=WHOLE)["[0]"]}

    def take(self) -> Findings:
        """Return the findings since the last call, and begin new findings."""
        found, self.found = self.found, Findings()
        return found
