"""Checks whether a run can be resumed, and loads its directory, history, task and config. It runs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from esper.archive.history import Past, read_past, settled_past
from esper.archive.identity import Identity, identity_of
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import RunDirectory, run_file, summary_file
from esper.archive.summary import Summary
from esper.config.joined import RunConfig, description, flattened, load_config
from esper.errors import ConfigError, RunDirectoryError, StoreCorrupt, TaskError
from esper.ground.hash_seed import VARIABLE, hash_seed
from esper.ground.installed_versions import versions
from esper.ground.problems import first_problem
from esper.task import Task
from esper.user_code.source_digests import changed_source, file_digest
from esper.user_code.task_reference import Reference, given_task, import_task, locate

MAY_CHANGE = frozenset(
    {
        "run.epochs",
        "growth.managers",
        "policy.deadline_s",
        "checkpoint.every_rounds",
        "checkpoint.keep",
    }
)
FIXED = frozenset({"emergency.calm_fences"})
"""Config keys that a resume may not change, although it may change other keys of their tables (see below). These keys
change the bits of a run."""
MAY_CHANGE_WHOLLY = ("ray.", "telemetry.", "emergency.", "supervision.", "failure_policy.")
"""Tables and keys of the config that a resume may change. Of these only `run.epochs` changes the bits of a run."""
SEALED = (
    "run_id",
    "task_file_sha256",
    "task_files",
    "slots",
    "host_crc32c",
    "host_modules_sha256",
    "samples_crc32c",
    "trained_by",
    "first_loss",
    "rehearsed_crc32c",
    "hash_seed",
    "text_hash",
)
"""Other fields that must be equal in `run.json` and the journal. The path of the task's file may differ."""
REHEARSED = frozenset({"first_loss", "rehearsed_crc32c"})
"""Fields of `SEALED` that a resume measures again if the run has another length or another type of processor."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Resumable:
    """A run that can be resumed. Its directory is claimed by this process."""

    directory: RunDirectory
    past: Past
    task: Task
    reference: Reference
    config: RunConfig


@dataclass(frozen=True)
class Ended:
    """A run that has ended and is not made longer. `config` has the new values of the resume."""

    summary: Summary
    identity: Identity
    config: RunConfig


@contextmanager
def resumed(
    run_dir: Path, task: Task | str | None, settings: Mapping[str, object], broken: Path | None = None
) -> Iterator[Resumable | Ended]:
    """Return a context that claims a run's directory and loads everything that a resume needs.

    It yields the run.

    Args:
        task: The task or its reference. Needed only if `run.json` has no reference to it.
        settings: New config values by dotted key.

    Raises:
        RunDirectoryError: the directory has no run, is in use, or has a run of other versions.
        TaskError: the task cannot be found, or has changed since the run began.
        ConfigError: a key may not be changed, or its value is wrong. Nothing was written.
    """
    read_past(run_dir)  # checked before the lease writes a file into the directory
    with RunDirectory.reopen(run_dir) as directory:
        past = settled_past(run_dir)
        check_sealed(run_dir, past)
        identity = past.identity
        config = _config(identity, settings, broken)
        last = past.entries[-1] if past.entries else None
        if last is not None and last.kind is RecordKind.RUN_ENDED and config.run.epochs == identity.config.run.epochs:
            yield Ended(_result(run_dir, last), identity, config)
            return
        check_versions(run_dir, identity)
        found, reference = task_for(identity, task)
        yield Resumable(directory, past, found, reference, config)


def _result(run_dir: Path, ended: Entry) -> Summary:
    """Return the summary of a run that has ended. Write `summary.json` again if it is missing."""
    result = _read(Summary.model_validate_json, ended, run_dir)
    if not summary_file(run_dir).exists():
        result.save(run_dir)
    return result


def _config(identity: Identity, settings: Mapping[str, object], broken: Path | None) -> RunConfig:
    before = flattened(identity.config)
    used = {"run.batch_size": identity.batch_size, "run.round_steps": identity.fence_steps[1]}
    own = {key: value for key, value in used.items() if before[key] is None and type(value) is int}
    # a key that was not set has the value of the task, which may be given again
    settings = {key: value for key, value in settings.items() if (key, value) not in own.items() or value is True}
    config = load_config(None, {**before, **settings}, broken)
    changed = [key for key, value in flattened(config).items() if before[key] != value]
    fixed = [key for key in changed if _is_fixed(key)]
    if fixed:
        others = f"; so are {', '.join(fixed[1:])}" if fixed[1:] else ""
        was = _was(fixed[0], before, own)
        mend = f"it is fixed since the run began, as {was}{others}; leave it out, or begin a new run"
        raise ConfigError(fixed[0], settings[fixed[0]], mend)
    if config.run.round_steps is None:  # otherwise the fences of a longer run would be at other steps
        config = config.model_copy(
            update={"run": config.run.model_copy(update={"round_steps": identity.fence_steps[1]})}
        )
    return config


def _was(key: str, before: Mapping[str, object], own: Mapping[str, object]) -> str:
    """Return the value that a run used for a key. For a key that was not set, it is the task's own value, if this is
    known, or else the description of the key, which names the default.
    """
    if before[key] is not None:
        return repr(before[key])
    return f"{own[key]!r}, which the task gave" if key in own else f"not set ({description(key)})"


def check_sealed(run_dir: Path, past: Past) -> None:
    """Raises: StoreCorrupt: `run.json` and the journal have different values of a field that never changes in a run."""
    starts = [entry for entry in past.entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)]
    if not starts:
        return
    sealed = _read(identity_of, starts[-1], run_dir)
    before, now = _settled(sealed), _settled(past.identity)
    other = [
        f"{key} = {now[key]!r}, in the journal {before[key]!r}"
        for key in before
        if before[key] != now[key] and _is_fixed(key)
    ]
    again = (sealed.total_steps, sealed.cpu) != (past.identity.total_steps, past.identity.cpu)
    for name in (one for one in SEALED if not (again and one in REHEARSED)):
        if getattr(sealed, name) != getattr(past.identity, name):
            other.append(f"{name} = {getattr(past.identity, name)!r}, in the journal {getattr(sealed, name)!r}")
    if other:
        mend = "put it back from a copy (`esper snapshot` makes them)"
        raise StoreCorrupt(str(run_file(run_dir)), f"does not agree with the journal: {'; '.join(other)}; {mend}")


def _read(parse: Callable[[str], M], entry: Entry, run_dir: Path) -> M:
    """Raises: StoreCorrupt: a record does not have the fields of its kind."""
    try:
        return parse(json.dumps(entry.body))
    except ValidationError as error:
        reason = f"its journal holds a record of another version: {first_problem(error, entry.kind.name)}"
        raise StoreCorrupt(str(run_dir), reason) from error


def _settled(identity: Identity) -> dict[str, object]:
    """Return the config by dotted key. It contains the length of a round even if the task set this length, because a
    resume stores the length in the config.
    """
    chosen = identity.config.run.round_steps
    round_steps = chosen if chosen is not None else identity.fence_steps[1]
    return {**flattened(identity.config), "run.round_steps": round_steps}


def _is_fixed(key: str) -> bool:
    return key in FIXED or (key not in MAY_CHANGE and not key.startswith(MAY_CHANGE_WHOLLY))


def check_versions(run_dir: Path, identity: Identity) -> None:
    """Check the versions, and `PYTHONHASHSEED` if it was set. Other versions, or another hash seed, change the bits of
    a run.

    Raises:
        RunDirectoryError: other versions of the packages are installed here.
        ConfigError: this process has another fixed `PYTHONHASHSEED` than the run.
    """
    now = versions()
    other = {name: made for name, made in identity.versions.items() if now.get(name) != made}
    if other:
        told = ", ".join(f"{name} {made} (here {now.get(name)})" for name, made in other.items())
        raise RunDirectoryError("RUN", str(run_dir), f"made with {told}: other versions give other bits; install those")
    if identity.hash_seed is not None and hash_seed() not in (None, identity.hash_seed):
        mend = f"the run began with {identity.hash_seed}, and sets of texts have another order here"
        raise ConfigError(VARIABLE, hash_seed(), f"{mend}: start this command with {VARIABLE}={identity.hash_seed}")


def task_for(identity: Identity, given: Task | str | None) -> tuple[Task, Reference]:
    """Return the task of a run and its reference. The reference of a task that was given as an object is empty: on
    actors this task is sent, and no file is compared.

    Args:
        given: The task of a caller, or the reference of a caller. None: the run's own reference is used.

    Raises:
        TaskError: see `load_same_task` and `given_task`.
    """
    if given is None:
        return load_same_task(identity)
    return given_task(given)


PUT_BACK = "; put the file back as it was, or begin a new run"


def load_same_task(identity: Identity) -> tuple[Task, Reference]:
    """Load the task of a run from its reference. The code of a changed file is not executed.

    Raises:
        TaskError: there is no reference, or the file was removed or changed.
    """
    if not identity.task:
        mend = "run.json has no reference to it; give it: --task file.py:name, from Python task="
        raise TaskError("task", "", mend)
    located = locate(identity.task, identity.started_in)
    if located.file is None and identity.task_file_sha256 is not None:
        raise TaskError("task", identity.task, "its module is not on the import path; run in the folder of the module")
    _check_same_file(identity, located)
    task, reference = import_task(located)
    _check_same_file(identity, reference)
    return task, reference


def _check_same_file(identity: Identity, reference: Reference) -> None:
    """Raises: TaskError: a task's file, or a module in its folder, has changed since the run began."""
    if reference.file is not None and file_digest(reference) != identity.task_file_sha256:
        raise TaskError("task", identity.task, f"its file has changed since the run began ({reference.file}){PUT_BACK}")
    if (other := changed_source(reference, identity.task_files)) is not None:
        raise TaskError("task", identity.task, f"a module of it has changed since the run began ({other}){PUT_BACK}")
