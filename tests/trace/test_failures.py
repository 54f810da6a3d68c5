"""The direct cause of an error is read from what Python prints of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from ray.exceptions import RayActorError

from esper.errors import ActorLost, ConfigError
from esper.trace.failures import MOST_OF_CAUSE, Failure, cause_of, failure_of
from esper.trace.otlp_json import Event, Span
from esper.trace.span_tree import Node


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


@pytest.mark.parametrize("kind", [ActorLost, ConfigError])
def test_a_traceback_in_a_note_has_neither_the_cause_nor_the_end_of_the_notes(kind: type[Exception]) -> None:
    """An error of an actor has a note with the whole traceback of the actor, and may be a cause itself."""
    of_actor = "\n\n".join(
        (
            'ray::Kasmina.admit() (pid=1)\n  File "a.py", line 1, in f\nOSError: in the actor',
            "The above exception was the direct cause of the following exception:",
            f'ray::Kasmina.admit() (pid=1)\n  File "a.py", line 2, in f\nesper.errors.ActorLost: {first()}',
        )
    )
    lost = first()
    lost.add_note(f"raised in kasmina:\n{of_actor}")
    notes = ("it wrote nothing", "raised in kasmina:", *of_actor.splitlines())

    def chain() -> None:
        if kind is ActorLost:
            raise lost
        raise ConfigError("a", "b", "c") from lost

    failure = failed(chain)
    if kind is ActorLost:
        assert (failure.cause, failure.notes) == ((), notes)
    else:
        assert failure.notes == ()
        assert failure.cause[:3] == (f"ActorLost: {first()}", *notes[:2])


def test_an_error_with_the_text_of_its_cause_has_its_own_notes_and_its_cause() -> None:
    def chain() -> None:
        try:
            raise ActorLost("kasmina", "its process has died")
        except ActorLost as error:
            raise first() from error

    failure = failed(chain)
    assert (failure.cause, failure.notes) == ((f"ActorLost: {first()}",), ("it wrote nothing",))


def failed(raise_it: Callable[[], None]) -> Failure:
    """Return the failure of a span in which an error was raised."""
    with pytest.raises((ConfigError, ActorLost)) as caught:
        raise_it()
    error = caught.value
    told = {
        "exception.type": f"{type(error).__module__}.{type(error).__qualname__}",
        "exception.message": str(error),
        "exception.stacktrace": "".join(traceback.format_exception(error)),
    }
    span = Span("a" * 32, "b" * 16, "", "work", "kasmina", 0, 1, True, events=(Event(0, "exception", told),))
    failure = failure_of(Node(span))
    assert failure is not None
    return failure
