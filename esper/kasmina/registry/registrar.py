"""The `Registrar` port of Kasmina. It has the few calls by which other components use the registry of seeds.

On Ray each call is a blocking message to another process. So the answer to a change contains everything that the caller
needs next: plans, weights and, if the call changes the view, the new view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper import faults
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.leyline.commands import Command
from esper.leyline.evidence import HostObservation, ResetProbe, SampleLosses
from esper.leyline.incubation import Answer, CandidateProbe, Changed, Compared, IncubationResult, InFlight, Received
from esper.leyline.reports import GraftPlan
from esper.leyline.state import RegistryView


class KasminaRegistrar:
    """The `Registrar` of one `SeedRegistry`. The port describes the call order. The registry describes the errors."""

    def __init__(self, registry: SeedRegistry) -> None:
        self._registry = registry

    def view(self, fence: int) -> RegistryView:
        """See `Registrar`."""
        return self._registry.view(fence)

    def advance(self, command: Command, fence: int, observation: HostObservation | None) -> Changed:
        """See `Registrar`."""
        got = faults.message("kasmina.receive", command, round=fence)
        self._registry.receive(got, fence)
        if observation is not None:
            observation = faults.message("kasmina.evidence", observation, round=fence)
        return self._carried_out(got.command_id, fence, (), observation)

    def not_attached(self, seed_id: str, leaks: tuple[str, ...], fence: int) -> Changed:
        """See `Registrar`."""
        return self._changed(self._registry.not_attached(seed_id, leaks, fence), fence)

    def permit(self, command: Command, fence: int, checkpoints: Sequence[int]) -> str:
        """See `Registrar`."""
        got = faults.message("kasmina.receive", command, round=fence)
        self._registry.receive(got, fence, checkpoints)
        return got.command_id

    def receive(self, command: Command, fence: int) -> Received:
        """See `Registrar`."""
        got = faults.message("kasmina.receive", command, round=fence)
        plans = self._registry.receive(got, fence)
        return Received(
            plans=plans,
            weights=self._registry.weights_of(plans),
            flops=self._registry.probe_flops(plans),
            command_id=got.command_id,
        )

    def carry_out(self, command_id: str, fence: int, probes: Sequence[CandidateProbe]) -> Changed:
        """See `Registrar`."""
        return self._carried_out(command_id, fence, probes, None)

    def conclude(self, result: IncubationResult, fence: int) -> Changed:
        """See `Registrar`."""
        return self._changed(self._registry.conclude(result, fence), fence)

    def compare(self, live: SampleLosses, twin: SampleLosses) -> Compared:
        """See `Registrar`."""
        return Compared(losses=self._registry.compare(live, twin), flops=self._registry.comparison_flops(live))

    def reset(self, probes: Mapping[str, ResetProbe], fence: int) -> Changed:
        """See `Registrar`."""
        return self._changed(self._registry.reset(probes, fence), fence)

    def state(self) -> str:
        """See `Registrar`."""
        return self._registry.state()

    def restore(self, state: str, generation: int) -> None:
        """See `Registrar`. Raises: StoreCorrupt."""
        self._registry.restore(state, generation)

    def order(self) -> InFlight | None:
        """See `Registrar`."""
        order = self._registry.order()
        if order is None:
            return None
        return InFlight(order=order, weights=self._registry.weights_of((*order.plans, *order.placebos)))

    def _carried_out(
        self, command_id: str, fence: int, probes: Sequence[CandidateProbe], observation: HostObservation | None
    ) -> Changed:
        changed = self._changed(self._registry.carry_out(command_id, fence, probes, observation), fence)
        return changed.model_copy(update={"command_id": command_id})

    def _changed(self, answer: Answer, fence: int) -> Changed:
        order = answer.order
        forks = (*order.plans, *order.placebos) if order is not None else ()
        grafts = [plan for plan in answer.plans if isinstance(plan, GraftPlan)]
        weights = self._registry.weights_of([*grafts, *forks])
        return Changed(answer=answer, view=self._registry.view(fence), weights=weights)
