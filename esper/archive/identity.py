"""`run.json`, the identity of a run. The file has the config, the versions, and digests of task, network and data."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from esper.archive.run_directory import no_run, refusing, run_file
from esper.config.joined import RunConfig
from esper.durable.files import atomic_write, read_small
from esper.errors import RunDirectoryError, StoreCorrupt
from esper.ground.hash_seed import text_hash
from esper.ground.installed_versions import VERSIONED, versions
from esper.ground.problems import first_problem
from esper.leyline.base import Message
from esper.leyline.slots import SlotSpec


class Identity(Message):
    """The content of `run.json`."""

    run_id: str
    generation: Annotated[int, Field(ge=1)]
    task: str
    task_file_sha256: str | None
    """SHA-256 of the file that defines the task. None if the task did not come from a file."""
    started_at: datetime
    config: RunConfig
    total_steps: Annotated[int, Field(ge=1)]
    fence_steps: Annotated[tuple[int, ...], Field(min_length=2)]
    """Optimizer step of each fence, in ascending order, from 0 to the last step."""
    slots: tuple[SlotSpec, ...]
    versions: dict[str, str]
    cpu: str
    """CPU type of the machine of this generation. Another type may change the bits of a run."""
    host_crc32c: int
    """CRC32C of the host's tensors before the first step."""
    host_modules_sha256: str | None = None
    """Digest of the host's modules, their classes and settings. None in older runs."""
    samples_crc32c: int
    trained_by: str
    argv: tuple[str, ...]
    started_in: str = ""
    """Working directory of the run. A relative path of a task is searched in this folder first. Empty: not known."""
    task_files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each module that was loaded from the task's folder, by its path in that folder. Empty in older
    runs."""
    first_loss: float | None = None
    """Loss of the first training step, in a process with this `cpu`. None in older runs."""
    rehearsed_crc32c: int | None = None
    """CRC32C of the weights after the survey's steps, in a run of `total_steps` on this `cpu`. None if training
    diverged, and in older runs."""
    hash_seed: int | None = None
    """`PYTHONHASHSEED` of the process that began the run. None if it was random, and in older runs."""
    text_hash: int | None = None
    """`hash` of a fixed text in that process. Another value means another order of sets. None in older runs."""
    batch_size: int | None = None
    """Samples of an optimizer step. None in older runs."""
    policy: str | None = None
    """Class and version of the policy of the run. None in older runs."""

    @property
    def orders_texts_otherwise(self) -> bool:
        """True if a set of texts may have another order in this process than in the process that began the run."""
        return self.text_hash not in (None, text_hash())

    @model_validator(mode="after")
    def _fences_rise(self) -> Self:
        """Raises: ValueError: the steps of the fences do not rise from 0 to the last step."""
        steps = self.fence_steps
        if steps[0] != 0 or steps[-1] != self.total_steps or any(one >= next for one, next in pairwise(steps)):
            raise ValueError(f"fence_steps must rise from 0 to total_steps = {self.total_steps}")
        return self

    def save(self, path: Path) -> None:
        """Write `run.json`, atomically."""
        atomic_write(run_file(path), self.model_dump_json(indent=1).encode())


def load_identity(path: Path) -> Identity:
    """Load `run.json`.

    Raises:
        RunDirectoryError: there is no `run.json`, or another version of esper wrote it.
        StoreCorrupt: the file is damaged, or esper did not write it.
    """
    file = run_file(path)
    with refusing("RUN", path):
        if not file.is_file():
            raise no_run(path)
    try:
        return identity_of(read_small(file))
    except OSError as error:
        raise StoreCorrupt(str(file), f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        _refuse_other_version(path)
        mend = "put it back from a copy (`esper snapshot` makes them)"
        raise StoreCorrupt(str(file), f"not a run.json of this version: {first_problem(error)}; {mend}") from error


def identity_of(text: str | bytes) -> Identity:
    """Return an identity from its JSON. Without `growth.preset` it is older than presets, so its preset is `none`.

    Raises:
        ValidationError: it is not JSON, or is not an identity of this version.
    """
    with suppress(ValueError, RecursionError, KeyError, TypeError):  # told by the validation below
        told = json.loads(text)
        if "preset" not in (growth := told["config"]["growth"]):
            growth["preset"] = "none"
            text = json.dumps(told)
    return Identity.model_validate_json(text)


def _refuse_other_version(path: Path) -> None:
    """Raises: RunDirectoryError: another version of esper wrote the unreadable `run.json`."""
    with suppress(ValueError, RecursionError):  # the file is not JSON, or is nested too deeply
        told = json.loads(read_small(run_file(path)))
        made = told.get("versions", {}) if isinstance(told, dict) else {}
        name = VERSIONED[0]
        if isinstance(made, dict) and made.get(name, versions()[name]) != versions()[name]:
            mend = f"made with {name} {made[name]} (here {versions()[name]}), whose runs this version does not read"
            raise RunDirectoryError("RUN", str(path), mend)
