"""The identity of a run. It is written when the run begins. A resume compares the identity with the task."""

from __future__ import annotations

import math
import sys
from datetime import datetime
from typing import Any

from esper.archive.identity import Identity
from esper.errors import ConfigError, TaskError
from esper.flow.command_key import without_key_file, word_without_key_file
from esper.ground.hash_seed import VARIABLE, hash_seed, text_hash
from esper.ground.installed_versions import versions
from esper.ground.machine import cpu_type
from esper.ground.workplace import workplace
from esper.leyline.slots import SlotSpec
from esper.setup.survey import Survey
from esper.user_code.source_digests import file_digest, source_digests
from esper.user_code.task_reference import Reference

ROUNDING = 1e-3
"""Largest relative difference of two losses that count as the same if equal bits are not promised. Equal bits are not
promised on another type of processor, or on device cuda."""


def identify(
    survey: Survey, run_id: str, generation: int, reference: Reference, now: datetime, policy: str
) -> Identity:
    """Return the identity of a run that is about to start.

    Args:
        policy: Class and version of the policy of the run.
    """
    return Identity(
        run_id=run_id,
        generation=generation,
        task=reference.text,
        task_file_sha256=file_digest(reference),
        started_at=now,
        config=without_key_file(survey.config),
        total_steps=survey.total_steps,
        fence_steps=survey.fence_steps,
        slots=survey.specs,
        versions=versions(),
        cpu=cpu_type(),
        host_crc32c=survey.host_crc32c,
        host_modules_sha256=survey.host_modules_sha256,
        samples_crc32c=survey.samples_crc32c,
        trained_by=survey.trained_by,
        argv=tuple(_shown(word) for word in sys.argv),
        started_in=str(workplace()) if reference.text else "",
        task_files=source_digests(reference),
        first_loss=survey.first_loss,
        rehearsed_crc32c=survey.rehearsed_crc32c,
        hash_seed=hash_seed(),
        text_hash=text_hash(),
        batch_size=survey.data.batch_size,
        policy=policy,
    )


def _shown(word: str) -> str:
    """Return a word of the command line as `run.json` shows it to people."""
    return word_without_key_file(word).encode("utf-8", "backslashreplace").decode()


def check_same_policy(policy: str, began: Identity) -> None:
    """Raises: ConfigError: another class or version of a policy has decided for the run."""
    if began.policy not in (None, policy):
        mend = f"{began.policy}, has decided for this run; resume it with that policy: on=...(policy=...)"
        raise ConfigError("policy", policy, mend)


def check_same_task(survey: Survey, began: Identity) -> None:
    """Raises: TaskError: the task's network, data or training differ from those at the beginning of the run."""
    mend = "resume it with the task that the run began with; each build of the task must be the same"
    if began.orders_texts_otherwise:
        mend = f"{mend}; {_how_to_hash_alike(began)}"
    if survey.specs != began.slots and _without_masks(survey.specs) == _without_masks(began.slots):
        how = "its slots are given other padding masks than when the run began, or its esper did not look for them"
        raise TaskError("task.model", began.task or "given from Python", f"{how}; {mend}")
    other = began.host_modules_sha256 not in (None, survey.host_modules_sha256)
    if other or (survey.host_crc32c, survey.specs) != (began.host_crc32c, began.slots):
        raise TaskError(
            "task.model",
            began.task or "given from Python",
            f"it builds another network than the run began with; {mend}",
        )
    if survey.trained_by != began.trained_by:
        mend = f"it is trained by {survey.trained_by}, and was by {began.trained_by}; {mend}"
        raise TaskError("task.optimizer", began.task or "given from Python", mend)
    if survey.samples_crc32c != began.samples_crc32c:
        mend = f"the first samples of a shard differ from those of the run; {mend}"
        raise TaskError("task.train", began.task or "given from Python", mend)
    if began.first_loss is not None and not same_loss(survey.first_loss, began):
        mend = f"its first step has a loss of {survey.first_loss!r}, and had {began.first_loss!r}; {mend}"
        raise TaskError("task", began.task or "given from Python", mend)
    if not _same_rehearsal(survey, began):
        mend = f"after the same first steps it has other weights than the run had; {mend}"
        raise TaskError("task", began.task or "given from Python", mend)


def _without_masks(slots: tuple[SlotSpec, ...]) -> tuple[SlotSpec, ...]:
    return tuple(slot.model_copy(update={"padding": None}) for slot in slots)


def measured_again(survey: Survey, began: Identity) -> dict[str, Any]:
    """Return the results of the rehearsal, for `run.json`, if the results of the run are of another length or another
    type of processor. The next resume is then compared with a run of its own length and processor.
    """
    if (survey.total_steps, cpu_type()) == (began.total_steps, began.cpu):
        return {}
    return {"first_loss": survey.first_loss, "rehearsed_crc32c": survey.rehearsed_crc32c}


def _same_rehearsal(survey: Survey, began: Identity) -> bool:
    """Return whether the rehearsal gave the same weights as when the run began. Return True if the weights cannot be
    compared: if equal bits are not promised, or if the run has another length and so another schedule.
    """
    promised = began.config.run.device == "cpu" and began.cpu == cpu_type()
    if began.rehearsed_crc32c is None or not promised or survey.total_steps != began.total_steps:
        return True
    return survey.rehearsed_crc32c == began.rehearsed_crc32c


def _how_to_hash_alike(began: Identity) -> str:
    """Return what a user can do if sets of texts have another order than in the process that began the run."""
    start = f"start it with {VARIABLE}={began.hash_seed}" if began.hash_seed is not None else f"no {VARIABLE} was set"
    return f"a set of texts has another order here ({start}): sort it where the order matters"


def same_loss(now: float | None, began: Identity) -> bool:
    """Return whether two first losses are the same.

    On device cpu and the same type of processor they must have the same bits. Otherwise they may differ by `ROUNDING`.
    """
    before = began.first_loss
    if now is None or before is None or (began.config.run.device == "cpu" and began.cpu == cpu_type()):
        return now == before
    return math.isclose(now, before, rel_tol=ROUNDING)
