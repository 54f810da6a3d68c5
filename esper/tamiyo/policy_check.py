"""Checks and names a user's policy before a run, so that a wrong policy is refused before anything is written."""

from __future__ import annotations

from esper.errors import ConfigError
from esper.leyline.base import is_utf8
from esper.leyline.ports import Policy
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.user_code.their_code import their_code

LONGEST_NAME = 512
"""Largest number of characters of a name or a version. The fields of a command have the same limit."""


def check_policy(policy: Policy) -> None:
    """Check that a policy has a name, a version and the method `decide`.

    The method `logits` is not required, because it is called only for seeds with a CONFIDENCE blend.

    Raises:
        ConfigError: one of them is missing or has a wrong type. If a property of the policy raised an exception, this
            exception is the cause of the error.
    """
    if isinstance(policy, type):
        raise ConfigError("policy", policy.__name__, f"give an object of the class: {policy.__name__}(...)")
    kind = type(policy).__name__
    for field in ("name", "version"):
        try:
            with their_code("policy", field):
                value: object = getattr(policy, field)
        except Exception as error:
            raise ConfigError("policy", kind, f"it has no readable attribute {field!r}; give it one, a text") from error
        if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not is_utf8(value):
            raise ConfigError(f"policy.{field}", value, f"give a text of 1 to {LONGEST_NAME} characters")
    if not (hasattr(policy, "decide") and callable(policy.decide)):
        mend = "it has no method decide(state, eligible, past); see esper.leyline.ports.Policy"
        raise ConfigError("policy", kind, mend)


def policy_in_words(policy: Policy | None) -> str:
    """Return the class and the version of a policy. None: the policy that the config names.

    The class is included, because a subclass inherits the version. The name of its module does not count, because a
    file has another module name if it is run as a script.
    """
    decides = HeuristicPolicy if policy is None else type(policy)
    version = HeuristicPolicy.version if policy is None else policy.version
    return f"{decides.__qualname__}, version {version}"
