"""The fields that readers need, for each kind of journal record.

A record without these fields is reported as damage, because this version of esper always writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esper.archive.journal import Entry, RecordKind
from esper.ground.problems import first_problem
from esper.leyline.base import Count
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.evidence import PairedLosses
from esper.leyline.finish import Finish
from esper.leyline.reports import GateReport
from esper.leyline.signals import Level


class _Said(BaseModel):
    """Base class of these fields. A record may have other fields, too."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Fenced(_Said):
    fence: Count


class _Blend(_Said):
    seed_id: str
    mode: str
    mean: float
    p95: float
    clamped: float | None


class _Round(_Fenced):
    step: Count
    train_loss: float
    losses: list[float]
    blends: list[_Blend] = []
    """Empty in records of versions that did not report blends."""


class _Failed(_Fenced):
    error: str
    trace_id: str


class _Signal(_Said):
    fence: Count = 0
    """The fence at which the signal was read. Older versions did not write it."""
    level: Annotated[int, Field(ge=min(Level), le=max(Level))]


class _Superseded(_Said):
    from_fence: Count | None
    lengths: Mapping[Annotated[str, Field(pattern=r"^[0-9]{1,18}$")], Count]


class _Restarted(_Said):
    actors: list[str]


class _Retention(_Said):
    keep: Annotated[int, Field(ge=2)]


class _Config(_Said):
    checkpoint: _Retention


class _Begun(_Said):
    config: _Config


class _Decision(_Said):
    policy_version: str


class _Transition(_Said):
    seed_id: str
    slot: str
    blueprint_id: str
    after: str


class _Command(_Said):
    command_id: str
    seed_id: str = ""
    rate_scale: float | None = None
    """Older versions did not write this field."""


class _Applied(_Said):
    command_id: str


class _Adopted(_Said):
    command_id: str
    seed_id: str
    fence: int


class _Told(_Said):
    seed_id: str
    reasons: list[str]


class _Judged(_Said):
    """The report of a gate."""

    @model_validator(mode="before")
    @classmethod
    def _is_report(cls, body: object) -> object:
        """Raises: ValidationError: it is none."""
        GateReport.model_validate_json(json.dumps(body))
        return body


class _Fork(_Said):
    seed_id: str
    gate: PairedLosses | None


class _Incubation(_Said):
    forks: list[_Fork]


class _Ended(_Said):
    start_test_loss: float
    test_loss: float
    twin_test_loss: float | None
    why_none_stayed: str | None = None
    """Older versions did not write this field."""


SAID: Mapping[RecordKind, type[BaseModel]] = {
    RecordKind.RUN_STARTED: _Begun,
    RecordKind.RUN_RESUMED: _Begun,
    RecordKind.ROUND_ENDED: _Round,
    RecordKind.DECISION: _Decision,
    RecordKind.COMMAND: _Command,
    RecordKind.PLAN_APPLIED: _Applied,
    RecordKind.ADOPTED: _Adopted,
    RecordKind.FINISHED: Finish,
    RecordKind.FIELD_REPORT: _Told,
    RecordKind.GATE: _Judged,
    RecordKind.TRANSITION: _Transition,
    RecordKind.INCUBATION_ENDED: _Incubation,
    RecordKind.RUN_ENDED: _Ended,
    RecordKind.RUN_FAILED: _Failed,
    RecordKind.SIGNAL: _Signal,
    RecordKind.CHECKPOINT_BEGUN: _Fenced,
    RecordKind.CHECKPOINT_COMMITTED: CheckpointWritten,
    RecordKind.SUPERSEDED: _Superseded,
    RecordKind.ACTOR_RESTARTED: _Restarted,
}
"""The fields that readers need, by kind of record. Any JSON object is a valid record of the other kinds."""


def kept_newest(entry: Entry) -> int:
    """Return the number of checkpoints that a run retains, from the record of its start or resume."""
    return _Begun.model_validate(entry.body).config.checkpoint.keep


def misfit(entry: Entry) -> str:
    """Return, in one line, why this version cannot have written a record. Return an empty text if it can."""
    try:
        SAID.get(entry.kind, _Said).model_validate(entry.body)
    except ValidationError as error:
        return f"no journal record: {first_problem(error, entry.kind.name)}"
    return ""
