"""Draws a random schedule of faults from a seed. It runs nothing.

An episode is one run in several legs: each leg but the last is broken off, and the next leg resumes the run. The seed
and the number of an episode fix everything in it, so that one episode can be repeated alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from drills.breaking import hang, kill, spec
from drills.undisturbed import Undisturbed
from esper.faults import Fault, FaultSpec

MOST_LEGS = 3
MOST_KILLS = 2
"""Largest number of killed processes in one leg."""
SHORTEST = 3
"""Number of rounds of a leg, at least."""


class Where(StrEnum):
    """Place of a leg."""

    ACTORS = "on actors"
    HERE = "in one process"
    COMMAND = "by a command, on actors"
    COMMAND_HERE = "by a command, in one process"


class End(StrEnum):
    """The end of a leg, and what follows it."""

    DONE = "the run ends"
    STOPPED = "a stop is asked for"
    LATE = "the policy is late"
    LATE_IN_C = "the policy is late in C"
    FAILED = "Tamiyo fails"
    TOO_OFTEN = "the trainer dies twice"
    DRIVER_KILLED = "the driver is killed"
    INTERRUPTED = "Ctrl-C"


class Damage(StrEnum):
    """Damage on the disk between two legs."""

    FLIP = "a bit of the last checkpoint is flipped"
    CUT = "the last checkpoint is cut"
    HOSTILE = "the last checkpoint is a hostile pickle"
    REPORTS = "a bit of the field reports is flipped"


@dataclass(frozen=True)
class Leg:
    """A stretch of a run, from its begin or a resume up to its end or a break."""

    where: Where
    end: End
    fence: int
    """Fence of the break, or the last fence."""
    kills: tuple[FaultSpec, ...] = ()
    signals_at: int | None = None
    """Fence at which emergency signals are sent. None: none are sent."""
    sink_down: bool = False
    """Whether the sink cannot be written in this leg after the signals."""
    damage: Damage | None = None

    @property
    def faults(self) -> tuple[FaultSpec, ...]:
        """The kills of processes, and the fault that breaks the leg off."""
        return (*self.kills, *self._breaking())

    def _breaking(self) -> tuple[FaultSpec, ...]:
        match self.end:
            case End.LATE | End.LATE_IN_C:
                return (hang("tamiyo.decide", in_c=self.end is End.LATE_IN_C, round=self.fence),)
            case End.FAILED:
                return (spec("tamiyo.decide", Fault.RAISE, error="PolicyFailed", round=self.fence),)
            case End.TOO_OFTEN:
                return (kill("tolaria.round", round=self.fence, times=2),)
            case End.DRIVER_KILLED:
                return (kill("conductor.fence", round=self.fence),)
            case End.INTERRUPTED:
                return (spec("conductor.fence", Fault.DELAY, round=self.fence, seconds=5.0),)
        return ()

    def __str__(self) -> str:
        words = [self.where.value, *(f"{one.fault} at {_moment(one)}" for one in self.kills)]
        words += [f"signals at fence {self.signals_at}{', sink down' * self.sink_down}"] * (self.signals_at is not None)
        return ", ".join([*words, f"{self.end} at fence {self.fence}", *([self.damage] if self.damage else [])])


@dataclass(frozen=True)
class Episode:
    """One run of a schedule."""

    number: int
    legs: tuple[Leg, ...]

    def __str__(self) -> str:
        return f"episode {self.number}: {'; then '.join(map(str, self.legs))}"


def episode(seed: int, number: int, moments: Undisturbed) -> Episode:
    """Return the episode with this number."""
    random = Random(f"esper drill {seed} {number}")
    last = moments.summary.rounds
    most = max(1, min(MOST_LEGS, last // (SHORTEST + 1)))
    breaks = _breaks(random, random.randint(1, most) - 1, last)
    legs = [_broken(random, moments, begin, end) for begin, end in zip([0, *breaks], breaks, strict=False)]
    begin = breaks[-1] if breaks else 0
    where = random.choice([Where.ACTORS, Where.ACTORS, Where.HERE]) if legs else Where.ACTORS
    sends = bool(random.getrandbits(1))
    kills = _kills(random, moments, begin, last, End.DONE, sends=sends) if where is Where.ACTORS else ()
    legs.append(Leg(where, End.DONE, last, kills, begin + 1 if sends else None))
    return Episode(number, tuple(legs))


def _breaks(random: Random, number: int, last: int) -> list[int]:
    """Return the fences of the breaks, with `SHORTEST` rounds or more before, between and after them."""
    spare = last - SHORTEST * (number + 1)
    cuts = sorted(random.randint(0, spare) for _ in range(number))
    return [cut + SHORTEST * place for place, cut in enumerate(cuts, start=1)]


def _broken(random: Random, moments: Undisturbed, begin: int, fence: int) -> Leg:
    ends: dict[End, Sequence[Where]] = {
        End.STOPPED: (Where.ACTORS, Where.HERE),
        End.TOO_OFTEN: (Where.ACTORS,),
        End.DRIVER_KILLED: (Where.COMMAND_HERE, Where.COMMAND),
        End.INTERRUPTED: (Where.COMMAND_HERE, Where.COMMAND),
    }
    if fence in moments.decided:
        ends |= dict.fromkeys((End.LATE, End.LATE_IN_C, End.FAILED), (Where.ACTORS,))
    end = random.choice(list(ends))
    where = random.choice(ends[end])
    sends = where in (Where.ACTORS, Where.HERE) and bool(random.getrandbits(1))
    kills = _kills(random, moments, begin, fence, end, sends=sends) if where in (Where.ACTORS, Where.COMMAND) else ()
    damages = [None, *(one for one in Damage if one is not Damage.REPORTS or moments.reported_before(fence))]
    down = sends and random.random() < 0.3
    return Leg(where, end, fence, kills, begin + 1 if sends else None, down, random.choice(damages))


def _kills(
    random: Random, moments: Undisturbed, begin: int, fence: int, end: End, *, sends: bool
) -> tuple[FaultSpec, ...]:
    """Draw kills that must fire between two fences.

    A kill in a save or in a decision needs a later round of the same leg, so that the death is noticed in it.
    """
    rounds = range(begin + 1, fence)
    steps = range(moments.step_at(begin), moments.step_at(fence - 1))
    drawn: dict[str, dict[str, Collection[int]]] = {
        "tolaria.step": {"step": steps},
        "tolaria.round": {"round": rounds},
        "tolaria.save": {"round": moments.saved & set(rounds)},
        "kasmina.receive": {"round": moments.commanded & set(rounds)},
        "tamiyo.decide": {"round": moments.decided & set(rounds)},
        "emergency.pending": {"passage": range(2, len(rounds) + 1) if sends else ()},
        "kasmina.step": {"passage": range(1, 6) if begin < moments.first_tournament < fence - 1 else ()},
        "tolaria.apply": {"passage": [1] if begin < moments.first_graft < fence else ()},
    }
    if end is End.TOO_OFTEN:  # a further death of the trainer would stop the leg earlier
        drawn = {point: when for point, when in drawn.items() if not point.startswith("tolaria.")}
    found = [
        kill(point, **{name: random.choice(sorted(numbers))})
        for point, when in drawn.items()
        for name, numbers in when.items()
        if numbers
    ]
    return tuple(random.sample(found, random.randint(0, min(MOST_KILLS, len(found)))))


def _moment(fault: FaultSpec) -> str:
    given = {name: getattr(fault, name) for name in ("round", "step") if getattr(fault, name) is not None}
    told = given or {"passage": fault.passage}
    return f"{fault.point} {' '.join(f'{name} {value}' for name, value in told.items())}"
