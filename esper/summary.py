"""What a run was and what came of it: identity, tally, result. What was not measured is absent, never made up."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from esper.config import RunConfig
from esper.durable.files import atomic_write, read_small
from esper.errors import RunDirectoryError, StoreCorrupt, all_notes, text_of
from esper.growth_log import GrowthLog
from esper.hash_seed import hash_seed, text_hash
from esper.leyline.base import Message
from esper.leyline.slots import SlotSpec
from esper.leyline.state import SeedState
from esper.machine import cpu_type
from esper.problems import first_problem
from esper.prospect import Prospect
from esper.recovery import Recovery
from esper.references import Reference
from esper.run_directory import no_run, refusing, run_file, summary_file
from esper.strict_json import strict_json
from esper.workplace import workplace

VERSIONED = ("esper-runtime", "torch", "numpy", "pydantic", "scipy", "opentelemetry-sdk")


class Identity(Message):
    """`run.json`: all that makes a run this run."""

    run_id: str
    generation: Annotated[int, Field(ge=1)]
    task: str
    task_file_sha256: str | None
    """Digest of the file that defines the task; None where the task came from no file."""
    started_at: datetime
    config: RunConfig
    total_steps: Annotated[int, Field(ge=1)]
    fence_steps: Annotated[tuple[int, ...], Field(min_length=2)]
    """Optimizer steps at which the fences lie: from 0 up to the end, each later than the one before."""
    slots: tuple[SlotSpec, ...]
    versions: dict[str, str]
    cpu: str
    """Of the machine that the generation runs on."""
    host_crc32c: int
    """Of the host's tensors before its first step."""
    host_modules_sha256: str | None = None
    """Digest of the host's modules, their classes and settings. None in older runs."""
    samples_crc32c: int
    trained_by: str
    argv: tuple[str, ...]
    started_in: str = ""
    """Working directory of the run; the relative path of a task is looked for there first. Empty: not known."""
    task_files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each module that was loaded from the task's folder, by its path in it. Empty in older runs."""
    first_loss: float | None = None
    """Loss of the first training step. None in older runs."""
    rehearsed_crc32c: int | None = None
    """Of the weights after the survey's first steps. None where they diverged, and in older runs."""
    hash_seed: int | None = None
    """`PYTHONHASHSEED` of the process that began the run. None where it was random, and in older runs."""
    text_hash: int | None = None
    """What `hash` gave there for one text: another value is another order of sets. None in older runs."""

    @model_validator(mode="after")
    def _fences_rise(self) -> Self:
        """Raises: ValueError: the fences do not lead from step 0 to the last one."""
        steps = self.fence_steps
        if steps[0] != 0 or steps[-1] != self.total_steps or any(one >= next for one, next in pairwise(steps)):
            raise ValueError(f"fence_steps must rise from 0 to total_steps = {self.total_steps}")
        return self

    def save(self, path: Path) -> None:
        """Write `run.json`, atomically."""
        atomic_write(run_file(path), self.model_dump_json(indent=1).encode())


def identify(prospect: Prospect, run_id: str, generation: int, reference: Reference, now: datetime) -> Identity:
    """The identity of a run that is about to start."""
    return Identity(
        run_id=run_id,
        generation=generation,
        task=reference.text,
        task_file_sha256=file_digest(reference),
        started_at=now,
        config=prospect.config,
        total_steps=prospect.total_steps,
        fence_steps=prospect.fence_steps,
        slots=prospect.specs,
        versions=versions(),
        cpu=cpu_type(),
        host_crc32c=prospect.host_crc32c,
        host_modules_sha256=prospect.host_modules_sha256,
        samples_crc32c=prospect.samples_crc32c,
        trained_by=prospect.trained_by,
        argv=tuple(word.encode("utf-8", "backslashreplace").decode() for word in sys.argv),  # for people
        started_in=str(workplace()) if reference.text else "",
        task_files=source_digests(reference),
        first_loss=prospect.first_loss,
        rehearsed_crc32c=prospect.rehearsed_crc32c,
        hash_seed=hash_seed(),
        text_hash=text_hash(),
    )


def versions() -> dict[str, str]:
    """Of what a run's bits may depend on, as it is installed here."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED}}


def file_digest(reference: Reference) -> str | None:
    """SHA-256, in hex, of the file that defines a task; None where it came from no file."""
    return hashlib.sha256(reference.file.read_bytes()).hexdigest() if reference.file is not None else None


def source_digests(reference: Reference) -> dict[str, str]:
    """SHA-256, in hex, of each loaded module in the folder of a task, by its path in there, but of no script.

    Data files are not read, nor are modules that are installed or esper's own.
    """
    if reference.folder is None:
        return {}
    files = {file for name, file in reference.modules().items() if name != "__main__"}
    return {file.relative_to(reference.folder).as_posix(): _sha256(file) for file in sorted(files)}


def changed_source(reference: Reference, digests: Mapping[str, str]) -> Path | None:
    """The first file in the folder of a task that is missing or has changed; None: no file. Nothing is imported."""
    if reference.folder is None:
        return None
    files = ((reference.folder / place, digest) for place, digest in digests.items())
    return next((file for file, digest in files if not file.is_file() or _sha256(file) != digest), None)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_identity(path: Path) -> Identity:
    """What `run.json` says.

    Raises:
        RunDirectoryError: there is none, or it is another version's.
        StoreCorrupt: it is not one of ours.
    """
    file = run_file(path)
    with refusing("RUN", path):
        if not file.is_file():
            raise no_run(path)
    try:
        return Identity.model_validate_json(read_small(file))
    except OSError as error:
        raise StoreCorrupt(str(file), f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        _refuse_other_version(path)
        mend = "put it back from a copy (`esper snapshot` makes them)"
        raise StoreCorrupt(str(file), f"not a run.json of this version: {first_problem(error)}; {mend}") from error


def _refuse_other_version(path: Path) -> None:
    """Raises: RunDirectoryError: what cannot be read was written by another version of esper."""
    with suppress(ValueError, RecursionError):  # it is no JSON, or nested beyond reading
        told = json.loads(read_small(run_file(path)))
        made = told.get("versions", {}) if isinstance(told, dict) else {}
        name = VERSIONED[0]
        if isinstance(made, dict) and made.get(name, versions()[name]) != versions()[name]:
            mend = f"made with {name} {made[name]} (here {versions()[name]}), whose runs this version does not read"
            raise RunDirectoryError("RUN", str(path), mend)


Amount = Annotated[int, Field(ge=0, le=10**30)]
"""Far above what any run counts, and far below the largest float, in which sums are told."""
Elapsed = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Seconds."""


class TallyState(Message):
    """A tally as it is kept; see `Tally`."""

    steps: Amount
    trainer_flops: Amount
    incubator_flops: Amount
    incubator_steps: Amount
    training_s: Elapsed
    fences_s: Elapsed
    fence_wait_s: Elapsed
    checkpoint_s: Elapsed
    rollbacks: Amount
    growth: GrowthLog = GrowthLog()
    """Nothing in it where the state was kept by a version without it."""


class Tally:
    """Steps, modelled compute and measured seconds of a run so far."""

    def __init__(self) -> None:
        self.steps = 0
        self.trainer_flops = 0
        self.incubator_flops = 0
        self.incubator_steps = 0
        self.training_s = 0.0
        self.fences_s = 0.0
        self.fence_wait_s = 0.0
        self.checkpoint_s = 0.0
        self.rollbacks = 0
        self.growth = GrowthLog()

    def state(self) -> TallyState:
        """The tally as it is kept."""
        return TallyState(**vars(self))

    def restore(self, state: TallyState) -> None:
        """Go on counting from what was kept."""
        vars(self).update(dict(state))

    @contextmanager
    def training(self, steps: int, step_flops: int) -> Iterator[None]:
        """Around one round of the live host."""
        start = time.monotonic()
        yield
        self.training_s += time.monotonic() - start
        self.steps += steps
        self.trainer_flops += steps * step_flops

    @contextmanager
    def fence(self) -> Iterator[None]:
        """Around all that happens between two rounds."""
        start = time.monotonic()
        yield
        self.fences_s += time.monotonic() - start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the part of a fence in which the trainer waits for an incubation or for the twin."""
        start = time.monotonic()
        yield
        self.fence_wait_s += time.monotonic() - start

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Around the part of a fence in which the state of the run is copied."""
        start = time.monotonic()
        yield
        self.checkpoint_s += time.monotonic() - start

    @property
    def steps_per_s(self) -> float | None:
        """Trainer steps per second between fences; None before the first round."""
        return self.steps / self.training_s if self.training_s else None


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


class Result(BaseModel):
    """What a run came to. Losses are means over the whole shard; times are in seconds."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

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
    network: nn.Module | None = None
    """The grown network as `esper.load` gives it: an ordinary module in evaluation mode, its seeds a part of it.

    Not in the JSON; None where a run that had ended before was resumed.
    """

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, for the journal, `--json` and `summary.json`; a figure may be not finite."""
        return self.model_dump(mode="json", exclude=self._untold())

    def save(self, path: Path) -> None:
        """Write `summary.json`, atomically; see `esper.strict_json` for figures that are not finite."""
        atomic_write(summary_file(path), strict_json(self.as_json(), indent=1).encode())

    def _untold(self) -> set[str]:
        return {"network"} if self.fault_fired is not None else {"network", "fault_fired"}


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
        "cause": _in_a_line(error.__cause__) if error.__cause__ is not None else "",
        "notes": list(all_notes(error)),
    }


def _in_a_line(error: BaseException) -> str:
    lines = text_of(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
