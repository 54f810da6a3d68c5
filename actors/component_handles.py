"""Handles of a run's actors: each method of a port is sent as one message, and nothing else can be sent."""

# A port is a Protocol, which mypy takes for a class to instantiate; here it only names what a handle offers.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from actors.desk import EmergencyPort
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
"""(actor, method, positional arguments) -> answer: how one method of a port is sent, and how its answer comes back."""


def tolaria_handle(remote: Remote) -> LiveHost:
    """The handle of the trainer's actor. `saved` has a thread of its own there: it may be asked while a round runs."""
    return handle(LiveHost, remote, snapshot=by_reference, saved=in_group("save"))


def tamiyo_handle(remote: Remote, deadline_s: float) -> Decider:
    """The handle of the policy's actor. `decide` and `advance` raise PolicyDeadlineExceeded after `deadline_s`."""
    within = decision_within(deadline_s)
    return handle(Decider, remote, decide=within, advance=within)


def kasmina_handle(remote: Remote) -> Registrar:
    """The handle of the registry's actor."""
    return handle(Registrar, remote)


def emergency_handle(remote: Remote) -> EmergencyPort:
    """The handle of the emergency actor. `publish` has a thread of its own there: it waits for no other method."""
    return handle(EmergencyPort, remote, publish=in_group("ctl"))


def handle(port: type[P], remote: Remote, **deliveries: Delivery) -> P:
    """An object with the public methods of `port`; each sends one message to an actor and waits for its answer.

    Args:
        deliveries: By method name, where it is not `ask`.

    Raises:
        TypeError: a delivery is given for a method that the port does not have.
    """
    return cast(P, Handle(port, remote, deliveries))


class Handle:
    """What `handle` makes. Each method raises what the actor raised, and `ActorLost` if the actor has died.

    A method takes the arguments of the port's method, by position or by name; others are a TypeError before anything
    is sent. A name that the port does not have is an AttributeError.
    """

    def __init__(self, port: type, remote: Remote, deliveries: Mapping[str, Delivery]) -> None:
        self.remote = remote
        methods = methods_of(port)
        if unknown := deliveries.keys() - methods.keys():
            raise TypeError(f"{port.__name__} has no method {', '.join(sorted(unknown))}")
        for name, delivery in {**dict.fromkeys(methods, ask), **deliveries}.items():
            setattr(self, name, _sender(remote, name, methods[name], delivery))


def methods_of(port: type) -> dict[str, inspect.Signature]:
    """The signature of each public method of a port, without `self`."""
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
    """Wait for the answer as long as the actor shows progress."""
    return remote.ask(method, *arguments)


def by_reference(remote: Remote, method: str, arguments: tuple[object, ...]) -> SnapshotRef:
    """As `ask`, but the answer stays in Ray's object store and outlives the actor; the caller gets a reference."""
    return remote.reference(method, *arguments)


def in_group(group: str) -> Delivery:
    """As `ask`, in a concurrency group of the actor that has a thread beside the one that works."""

    def deliver(remote: Remote, method: str, arguments: tuple[object, ...]) -> object:
        return remote.ask(method, *arguments, group=group)

    return deliver


def decision_within(deadline_s: float) -> Delivery:
    """For methods of `Decider`: wait no longer than `deadline_s`; then kill the actor's process, whatever it is doing.

    The delivery raises PolicyDeadlineExceeded from the CallDeadlineExceeded of the call.
    """

    def deliver(remote: Remote, method: str, arguments: tuple[object, ...]) -> object:
        (state,) = arguments
        assert isinstance(state, RoundState), "the policy is given the state of a round"
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
