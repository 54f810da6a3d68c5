"""The state of Tamiyo in a checkpoint. It has the field reports for the policy."""

from __future__ import annotations

from pydantic import ValidationError

from esper.errors import StoreCorrupt
from esper.ground.problems import first_problem
from esper.leyline.base import Message
from esper.leyline.reports import FieldReport

WHERE = "tamiyo's state"
"""Name of this state in errors."""


class TamiyoState(Message):
    """The state of a `Tamiyo`. The policy's decisions depend on it. A policy with further state needs a field here."""

    policy: str
    """Version of the policy. `Tamiyo.restore` refuses another version, because its decisions may differ."""
    past: tuple[FieldReport, ...]
    """The field reports for the policy, oldest first."""


def read_state(text: str, generation: int) -> TamiyoState:
    """Parse the text that `Tamiyo.state` returned.

    Raises:
        StoreCorrupt: the text is not a state of Tamiyo, or it has a report of a generation after `generation`.
    """
    try:
        state = TamiyoState.model_validate_json(text)
    except ValidationError as error:
        raise StoreCorrupt(WHERE, str(first_problem(error))) from error
    later = [report.report_id for report in state.past if report.generation > generation]
    if later:
        raise StoreCorrupt(WHERE, f"report {later[0]} is of a generation after {generation}")
    return state
