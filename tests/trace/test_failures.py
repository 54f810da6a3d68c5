"""The direct cause of an error is read from what Python prints of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from ray.exceptions import RayActorError

from esper.errors import ActorLost, ConfigError
from esper.trace.failures import MOST_OF_CAUSE, cause_of


def first() -> Exception:
    lost = ActorLost("kasmina", "its process has died")
    lost.add_note("it wrote nothing")
    return lost


def printed(raise_it: Callable[[], None]) -> str:
    with pytest.raises((ConfigError, ActorLost)) as caught:
        raise_it()
    return "".join(traceback.format_exception(caught.value))


def test_the_direct_cause_is_told_with_its_notes() -> None:
    def chain() -> None:
        try:
            try:
                raise OSError("the first of all")
            except OSError as error:
                raise first() from error
        except ActorLost as error:
            raise ConfigError("a", "b", "c") from error

    told = cause_of(printed(chain))
    assert told == (f"ActorLost: {first()}", "it wrote nothing")


def test_what_is_no_direct_cause_or_an_error_of_ray_is_not_told() -> None:
    def beside() -> None:
        try:
            raise ValueError("a") from first()
        finally:
            raise_another()

    def raise_another() -> None:
        raise ConfigError("a", "b", "c")

    def of_ray() -> None:
        raise first() from RayActorError(error_msg="long")

    assert cause_of(printed(beside)) == cause_of(printed(of_ray)) == cause_of("no traceback") == ()


def test_a_cause_of_many_lines_is_cut() -> None:
    def many() -> None:
        raise first() from ValueError("\n".join(map(str, range(99))))

    told = cause_of(printed(many))
    assert (told[0], told[-1], len(told)) == ("ValueError: 0", "11", MOST_OF_CAUSE)
