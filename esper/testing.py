"""Small tasks and fakes, for tests of esper and of its users' code. Only tests may import this module."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from esper.config.joined import RunConfig, load_config
from esper.flow.progress import Quiet
from esper.flow.stopping import Drain
from esper.flow.tally import Tally
from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport
from esper.leyline.state import RoundState, SeedState
from esper.tasks.bands import SETTINGS, Bands, TinyHost, tiny_task

__all__ = [
    "EPOCH",
    "Bands",
    "FakeClock",
    "ScriptedPolicy",
    "StopAt",
    "TinyHost",
    "fail_with",
    "telling",
    "tiny_config",
    "tiny_task",
    "until",
]

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock whose time changes only if `move` is called."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        """Return the wall time, UTC."""
        return EPOCH + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        """Return the seconds since the clock was made."""
        return self.seconds

    def move(self, seconds: float) -> None:
        """Add seconds to the time. A negative number sets the time back."""
        self.seconds += seconds


def until(happened: Callable[[], object], every_s: float = 0.002) -> None:
    """Wait until another process or thread makes `happened` return a true value. An exception in `happened` ends the
    wait.

    There is no time limit here, because durations on a busy machine prove nothing. The general time limit of the test
    ends a hang.
    """
    while not happened():
        time.sleep(every_s)


def fail_with(error: BaseException, cause: BaseException | None = None) -> NoReturn:
    """Raise an error whose traceback ends in a file of esper."""
    raise error from cause


def telling(*names: str, **fields: object) -> Callable[[BaseException], bool]:
    """Return a `check` for `pytest.raises`. It checks that the error has fields with these values, and that its text
    contains the names.

    A field is compared by `==`; if the value is an `re.Pattern`, it must match a part of the field. A name is a text
    that the message must contain whatever its wording is, such as a figure, a path, a key or a part of an API. If the
    error has a field `mend`, it must not be empty. Raises `AssertionError`.
    """

    def check(error: BaseException) -> bool:
        for field, wanted in fields.items():
            found = getattr(error, field)
            same = wanted.search(str(found)) if isinstance(wanted, re.Pattern) else found == wanted
            assert same, f"{type(error).__name__}.{field} is {found!r}, expected {wanted!r}"
        text = str(error)
        assert not (left_out := [name for name in names if name not in text]), f"{left_out} not in: {text}"
        assert vars(error).get("mend") != "", f"{type(error).__name__} has no mend: {text}"
        return True

    return check


class ScriptedPolicy:
    """A policy that returns given answers in turn. If an answer is an exception, it is raised. `asked` has the states
    that the policy received.

    Args:
        logits: The logits for every seed.
    """

    name = "scripted"
    version = "scripted-1"

    def __init__(
        self,
        *answers: Any,  # Any: a Decision, an exception, or a function of (state, eligible)
        logits: tuple[float, ...] = (),
    ) -> None:
        self._answers, self._logits = list(answers), logits
        self.asked: list[RoundState] = []

    def decide(self, state: RoundState, eligible: tuple[Pair, ...], past: tuple[FieldReport, ...]) -> Decision:
        """Return or raise the next answer."""
        del past
        self.asked.append(state)
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        found: Decision = answer(state, eligible) if callable(answer) else answer
        return found

    def logits(self, state: RoundState, seed: SeedState, past: tuple[FieldReport, ...]) -> tuple[float, ...]:
        """Return the given logits."""
        del state, seed, past
        return self._logits


def tiny_config(**overrides: Any) -> RunConfig:  # Any: config values by dotted key with "__" for the dot
    """Return a config for `tiny_task`, with the values of `esper.tasks.bands.SETTINGS`.

    Deadlines are so long that a busy machine meets them. A test of a deadline sets a shorter deadline.
    """
    keys = {
        "policy.deadline_s": 60.0,
        "ray.start_deadline_s": 200.0,
        "checkpoint.fast_rollback_s": 600.0,
        "checkpoint.full_rollback_s": 600.0,
        **SETTINGS,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return load_config(None, keys)


class StopAt(Quiet):
    """A `Progress` that requests a stop at a given fence."""

    def __init__(self, fence: int) -> None:
        self.drain, self._fence = Drain(), fence

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Request a stop at the given fence."""
        del tally
        if state.fence == self._fence:
            self.drain.ask()
