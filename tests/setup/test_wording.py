"""Figures in words: over signs, zero, what is not a number, tiny and huge, no sentence contradicts its figure."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline.reports import Check
from esper.setup.wording import a_second, beside_limit, beside_twin, growing, number, percent, percent_apart

ANY = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e-12, -1e-12, 1e308, -1e308, 5e-324, 0.27, -0.27]))
FINITE = ANY.filter(math.isfinite)


def figure(text: str) -> Decimal:
    """The first number in a text; rounded up, it may be larger than any float."""
    found = re.search(r"[-+]?[\d,]*\.?\d+(?:[eE][-+]?\d+)?", text)
    assert found is not None, text
    return Decimal(found[0].replace(",", ""))


def near(shown: str, value: Decimal) -> bool:
    return figure(shown) == value if value == 0 else Decimal("0.5") < figure(shown) / value < 2


@settings(deadline=None)
@given(FINITE)
def test_a_number_keeps_its_sign_and_its_size_and_is_zero_only_if_it_is(value: float) -> None:
    for shown in (number(value), number(value, 0), number(value, 2, signed=True)):
        assert near(shown, Decimal(value))
        assert len(shown) <= 15
    assert number(value, signed=True)[0] == ("-" if math.copysign(1, value) < 0 else "+")


@settings(deadline=None)
@given(st.floats(min_value=-1e300, max_value=1e300))
def test_a_percentage_is_a_hundred_times_the_share(share: float) -> None:
    assert near(percent(share), 100 * Decimal(share))


def test_figures_are_written_as_people_write_them() -> None:
    assert [number(value) for value in (0.0, 1.23456, -0.00001, 1.5e9, math.inf, math.nan)] == [
        "0.0000", "1.2346", "-1e-05", "1.5e+09", "inf", "nan",
    ]  # fmt: skip
    assert [percent(share) for share in (0.189, -0.27, 0.0, 0.0004, 1e308)] == [
        "18.9%", "-27.0%", "0.0%", "0.04%", "1.0e+310%",
    ]  # fmt: skip
    assert percent(0.1694, 2, signed=True) == "+16.94%"
    assert [a_second(rate) for rate in (1234.4, 57.1, 3.14, 0.03)] == ["1,234", "57", "3.1", "0.03"]


@settings(deadline=None)
@given(ANY, ANY)
def test_growing_is_called_better_only_where_the_loss_is_lower(loss: float, twin: float) -> None:
    told = growing(loss, twin)
    assert ("better" in told) == (loss < twin)
    assert ("worse" in told) == (loss > twin)
    assert "-" not in told.replace("e-", "").replace("E-", "")  # the word alone says which way
    if math.isnan(loss) or math.isnan(twin):
        assert told == "the effect of growing is unknown: a loss is not a number"


def test_what_growing_did_is_told_with_its_size() -> None:
    assert growing(1.058, 1.0) == "growing made it 5.8% worse"
    assert growing(-3.0, -2.0) == "growing made it 50.0% better"  # a loss may be negative
    assert growing(0.7, 0.7) == "growing made no difference"
    assert growing(0.1, 0.0) == "growing made it worse"
    assert growing(math.inf, 1.0) == "growing made it worse"
    assert growing(1.0 - 1e-9, 1.0) == "growing made it 1e-07% better"


SHARES = st.one_of(st.floats(-50, 50), st.sampled_from([0.005, 0.00501, 0.0050000001, 0.0]))


@settings(deadline=None)
@given(SHARES, SHARES, SHARES)
def test_a_share_beside_its_limits_shows_which_is_the_larger(share: float, margin: float, beside: float) -> None:
    shown, *others = map(figure, percent_apart(share, margin, beside))
    for text, limit in zip(others, (margin, beside), strict=True):
        if abs(share - limit) > 1e-12:
            assert (shown > text) == (share > limit)


@settings(deadline=None)
@given(ANY)
def test_the_network_is_ahead_of_its_twin_only_if_it_is(z: float) -> None:
    assert ("ahead" in beside_twin(z), "behind" in beside_twin(z)) == (z > 0, z < 0)
    assert ("cannot" in beside_twin(z)) == math.isnan(z)


@settings(deadline=None)
@given(FINITE, FINITE)
def test_a_value_beside_its_limit_shows_which_is_the_larger(value: float, limit: float) -> None:
    told = beside_limit(Check(name="z", reason="r", measured=value, above=limit))
    shown, beside = told.removeprefix("z ").split(", needs above ")
    assert (float(shown) > float(beside)) == (value > limit)


def test_a_value_that_is_no_number_or_has_no_limit_is_told_as_it_is() -> None:
    assert (
        beside_limit(Check(name="z", reason="r", measured=3.66201, above=3.66199)) == "z 3.66201, needs above 3.66199"
    )
    assert beside_limit(Check(name="twin_z", reason="r", measured=-4.2, at_least=-3)) == "z -4.2, needs at least -3"
    assert beside_limit(Check(name="own_z", reason="r", measured=math.nan, at_least=-3)) == "z nan, needs at least -3"
    assert beside_limit(Check(name="device", reason="r", measured="cpu", equals="cuda")) == "device cpu"
