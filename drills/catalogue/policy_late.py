"""Drill 2: the policy exceeds its deadline."""

from __future__ import annotations

from drills import expect
from drills.breaking import hang
from drills.drill import Drill
from drills.drill_context import DrillContext

DEADLINE_S = 5.0


def _hang(drill: DrillContext, *, in_c: bool) -> None:
    fence = drill.undisturbed.first_tournament
    drill.run(hang("tamiyo.decide", in_c=in_c, round=fence), settings={"policy.deadline_s": DEADLINE_S})
    drill.resume(settings={"policy.deadline_s": drill.config().policy.deadline_s})


FOLLOWS = (
    expect.exit_codes(3, 0),
    expect.error("PolicyDeadlineExceeded"),
    expect.journalled("PolicyDeadlineExceeded"),
    expect.events(policy_timeout=1),
    expect.counters({"esper.policy.failures": 1}),
    expect.redone(rounds=1),
    expect.same_bits(),
)

POLICY_LATE = Drill(
    number=2,
    name="policy-late",
    what="Tamiyo loops in Python beyond its deadline: its process is killed, and no decision is invented.",
    act=lambda drill: _hang(drill, in_c=False),
    follows=FOLLOWS,
)
POLICY_LATE_IN_C = Drill(
    number=2,
    name="policy-late-in-c",
    what="Tamiyo hangs in C code that holds the interpreter's lock: its process is killed in the same way.",
    act=lambda drill: _hang(drill, in_c=True),
    follows=FOLLOWS,
)
