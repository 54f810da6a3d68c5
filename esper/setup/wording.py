"""Words for figures, such as the direction and size of a difference."""

from __future__ import annotations

import math
from decimal import Decimal

from esper.leyline.finish import Finish
from esper.leyline.reports import Check, PlaceboBasis

SMALLEST_WITH_EXPONENT = 1e6
"""Smallest magnitude that is written with an exponent."""


def number(value: float, decimals: int = 4, *, signed: bool = False) -> str:
    """Return `value` with `decimals` decimals. The text has an exponent if the value is huge, or if only zeros would be
    shown.
    """
    sign = "+" if signed else ""
    fixed = f"{value:{sign},.{decimals}f}"
    vanished = value != 0 and math.isfinite(value) and float(fixed.replace(",", "")) == 0
    return f"{value:{sign}.2g}" if vanished or SMALLEST_WITH_EXPONENT <= abs(value) < math.inf else fixed


def percent(share: float, decimals: int = 1, *, signed: bool = False) -> str:
    """Return a share as a percentage. 1 is 100 %."""
    if math.isfinite(share) and not math.isfinite(100 * share):
        return f"{100 * Decimal(share):{'+' if signed else ''}.2g}%"
    return f"{number(100 * share, decimals, signed=signed)}%"


def choice(finish: Finish) -> str:
    """Return the network with which a run ends, why, and the losses of both networks, in words."""
    name = "the twin" if finish.network == "twin" else "the live host"
    both = {"live host": finish.live, "twin": finish.twin}
    told = (f"{who} {number(one.pick)} pick, {number(one.gate)} gate" for who, one in both.items() if one is not None)
    return f"{name}, because {finish.why} ({'; '.join(told)})"


def growing(test_loss: float, twin_test_loss: float) -> str:
    """Return in words how growing changed the test loss, compared with the twin."""
    if math.isnan(test_loss) or math.isnan(twin_test_loss):
        return "the effect of growing is unknown: a loss is not a number"
    if test_loss == twin_test_loss:
        return "growing made no difference"
    return f"growing made it {_far(test_loss - twin_test_loss, twin_test_loss)}{_way(twin_test_loss - test_loss)}"


def beside_twin(z: float) -> str:
    """Return in words how the network compares with its twin. Call it only if no limit shows the network to be worse.
    `z` is the z of the loss difference (twin - network).
    """
    if math.isnan(z):
        return "the network cannot be compared with its twin"
    if z == 0:
        return "the network is level with its twin"
    return "the network is ahead of its twin" if z > 0 else "the network is behind its twin, by less than the limit"


def beside_limit(check: Check) -> str:
    """Return a measured value and its limit, with enough digits to show which is larger."""
    name = check.name.removeprefix("own_").removeprefix("twin_")
    for word, limit in (("above", check.above), ("at least", check.at_least), ("at most", check.at_most)):
        if limit is not None and isinstance(check.measured, int | float):
            value, beside = apart(check.measured, limit)
            return f"{name} {value}, needs {word} {beside}{_of_placebos(check.placebos)}"
    return f"{name} {check.measured}"


def _of_placebos(basis: PlaceboBasis | None) -> str:
    """Return words for the figures of the limit of the placebos. The text is empty for another limit."""
    if basis is None:
        return ""
    if basis.mean is None:
        return f" ({basis.factor:.2f} times the rms of {basis.count} placebos)"
    word, centre = ("mean", basis.mean) if basis.largest is None else ("largest gain", basis.largest)
    above = f"the {word} {centre:.4f} and " if centre > 0 else ""
    return f" ({above}{basis.factor:.2f} times the spread {basis.rms:.4f} of {basis.count} placebos)"


def a_second(rate: float) -> str:
    """Return a rate per second as text."""
    return number(rate, 0 if rate >= 10 else 1)


def _way(less: float) -> str:
    return "better" if less > 0 else "worse"


def _far(difference: float, reference: float) -> str:
    share = abs(difference / reference) if reference else math.inf
    return f"{percent(share)} " if math.isfinite(share) else ""


def apart(value: float, limit: float) -> tuple[str, str]:
    """Return both figures with enough digits to show which is larger."""
    for digits in range(4, 18):
        shown = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if _order(float(shown[0]), float(shown[1])) == _order(value, limit):
            break
    return shown


def percent_apart(value: float, *limits: float) -> list[str]:
    """Return shares as percentages, with enough digits to show whether the first is larger than each of the others."""
    for digits in range(2, 16):
        shown, *others = [round(100 * one, digits) for one in (value, *limits)]
        if [_order(shown, one) for one in others] == [_order(value, limit) for limit in limits]:
            break
    return [percent(one, digits) for one in (value, *limits)]


def _order(left: float, right: float) -> tuple[bool, bool]:
    return left < right, left > right


def gain_and_z(gain: float | None, z: float | None) -> tuple[str, str]:
    """Return the figures of G2 as columns of a table. The columns are empty if G2 did not judge the seed."""
    return (
        "" if gain is None else percent(gain, 2, signed=True),
        "" if z is None else number(z, 1, signed=True),
    )
