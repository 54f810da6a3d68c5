"""Tries a checkpoint before a run is taken over. It restores every part of the checkpoint into fresh components, then
discards them.

Checksums show only that a file has the bytes that were written. A trial shows that the components can read these bytes.
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
    """Tries the checkpoints of one run in components of this process. These components take no step of the run."""

    survey: Survey
    key: RunKey
    past: Past

    def __call__(self, written: CheckpointWritten, saved: FenceState) -> None:
        """Restore a checkpoint and let its optimizers take a step.

        Raises:
            StoreCorrupt, DependencyViolationError: a part of the checkpoint cannot be read, or contradicts another
                part.
            Exception: an exception of the user's code, raised while its state was loaded or in that step.
        """
        with temporary_rng(0):
            Context().run(
                self._try, written, saved
            )  # without telemetry, because events of the trial are not events of the run

    def _try(self, written: CheckpointWritten, saved: FenceState) -> None:
        line = LineState.of(saved)
        tamiyo = read_state(saved.states["tamiyo"], self.key.generation)
        slots = [spec.path for spec in self.survey.specs]
        run_id, generation = self.key.run_id, self.key.generation
        registry = registry_of(saved.states["kasmina"], run_id=run_id, generation=generation, slots=slots)
        check_agreement(written, saved, line, registry, tamiyo, self.past)
        kasmina = make_kasmina(self.survey, self.key, SystemClock())
        kasmina.restore(saved.states["kasmina"], self.key.generation)
        kasmina.view(written.fence)
        kasmina.order()
        trainer = make_trainer(self.survey, self.key)
        for host in (saved.host, saved.incubation["twin"], saved.incubation["origin"]):
            if host is not None:
                trainer.become(host)
                with self.survey.data.at(host.data):
                    trainer.try_update()
