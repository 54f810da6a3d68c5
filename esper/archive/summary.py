"""What a run came to, and what became of each seed. What was not measured is absent, never made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from esper.archive.recovery_record import Recovery
from esper.archive.run_directory import summary_file
from esper.durable.files import atomic_write
from esper.errors import all_notes, in_a_line, text_of
from esper.ground.strict_json import strict_json
from esper.leyline.base import Message
from esper.leyline.state import SeedState
from esper.setup.growth_log import GrowthLog


class SeedFate(Message):
    """What became of one seed. `gain` and `z` are G2's; None if never judged there."""

    seed_id: str
    slot: str
    blueprint: str
    stage: str
    gain: float | None
    z: float | None
    replica_of: str | None
    parameters: int


class Summary(BaseModel):
    """What a run came to, as `--json`, `summary.json` and the journal have it.

    Losses are means over the whole shard; times are in seconds.
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
    """What the host alone reached; None where the run kept no twin."""
    test_metrics: dict[str, float]
    params_start: int
    params_end: int
    seeds: tuple[SeedFate, ...]
    trainer_gflops: float
    incubator_gflops: float
    twin_gflops: float
    steps_per_s: float
    fence_wait_s: float
    checkpoint_s: float
    """Spent at fences until training could go on while a checkpoint was written."""
    wall_s: float
    """Of the process that brought it to its end."""
    resumes: int
    restarts: int
    rollbacks: int
    fallbacks: int
    weights_sha256: str
    twin_weights_sha256: str | None
    trace_id: str
    growth: GrowthLog = GrowthLog()
    """What was tried and what refused it."""
    why_none_stayed: str | None = None
    """In words, where no seed is in the network at the end."""
    recoveries: tuple[Recovery, ...] = ()
    """From deaths of actors, in the process that brought it to its end."""
    fault_fired: bool | None = None
    """All faults that were armed have fired; None, and not in the JSON, where none were."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, for the journal, `--json` and `summary.json`; a figure may be not finite."""
        return self.model_dump(mode="json", exclude={"fault_fired"} if self.fault_fired is None else None)

    def save(self, path: Path) -> None:
        """Write `summary.json`, atomically; see `esper.ground.strict_json` for figures that are not finite."""
        atomic_write(summary_file(path), strict_json(self.as_json(), indent=1).encode())


def fate(seed: SeedState) -> SeedFate:
    """A seed's record as people read it."""
    return SeedFate(
        seed_id=seed.seed_id,
        slot=seed.slot,
        blueprint=seed.blueprint_id,
        stage=str(seed.stage),
        gain=seed.gain,
        z=seed.z,
        replica_of=seed.replica_of,
        parameters=seed.parameters,
    )


def failure(error: BaseException) -> dict[str, Any]:
    """An error as the journal and `--json` say it: its class, its message, its cause, its notes."""
    return {
        "error": type(error).__name__,
        "message": text_of(error),
        "cause": in_a_line(error.__cause__) if error.__cause__ is not None else "",
        "notes": list(all_notes(error)),
    }
