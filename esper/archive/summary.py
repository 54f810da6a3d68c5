"""The result of a run and of each seed. A value that was not measured is absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from esper.archive.recovery_record import Recovery
from esper.archive.run_directory import summary_file
from esper.durable.files import atomic_write
from esper.errors import all_notes, in_a_line, text_of
from esper.ground.strict_json import strict_json
from esper.leyline.base import GrownMessage
from esper.leyline.finish import Finish
from esper.leyline.state import SeedState
from esper.setup.growth_log import GrowthLog
from esper.setup.verdicts import Verdict


class SeedFate(GrownMessage):
    """The outcome of one seed. `gain` and `z` were measured at gate G2. They are None if G2 did not judge the seed."""

    LATER: ClassVar = frozenset({"copies", "g2"})

    seed_id: str
    slot: str
    blueprint: str
    stage: str
    gain: float | None
    z: float | None
    replica_of: str | None
    parameters: int
    copies: int = 1
    """Number of modules of the blueprint in the seed."""
    g2: Verdict | None = None
    """The last judgement by G2, with its limits. None: there was none, or an older version made it."""


class Summary(BaseModel):
    """The result of a run, as in `--json`, `summary.json` and the journal. Times are in seconds. A loss is computed
    over the whole shard, or is a mean over evaluation batches; see docs/figures.md.
    """

    model_config = ConfigDict(frozen=True)

    run_dir: str
    task: str
    seed: int
    threads: int
    workers: int
    rounds: int
    steps: int
    test_loss: float
    valid_loss: float
    start_test_loss: float
    twin_test_loss: float | None
    """Test loss of the twin, the host without seeds. None if the run had no twin."""
    test_metrics: dict[str, float]
    params_start: int
    params_end: int
    seeds: tuple[SeedFate, ...]
    trainer_gflops: float
    incubator_gflops: float
    twin_gflops: float
    steps_per_s: float
    training_s: float | None = None
    """Seconds of the rounds of the whole run. None in a summary of an older version."""
    fences_s: float | None = None
    """Seconds of the fences of the whole run, with waits and checkpoints. None in a summary of an older version."""
    fence_wait_s: float
    """Seconds in which the trainer waited at fences for forks and twin, in the whole run."""
    checkpoint_s: float
    """Seconds in which training waited at fences for checkpoints, in the whole run."""
    wall_s: float
    """Wall time of the process that finished the run. If the run was resumed, the whole run took longer."""
    resumes: int
    restarts: int
    rollbacks: int
    fallbacks: int
    weights_sha256: str
    twin_weights_sha256: str | None
    trace_id: str
    growth: GrowthLog = GrowthLog()
    """Counts of tournaments, refusals and holds."""
    why_none_stayed: str | None = None
    """The reason why the network has no seed at the end, in a sentence. None: it has seeds."""
    left_out_by_budgets: dict[str, tuple[str, ...]] = {}
    """Key of a budget -> the candidates that the run never tried because they exceed it, as "BLUEPRINT at SLOT"."""
    ends_with: Literal["live", "twin"] = "live"
    """The network of the run, to which `test_loss`, `valid_loss`, `test_metrics`, `params_end` and `weights_sha256`
    belong: the live host, or the twin if `growth.finish` is `better` and the twin was better."""
    finish: Finish | None = None
    """The choice of the network, with the losses that decided. None: `growth.finish` is `live`."""
    live_test_loss: float | None = None
    """Test loss of the live host. None: `growth.finish` is `live`, so `test_loss` is this loss."""
    recoveries: tuple[Recovery, ...] = ()
    """Recoveries from deaths of actors, in the process that finished the run."""
    fault_fired: bool | None = None
    """True if every armed fault has fired. None: no fault was armed, and the JSON does not have this field."""
    faults_missed: tuple[str, ...] | None = None
    """A line for each armed fault that fired less often than its `times`. None: no fault was armed, and the JSON does
    not have this field."""

    def as_json(self) -> dict[str, Any]:
        """Return JSON values for the journal, `--json` and `summary.json`. A figure may be infinite or NaN."""
        unarmed = {name for name in ("fault_fired", "faults_missed") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unarmed)

    def save(self, path: Path) -> None:
        """Write `summary.json`, atomically. For infinite figures and NaN see `esper.ground.strict_json`."""
        atomic_write(summary_file(path), strict_json(self.as_json(), indent=1).encode())


def fate(seed: SeedState, verdict: Verdict | None = None) -> SeedFate:
    """Return the outcome of a recorded seed, with its judgement by G2."""
    return SeedFate(
        seed_id=seed.seed_id,
        slot=seed.slot,
        blueprint=seed.blueprint_id,
        stage=str(seed.stage),
        gain=seed.gain,
        z=seed.z,
        replica_of=seed.replica_of,
        parameters=seed.parameters,
        copies=seed.copies,
        g2=verdict,
    )


def failure(error: BaseException) -> dict[str, Any]:
    """Return an error as JSON values for the journal and `--json`: class, message, cause, notes."""
    return {
        "error": type(error).__name__,
        "message": text_of(error),
        "cause": in_a_line(error.__cause__) if error.__cause__ is not None else "",
        "notes": list(all_notes(error)),
    }
