"""Sends a user's policy to the processes that decide: the policy's actor and its spare.

The policy is pickled once, before the run. Each new process makes the policy from the same bytes, even after a death or
a resume. So if a policy changes an attribute of itself, the change is lost when the process ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray import cloudpickle

from esper.errors import ConfigError
from esper.leyline.ports import Policy
from esper.tamiyo.policy_check import check_policy


@dataclass(frozen=True)
class SentPolicy:
    """A policy as bytes. The bytes contain the class, or only its name if the class can be imported."""

    pickled: bytes
    name: str

    @classmethod
    def of(cls, policy: Policy) -> SentPolicy:
        """Pickle a policy, and unpickle it once as a test.

        Raises:
            ConfigError: the policy cannot be pickled or unpickled, or the result is not a policy.
        """
        check_policy(policy)
        try:
            pickled: bytes = cloudpickle.dumps(policy)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise _refused(policy.name, "cannot be sent to actors", error) from error
        sent = cls(pickled, policy.name)
        check_policy(sent.load())
        return sent

    def load(self) -> Policy:
        """Make the policy in this process. Load the task first, because the task and the policy may be in one module.

        Raises:
            ConfigError: the policy cannot be made here.
        """
        try:
            made: Policy = cloudpickle.loads(self.pickled)
        except Exception as error:
            raise _refused(self.name, "cannot be made again in an actor", error) from error
        return made


def _refused(name: str, what: str, error: Exception) -> ConfigError:
    return ConfigError("policy", name, f"it {what} ({error}); make it picklable, or run it in one process")
