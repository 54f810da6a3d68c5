"""Counts of tournaments, refusals and holds, and the sentence that explains a run without seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from esper.leyline.base import GrownMessage, Message
from esper.leyline.decisions import Hold, HoldReason
from esper.leyline.reports import Gate, GateReport
from esper.setup.verdicts import Verdict, figures_of, verdict_of

T = TypeVar("T")


class Refusal(Message):
    """A reason for which a gate refused seeds, and the number of seeds that it refused for this reason."""

    gate: Gate
    reason: str
    count: int
    figures: str
    """The measured value of the seed that was refused last for this reason, and the limit of that value."""


class HoldCount(Message):
    """One reason to try no new seed, and the number of fences at which it applied."""

    reason: HoldReason
    detail: str
    count: int
    figures: str
    """The figures at the last fence at which the reason applied. Empty: the reason has no figures."""


class GrowthLog(GrownMessage):
    """Counts of a run so far. A log is immutable; each method returns a new log with one more event."""

    LATER: ClassVar = frozenset({"looks", "verdicts"})

    tournaments: int = 0
    """Tournaments that ended, without later looks at their candidates."""
    looks: int = 0
    """Later looks that ended: refused candidates trained on and were judged again."""
    refusals: tuple[Refusal, ...] = ()
    holds: tuple[HoldCount, ...] = ()
    verdicts: Mapping[str, Verdict] = {}
    """Id of a seed -> its last judgement by G2 that has figures. Empty in the summary of a run, where the seeds have
    them."""

    def concluded(self) -> GrowthLog:
        """Return the log with one more tournament."""
        return self.model_copy(update={"tournaments": self.tournaments + 1})

    def looked(self) -> GrowthLog:
        """Return the log with one more later look."""
        return self.model_copy(update={"looks": self.looks + 1})

    def judged(self, report: GateReport) -> GrowthLog:
        """Return the log with a gate's report added. A seed that is refused for several reasons counts for each."""
        verdict, refusals = verdict_of(report), self.refusals
        for reason in report.reasons:
            before = [one for one in refusals if (one.gate, one.reason) == (report.gate, reason)]
            count = 1 + sum(one.count for one in before)
            one = Refusal(gate=report.gate, reason=reason, count=count, figures=figures_of(report, reason))
            refusals = (*_without(refusals, before), one)
        verdicts = self.verdicts if verdict is None else {**self.verdicts, report.seed_id: verdict}
        return self.model_copy(update={"refusals": refusals, "verdicts": verdicts})

    def held(self, hold: Hold) -> GrowthLog:
        """Return the log with one more fence at which no new seed was tried."""
        before = [one for one in self.holds if (one.reason, one.detail) == (hold.reason, hold.detail)]
        one = HoldCount(
            reason=hold.reason,
            detail=hold.detail,
            count=1 + sum(one.count for one in before),
            figures=_figures(hold),
        )
        return self.model_copy(update={"holds": (*_without(self.holds, before), one)})


RELATIVE = ("outperformed", "not_enough_steps")
"""Reasons that G2 reports for every candidate that lost a tournament. They do not explain why the winner did not
stay."""
PASSING = ("slots open later", "a tournament is in flight")
"""Reasons to hold that occur in every run. They do not explain why a run ended without a seed."""


def none_stayed(log: GrowthLog, tried: int, best: str) -> str:
    """Return one sentence that explains why a run ended without a seed in its network, although it could grow.

    Args:
        tried: Number of seeds that were requested.
        best: The seed with the largest z at G2, with its figures and their limits. Empty: they are not known.
    """
    parts = []
    if tried:
        looks = f" and {_many(log.looks, 'later look')}" if log.looks else ""
        held = _many(log.tournaments, "tournament")
        parts.append(f"no seed stayed of {_many(tried, 'candidate')} in {held}{looks}")
        if best:
            parts.append(f"best: {best}")
        refused = [one for one in log.refusals if one.reason not in RELATIVE]
        if refused:
            parts.append("refused: " + ", ".join(_refusal(f"{one.gate} {_words(one.reason)}", one) for one in refused))
    else:
        parts.append("no candidate was tried")
    parts += [
        f"nothing new was tried at {_many(one.count, 'fence')}: {_held(one)}"
        for one in log.holds
        if one.detail not in PASSING
    ]
    return "; ".join(parts)


def _without(ones: Sequence[T], gone: Sequence[T]) -> list[T]:
    return [one for one in ones if one not in gone]


def _refusal(name: str, one: Refusal) -> str:
    return f"{name} {one.count}x (latest: {one.figures})"


def _held(one: HoldCount) -> str:
    figures = one.figures if one.reason in (HoldReason.BUDGET_SPENT, HoldReason.RISK) else ""
    return f"{one.detail} ({figures})" if figures else one.detail


def _figures(hold: Hold) -> str:
    if hold.measured is None:
        return ""
    limit = "" if hold.limit is None else f", limit {_short(hold.limit)}"
    return f"{_short(hold.measured)}{limit}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
