"""The `Registrar` port of Kasmina: the registry of seeds with few calls. The answer to a change contains its results.

On Ray each call is a blocking message to another process. So at a fence only `view` is a pure query: every other call
changes the registry, and its answer contains what the caller needs next: plans, weights and, mostly, the new view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.kasmina.registry.manager import SeedManager
from esper.leyline.commands import Command
from esper.leyline.evidence import HostObservation, ResetProbe, SampleLosses
from esper.leyline.incubation import Answer, CandidateProbe, Changed, Compared, IncubationResult, InFlight, Received
from esper.leyline.reports import GraftPlan
from esper.leyline.state import RegistryView


class KasminaRegistrar:
    """The `Registrar` of one `SeedManager`. See the port for the call order, and the manager for the errors."""

    def __init__(self, manager: SeedManager) -> None:
        self._manager = manager

    def view(self, fence: int) -> RegistryView:
        """See `Registrar`."""
        return self._manager.view(fence)

    def advance(self, command: Command, fence: int, observation: HostObservation) -> Changed:
        """See `Registrar`."""
        self._manager.receive(command, fence)
        return self._changed(self._manager.carry_out(command.command_id, fence, (), observation), fence)

    def receive(self, command: Command, fence: int) -> Received:
        """See `Registrar`."""
        plans = self._manager.receive(command, fence)
        return Received(plans=plans, weights=self._manager.weights_of(plans), flops=self._manager.probe_flops(plans))

    def carry_out(self, command_id: str, fence: int, probes: Sequence[CandidateProbe]) -> Changed:
        """See `Registrar`."""
        return self._changed(self._manager.carry_out(command_id, fence, probes, None), fence)

    def conclude(self, result: IncubationResult, fence: int) -> Changed:
        """See `Registrar`."""
        return self._changed(self._manager.conclude(result, fence), fence)

    def compare(self, live: SampleLosses, twin: SampleLosses) -> Compared:
        """See `Registrar`."""
        return Compared(losses=self._manager.compare(live, twin), flops=self._manager.comparison_flops(live))

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Changed:
        """See `Registrar`."""
        return self._changed(self._manager.reset(probes, fence), fence)

    def state(self) -> str:
        """See `Registrar`."""
        return self._manager.state()

    def restore(self, state: str, generation: int) -> None:
        """See `Registrar`. Raises: StoreCorrupt."""
        self._manager.restore(state, generation)

    def order(self) -> InFlight | None:
        """See `Registrar`."""
        order = self._manager.order()
        return InFlight(order=order, weights=self._manager.weights_of(order.plans)) if order is not None else None

    def _changed(self, answer: Answer, fence: int) -> Changed:
        forks = answer.order.plans if answer.order is not None else ()
        grafts = [plan for plan in answer.plans if isinstance(plan, GraftPlan)]
        weights = self._manager.weights_of([*grafts, *forks])
        return Changed(answer=answer, view=self._manager.view(fence), weights=weights)
