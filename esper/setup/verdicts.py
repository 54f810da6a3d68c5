"""The figures of a report of G2 with their limits, side by side."""

from __future__ import annotations

from collections.abc import Collection

from esper.leyline.base import Message
from esper.leyline.reports import Figure, Gate, GateReport
from esper.setup.wording import apart, beside_limit, percent_apart


class Verdict(Message):
    """The figures of one judgement of G2. The gain and z of a replica are those of its winner."""

    fence: int
    reasons: tuple[str, ...]
    """Why G2 refused the seed. Empty: it passed."""
    gain: Figure
    """Share of the control's loss that the seed removed."""
    margin: float
    """Limit of the gain, from the config."""
    placebos: int | None
    """Number of the placebos. None: the run has none."""
    placebo_limit: Figure | None
    """Limit of the gain, from the placebos. None: the run has none. Infinite: a placebo diverged."""
    z: Figure
    z_limit: float
    own_z: Figure | None
    """z of a replica beside its own control. None: the seed is no replica."""
    own_z_limit: float | None


SHOWN = ("relative_gain", "gain_over_placebos", "z")
"""Names of the checks whose figures are in a verdict."""


def verdict_of(report: GateReport) -> Verdict | None:
    """Return the figures of G2. None: the report is of another gate, or the seed was refused before these figures were
    judged."""
    checks = {check.name: check for check in report.checks}
    gain, z, own, beside = (checks.get(name) for name in ("relative_gain", "z", "own_z", "gain_over_placebos"))
    if report.gate is not Gate.G2 or gain is None or z is None:
        return None
    is_replica = own is not None and own.measured != z.measured
    return Verdict(
        fence=report.fence,
        reasons=report.reasons,
        gain=_float(gain.measured),
        margin=_float(gain.above),
        placebos=beside.placebos.count if beside is not None and beside.placebos is not None else None,
        placebo_limit=beside.above if beside is not None else None,
        z=_float(z.measured),
        z_limit=_float(z.above),
        own_z=_float(own.measured) if own is not None and is_replica else None,
        own_z_limit=own.at_least if own is not None and is_replica else None,
    )


def figures(verdict: Verdict) -> str:
    """Return gain, margin, limit of the placebos, z and its limit, with enough digits to show which is larger."""
    beside = verdict.placebo_limit
    gain, *limits = percent_apart(verdict.gain, verdict.margin, *([] if beside is None else [beside]))
    margin, *of_placebos = limits
    z, z_limit = apart(verdict.z, verdict.z_limit)
    told = "".join(f", limit of {verdict.placebos} placebos {limit}{_beyond(beside)}" for limit in of_placebos)
    whose = "" if verdict.own_z is None else "its winner's "
    own = ""
    if verdict.own_z is not None and verdict.own_z_limit is not None:
        mine, least = apart(verdict.own_z, verdict.own_z_limit)
        own = f", own z {mine} (at least {least})"
    return f"{whose}gain {gain} (margin {margin}{told}), z {z} (limit {z_limit}){own}"


def _beyond(limit: float | None) -> str:
    """Return words for a limit of the gain that no loss of 0 or more can exceed. The text is empty for other limits."""
    return ": no seed can pass, unless the loss can be negative" if limit is not None and limit >= 1 else ""


def in_words(verdict: Verdict) -> str:
    """Return whether G2 accepted the seed, all reasons if not, and the figures."""
    why = ", ".join(reason.replace("_", " ") for reason in verdict.reasons)
    return f"{f'not accepted, {why}' if why else 'accepted'}: {figures(verdict)}"


def refusal(report: GateReport) -> str:
    """Return every reason of a failed report, and the figures of its failed checks."""
    verdict = verdict_of(report)
    inside = SHOWN if verdict is not None else ()
    told = []
    for reason in report.reasons:
        own = figures_of(report, reason, inside)
        told.append(reason.replace("_", " ") + (f" ({own})" if own else ""))
    return ", ".join(told) + (f": {figures(verdict)}" if verdict is not None else "")


def figures_of(report: GateReport, reason: str, without: Collection[str] = ()) -> str:
    """Return the figures of the checks that failed for a reason, with their limits.

    Args:
        without: Names of checks that are left out.
    """
    failed = [check for check in report.checks if not check.passed and check.reason == reason]
    return " and ".join(beside_limit(check) for check in failed if check.name not in without)


def _float(value: object) -> float:
    assert isinstance(value, float | int), "these checks of G2 measure numbers, and have a limit"
    return float(value)
