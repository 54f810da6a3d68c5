"""Decides which actors restart after a death, and when there are too many deaths.

Reports change the states of the children. `Supervisor.take_plan` computes the next starts and ends from the states. So
a report that comes twice, late, or during a restart does not change the number of restarts.

Source: Erlang/OTP's supervisor (restart strategies, maximum restart intensity); esper added the check for progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, NoReturn

from esper.config.supervision_settings import FailurePolicy, SupervisionConfig
from esper.errors import ActorLost, RestartIntensityExceeded, text_of
from esper.ground.clock import Clock


class Strategy(StrEnum):
    """The children that restart when one of them dies."""

    ONE_FOR_ONE = "one_for_one"  # only the child that died
    ONE_FOR_ALL = "one_for_all"  # all children of its group


@dataclass(frozen=True)
class ChildSpec:
    """One actor under supervision."""

    name: str
    role: str
    group: str
    strategy: Strategy = Strategy.ONE_FOR_ONE


class State(StrEnum):
    """State of a child's process, as far as it is known."""

    STARTING = "starting"  # its process may or may not be running
    UP = "up"
    DOWN = "down"  # the child has no process
    STOPPED = "stopped"  # supervision has ended


class Life(NamedTuple):
    """One process of a child. `incarnation` is the number of the process, from 1."""

    name: str
    incarnation: int


@dataclass(frozen=True)
class RestartPlan:
    """The next changes: first end the processes in `stop`, in this order; then start the processes in `start`."""

    stop: tuple[Life, ...]
    start: tuple[Life, ...]


@dataclass(frozen=True)
class Restarted:
    """A death that led to a restart. If a group restarts together, only its first death is recorded.

    `incarnation` is the number of the dead process. `fence` is the last fence that the run had passed.
    """

    name: str
    role: str
    incarnation: int
    error: str
    detail: str
    fence: int


@dataclass(eq=False)
class _Unit:
    """A child, or a group that restarts together. Between a death and the next start, further deaths do not count."""

    name: str
    incarnation: int = 0
    due: bool = True  # the next plan starts this unit
    deaths_s: deque[float] = field(default_factory=deque)
    fence: int = 0
    at_fence: int = 0  # number of successive deaths at `fence`

    def die(self, now_s: float, fence: int, limits: SupervisionConfig) -> str | None:
        """Count one death. Return the reason if a limit is exceeded. None: the death is within the limits."""
        self.due = True
        self.deaths_s.append(now_s)
        while now_s - self.deaths_s[0] > limits.within_s:
            self.deaths_s.popleft()
        self.at_fence = self.at_fence + 1 if fence == self.fence else 1
        self.fence = fence
        if len(self.deaths_s) > limits.deaths:
            times = f"death {len(self.deaths_s)} of {self.name} within {limits.within_s:g} s"
            return f"{times}, and supervision.deaths allows {limits.deaths}"
        if self.at_fence >= limits.without_progress:
            times = f"death {self.at_fence} of {self.name} at fence {fence} with no later fence passed"
            return f"{times}, and supervision.without_progress stops at {limits.without_progress}"
        return None


class Supervisor:
    """The children of a run. Initially the start of every child is due.

    One thread at a time may call it; `RayCrew` ensures this with a lock. Call order: `take_plan`, then `started` or
    `start_failed` for each start of the plan, then `take_plan` again, until it returns None. `died` may be called at
    any time. If the run must stop, `take_plan` and every report of a death raise the error that stops it.
    """

    def __init__(
        self, specs: Sequence[ChildSpec], limits: SupervisionConfig, policy: FailurePolicy, clock: Clock
    ) -> None:
        """Set the children, in their start order.

        Raises:
            ValueError: a name occurs twice, or a group has two strategies.
        """
        strategies = {(spec.group, spec.strategy) for spec in specs}
        if len({spec.name for spec in specs}) < len(specs) or len(dict(strategies)) < len(strategies):
            raise ValueError("names of children must differ, and a group must have one strategy")
        as_one = {spec.group: _Unit(spec.group) for spec in specs if spec.strategy is Strategy.ONE_FOR_ALL}
        self._units = {s.name: as_one[s.group] if s.group in as_one else _Unit(s.name) for s in specs}
        self._specs, self._states = {spec.name: spec for spec in specs}, {spec.name: State.DOWN for spec in specs}
        self._limits, self._policy, self._clock = limits, policy, clock
        self._fence, self._unanswered = 0, list[Restarted]()
        self._verdict: BaseException | None = None
        self.records: list[Restarted] = []

    def state(self, name: str) -> State:
        """Return the state of a child."""
        return self._states[name]

    def lives(self) -> tuple[Life, ...]:
        """Return the present process of every child."""
        return tuple(map(self._life, self._states))

    def starting(self) -> tuple[Life, ...]:
        """Return the children that are starting, in order.

        A child is starting until `started` or `start_failed` is called for it.
        """
        return tuple(self._life(name) for name, state in self._states.items() if state is State.STARTING)

    def take_plan(self) -> RestartPlan | None:
        """Return the starts and ends that are due now. None: nothing is due.

        Raises:
            BaseException: the run must stop. The error is the one that `died` or `start_failed` raised.
        """
        if self._verdict is not None:
            raise self._verdict
        due = [name for name, unit in self._units.items() if unit.due]
        stop = tuple(self._life(name) for name in reversed(due) if self._states[name] is not State.DOWN)
        for unit in {self._units[name] for name in due}:
            unit.due, unit.incarnation = False, unit.incarnation + 1
        self._states |= dict.fromkeys(due, State.STARTING)
        self.records, self._unanswered = self.records + self._unanswered, []
        return RestartPlan(stop, tuple(map(self._life, due))) if due else None

    def started(self, life: Life) -> None:
        """Record that a child is up."""
        if self._is_current(life) and self._states[life.name] is State.STARTING:
            self._states[life.name] = State.UP

    def start_failed(self, life: Life, error: BaseException) -> None:
        """Record that a child did not come up. If `error` is a death, this has the effect of `died`.

        After another error the start is not repeated.

        Raises:
            BaseException: `error`, unchanged, if it is not a death. `[failure_policy]` does not apply to it.
            RestartIntensityExceeded: see `died`.
        """
        if isinstance(error, ActorLost):
            self.died(life, error)
        elif self._is_current(life) and not self._units[life.name].due:  # if a child is due, it restarts with its group
            self._stop_with(error)

    def died(self, life: Life, error: BaseException) -> None:
        """Record that a call of a child raised `error`.

        If `error` is a death that was not reported yet, a restart is due.

        Raises:
            BaseException: `error`, unchanged, if it is not a death, or if `[failure_policy]` says that the death stops
                the run.
            RestartIntensityExceeded: there were too many deaths, so the run must stop. `error` is its cause.
        """
        gone, restarts = isinstance(error, ActorLost), self._policy.restarts(error)
        if not gone and not restarts:
            raise error
        current = self._is_current(life)
        if current and gone:
            self._states[life.name] = State.DOWN
        if self._verdict is not None:
            raise self._verdict
        if not current or self._units[life.name].due:
            return
        if not restarts:
            self._stop_with(error)
        self._count(self._specs[life.name], error)

    def fence_passed(self, fence: int) -> None:
        """Record that the run passed a fence. It counts as progress only if no later fence was passed before."""
        self._fence = max(self._fence, fence)

    def stop(self) -> tuple[Life, ...]:
        """End supervision. Return the children that may have a process, the last started first."""
        alive = (State.STARTING, State.UP)
        lives = [self._life(name) for name, state in self._states.items() if state in alive]
        self._states, self._verdict = dict.fromkeys(self._states, State.STOPPED), None
        self._unanswered.clear()
        for unit in self._units.values():
            unit.due = False
        return tuple(reversed(lives))

    def _life(self, name: str) -> Life:
        return Life(name, self._units[name].incarnation)

    def _is_current(self, life: Life) -> bool:
        return life == self._life(life.name) and self._states[life.name] is not State.STOPPED

    def _count(self, spec: ChildSpec, error: BaseException) -> None:
        now_s, unit = self._clock.monotonic(), self._units[spec.name]
        too_many = unit.die(now_s, self._fence, self._limits)
        if too_many is not None:
            exceeded = RestartIntensityExceeded(spec.role, f"{spec.name} died: {too_many}")
            exceeded.__cause__ = error
            self._stop_with(exceeded)
        died = (spec.name, spec.role, unit.incarnation, type(error).__name__, text_of(error), self._fence)
        self._unanswered.append(Restarted(*died))

    def _stop_with(self, verdict: BaseException) -> NoReturn:
        self._verdict = self._verdict or verdict
        raise self._verdict
