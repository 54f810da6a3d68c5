"""What Tamiyo has learnt so far, as a value that a checkpoint carries. It decides nothing and reads no store."""

from __future__ import annotations

from pydantic import ValidationError

from esper.errors import StoreCorrupt
from esper.ground.problems import first_problem
from esper.leyline.base import Message
from esper.leyline.reports import FieldReport

WHERE = "tamiyo's state"


class TamiyoState(Message):
    """All of `Tamiyo` that decides what it will answer. A policy with a state of its own would have its place here."""

    policy: str
    """Its version: another one would decide otherwise."""
    past: tuple[FieldReport, ...]
    """What the policy sees of the past, oldest first."""


def read_state(text: str, generation: int) -> TamiyoState:
    """The state in a text that `Tamiyo.state` gave.

    Raises:
        StoreCorrupt: it is no such text, or speaks of a generation after `generation`.
    """
    try:
        state = TamiyoState.model_validate_json(text)
    except ValidationError as error:
        raise StoreCorrupt(WHERE, str(first_problem(error))) from error
    later = [report.report_id for report in state.past if report.generation > generation]
    if later:
        raise StoreCorrupt(WHERE, f"report {later[0]} is of a generation after {generation}")
    return state
