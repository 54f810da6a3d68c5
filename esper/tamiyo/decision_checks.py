"""Checks a policy's decision before Tamiyo carries it out. Each check returns the problem, or None."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from esper.ground.problems import first_problem
from esper.leyline.base import Message
from esper.leyline.decisions import Decision
from esper.leyline.state import RoundState

Problem = tuple[str, str]
"""(description of the problem, the values that show it)."""


def malformed(decision: Decision) -> Problem | None:
    """Check the type and the bounds of every field again. `model_copy` and `model_construct` do not check them."""
    try:
        _checked(decision)
    except ValidationError as error:
        return "a malformed decision", str(first_problem(error))
    return None


def unsound(decision: Decision, state: RoundState) -> Problem | None:
    """Check that the fields of a well-formed decision agree with each other and with the state."""
    if decision.fence != state.fence:
        return "a decision for another fence", f"{decision.fence}, here {state.fence}"
    figures = [value for value in (decision.risk, *decision.logits) if value is not None]
    if not all(map(math.isfinite, figures)):
        return "a figure that is not finite", f"risk {decision.risk}, logits {decision.logits}"
    if decision.risk is not None and not 0 <= decision.risk <= 1:
        return "a risk outside [0, 1]", str(decision.risk)
    if decision.go_back_to is not None and (decision.pairs or decision.rates or decision.hold):
        return "other choices beside going back", f"to fence {decision.go_back_to}"
    if decision.hold and decision.pairs:
        return "both pairs and a hold", decision.hold
    seeds = [change.seed_id for change in decision.rates]
    if len(set(seeds)) != len(seeds):
        return "two rates for one seed", ", ".join(seeds)
    return None


def _checked(value: Any) -> Any:  # Any: the value of a field, perhaps of a wrong type
    """Validate every message in the value again, and return it. Raises: ValidationError."""
    if isinstance(value, Message):
        return type(value).model_validate({name: _checked(field) for name, field in vars(value).items()})
    return tuple(map(_checked, value)) if isinstance(value, tuple) else value
