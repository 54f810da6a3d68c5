"""Handles of a run's actors. A handle has the methods of a port. Each call is sent as one message."""

# mypy assumes that a class is instantiated. A port is a Protocol, and here it only lists the methods of a handle.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from actors.emergency_actor import EmergencyPort
from actors.remote import Remote
from actors.shell import SnapshotRef
from esper.errors import CallDeadlineExceeded, PolicyDeadlineExceeded
from esper.leyline.ports import Decider, LiveHost, Registrar
from esper.leyline.state import RoundState
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count

P = TypeVar("P")

Delivery = Callable[[Remote, str, tuple[object, ...]], object]
"""Function (actor, method, positional arguments) -> answer. It sends the call of a method and waits for the answer."""


def tolaria_handle(remote: Remote) -> LiveHost:
    """Return the handle of the trainer's actor.

    `saved` may be called during a round, because it runs in another thread.
    """
    return handle(LiveHost, remote, snapshot=by_reference, saved=in_group("save"))


def tamiyo_handle(remote: Remote, deadline_s: float) -> Decider:
    """Return the handle of the policy's actor.

    `decide` and `advance` raise PolicyDeadlineExceeded after `deadline_s`.
    """
    within = decision_within(deadline_s)
    return handle(Decider, remote, decide=within, advance=within)


def kasmina_handle(remote: Remote) -> Registrar:
    """Return the handle of the registry's actor."""
    return handle(Registrar, remote)


def emergency_handle(remote: Remote, drain_slack_s: float) -> EmergencyPort:
    """Return the handle of the emergency actor.

    `stop(drain_s)` raises CallDeadlineExceeded after `drain_s + drain_slack_s` seconds.
    """
    return handle(EmergencyPort, remote, stop=drained_within(drain_slack_s))


def handle(port: type[P], remote: Remote, **deliveries: Delivery) -> P:
    """Return an object with the public methods of `port`. Each method sends one message to an actor and waits for the
    answer.

    Args:
        deliveries: Method name -> delivery. Methods without an entry use `ask`.

    Raises:
        TypeError: a delivery is given for a method that the port does not have.
    """
    return cast(P, Handle(port, remote, deliveries))


class Handle:
    """The class of the objects that `handle` returns.

    A method raises the actor's error, or `ActorLost` if the actor died. Arguments that the port's method does not have
    raise a TypeError before the message is sent. If the port does not have a name, its use raises an AttributeError.
    """

    def __init__(self, port: type, remote: Remote, deliveries: Mapping[str, Delivery]) -> None:
        self.remote = remote
        methods = methods_of(port)
        if unknown := deliveries.keys() - methods.keys():
            raise TypeError(f"{port.__name__} has no method {', '.join(sorted(unknown))}")
        for name, delivery in {**dict.fromkeys(methods, ask), **deliveries}.items():
            setattr(self, name, _sender(remote, name, methods[name], delivery))


def methods_of(port: type) -> dict[str, inspect.Signature]:
    """Return the signature of each public method of a port, without `self`."""
    return {
        name: inspect.signature(method.__get__(object()))
        for name, method in inspect.getmembers(port, inspect.isfunction)
        if not name.startswith("_")
    }


def _sender(remote: Remote, name: str, signature: inspect.Signature, deliver: Delivery) -> Callable[..., object]:
    def send(*arguments: object, **named: object) -> object:
        bound = signature.bind(*arguments, **named)
        return deliver(remote, name, bound.args)

    return send


# -- deliveries --------------------------------------------------------------------------------------------------


def ask(remote: Remote, method: str, arguments: tuple[object, ...]) -> object:
    """Call a method, and wait for its answer as long as the actor shows progress."""
    return remote.ask(method, *arguments)


def by_reference(remote: Remote, method: str, arguments: tuple[object, ...]) -> SnapshotRef:
    """Like `ask`, but return a reference to the answer. Ray's object store has it even if the actor ends."""
    return remote.reference(method, *arguments)


def in_group(group: str) -> Delivery:
    """Return a delivery like `ask`. The method runs in the thread of a concurrency group of the actor."""

    def deliver(remote: Remote, method: str, arguments: tuple[object, ...]) -> object:
        return remote.ask(method, *arguments, group=group)

    return deliver


def drained_within(slack_s: float) -> Delivery:
    """Return a delivery for `stop`. The call may last as long as its argument allows, even if the actor shows no
    progress.
    """

    def deliver(remote: Remote, method: str, arguments: tuple[object, ...]) -> object:
        (drain_s,) = arguments
        assert isinstance(drain_s, float), "the config has seconds"
        return remote.ask_within(drain_s + slack_s, method, drain_s)

    return deliver


def decision_within(deadline_s: float) -> Delivery:
    """Return a delivery for methods of `Decider`. It waits at most `deadline_s`, and then kills the actor's process.

    After the deadline it raises PolicyDeadlineExceeded. The cause is the CallDeadlineExceeded of the call.
    """

    def deliver(remote: Remote, method: str, arguments: tuple[object, ...]) -> object:
        (state,) = arguments
        assert isinstance(state, RoundState), "a policy's method gets the state of a round"
        start = time.monotonic()
        with span("await tamiyo", role="conductor", fence=state.fence) as current:
            try:
                return remote.ask_within(deadline_s, method, state)
            except CallDeadlineExceeded as error:
                count("esper.policy.failures")
                span_id = f"{current.get_span_context().span_id:016x}"
                late = PolicyDeadlineExceeded(time.monotonic() - start, deadline_s, span_id)
                late.actor, late.process = error.actor, error.process
                reported(late, "policy_timeout", Severity.CRITICAL, deadline_s=deadline_s, pid=remote.pid)
                raise late from error

    return deliver
