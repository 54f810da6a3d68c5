"""Tries a checkpoint before a run is taken over: restores every part of it into fresh components, then discards them.

Checksums show that a file has the bytes that were written. Only the components can show that they can read them.
"""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass

from esper.archive.history import Past
from esper.flow.agreement import check_agreement
from esper.flow.checkpoints import FenceState
from esper.flow.position import LineState
from esper.ground.clock import SystemClock
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.registry.registry_state import read_state as registry_of
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.setup.assembly import RunKey, make_kasmina, make_trainer
from esper.setup.survey import Survey
from esper.tamiyo.policy_state import read_state


@dataclass(frozen=True)
class TrialRestore:
    """Tries the checkpoints of one run in components of this process, which take no step of the run."""

    survey: Survey
    key: RunKey
    past: Past

    def __call__(self, written: CheckpointWritten, kept: FenceState) -> None:
        """Restore a checkpoint and let its optimizers take a step.

        Raises:
            StoreCorrupt, DependencyViolationError: a part of it cannot be read, or contradicts another.
            Exception: the exception of a part of the task, raised while it loaded its state or in that step.
        """
        with temporary_rng(0):
            Context().run(self._try, written, kept)  # without telemetry: events here are not events of the run

    def _try(self, written: CheckpointWritten, kept: FenceState) -> None:
        line = LineState.of(kept)
        read_state(kept.states["tamiyo"], self.key.generation)
        slots = [spec.path for spec in self.survey.specs]
        run_id, generation = self.key.run_id, self.key.generation
        registry = registry_of(kept.states["kasmina"], run_id=run_id, generation=generation, slots=slots)
        check_agreement(written, kept, line, registry, self.past)
        kasmina = make_kasmina(self.survey, self.key, SystemClock())
        kasmina.restore(kept.states["kasmina"], self.key.generation)
        kasmina.view(written.fence)
        kasmina.order()
        trainer = make_trainer(self.survey, self.key)
        for host in (kept.host, kept.incubation["twin"], kept.incubation["origin"]):
            if host is not None:
                trainer.become(host)
                with self.survey.data.at(host.data):
                    trainer.try_update()
