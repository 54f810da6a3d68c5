"""Alters messages as a faulty or hostile sender does: a command of Tamiyo, or the trainer's observation of the host."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from esper.errors import ConfigError
from esper.ground.problems import first_problem
from esper.ground.suggest import existing_names
from esper.leyline.base import Message
from esper.leyline.commands import Command, Operation, sign
from esper.leyline.evidence import HostObservation, SeedObservation

M = TypeVar("M", bound=Message)
Fields = Mapping[str, JsonValue]

ANY_COMMAND = Command(
    generation=1,
    issued_at=datetime(2000, 1, 1, tzinfo=UTC),
    issued_by="",
    operation=Operation.CULL,
    feature_coverage=1.0,
    policy_version="",
    nonce="",
)
ANY_SEED = SeedObservation(
    seed_id="",
    slot="",
    alpha=0.0,
    alpha_target=1.0,
    calls=0,
    output_shape=None,
    output_dtype=None,
    device=None,
    path=None,
    asked_dtype="",
    asked_device="",
    asked_path="",
    isolated=True,
    parameter_bytes=0,
)
ANY_OBSERVATION = HostObservation(fence=0, registered_layers=(), seeds=(ANY_SEED,))
PASSING: Mapping[str, Message] = {
    "kasmina.evidence": ANY_OBSERVATION,
    "kasmina.receive": ANY_COMMAND,
    "tamiyo.command": ANY_COMMAND,
}
"""The points that a message passes, with a message of its class."""


def altered(message: M, fields: Fields) -> M:
    """Return the message with other values of some fields. A command keeps its signature, unless it is one of them.

    Each seed of an observation gets the values of the fields that a seed has.
    """
    if not isinstance(message, HostObservation):
        return _with(message, fields)
    own = {name: value for name, value in fields.items() if name in HostObservation.model_fields}
    of_seeds = {name: value for name, value in fields.items() if name not in own}
    seeds = tuple(_with(seed, of_seeds) for seed in message.seeds)
    return _with(message.model_copy(update={"seeds": seeds}), own)


def _with(message: M, fields: Fields) -> M:
    return type(message).model_validate_json(json.dumps({**message.model_dump(mode="json"), **fields}))


def forged(command: Command) -> Command:
    """Return the command signed with a random key."""
    return command.model_copy(update={"signature": sign(command, secrets.token_bytes(32))})


def check_fields(point: str, fields: Fields) -> None:
    """Raises: ConfigError: the message of the point does not have a field, or the field cannot have the value."""
    known = set(type(PASSING[point]).model_fields) if point in PASSING else set()
    if point == "kasmina.evidence":
        known = {*known - {"seeds"}, *SeedObservation.model_fields}
    for name in fields:
        if name not in known:
            raise ConfigError("faults.fields", name, f"no such field; {existing_names(name, known)}")
    try:
        if fields:
            altered(PASSING[point], fields)
    except ValidationError as error:
        first = first_problem(error)
        place = ".".join(map(str, first.place))
        raise ConfigError(f"faults.fields.{place}", first.value, first.message) from error
