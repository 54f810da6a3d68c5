"""Handles send what their ports say, and the components' own classes understand it. No actor is started here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from actors.actor_process import CONCURRENCY_GROUPS
from actors.component_handles import (
    emergency_handle,
    handle,
    in_group,
    kasmina_handle,
    methods_of,
    tamiyo_handle,
    tolaria_handle,
)
from actors.emergency_actor import EmergencyPort
from actors.hosted_components import HostedForks, HostedTrainer
from actors.remote_fork import RemoteFork
from esper.emergency.emergency_service import EmergencyService
from esper.kasmina.registry.registrar import KasminaRegistrar
from esper.leyline.host_ports import Fork
from esper.leyline.ports import Decider, LiveHost, Registrar
from esper.leyline.state import RoundState
from esper.tamiyo.service import Tamiyo
from esper.tolaria.trainer import Trainer


class Recorder:
    """A `Remote` that sends nothing: it records each call, and answers with None."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def ask(self, method: str, *arguments: object, group: str | None = None) -> None:
        self.sent.append(("ask" if group is None else f"ask in {group}", method, *arguments))

    def ask_within(self, deadline_s: float, method: str, *arguments: object) -> None:
        self.sent.append((f"ask within {deadline_s} s", method, *arguments))

    def reference(self, method: str, *arguments: object) -> None:
        self.sent.append(("reference", method, *arguments))


def remote() -> Any:
    return Recorder()


PORTS: dict[type, tuple[tuple[type, ...], Callable[[Any], object]]] = {
    LiveHost: ((HostedTrainer, Trainer), tolaria_handle),
    Decider: ((Tamiyo,), lambda actor: tamiyo_handle(actor, 2.5)),
    Registrar: ((KasminaRegistrar,), kasmina_handle),
    EmergencyPort: ((EmergencyService,), lambda actor: emergency_handle(actor, 2.5)),
}
"""Port -> the classes that an actor looks a method up in, first to last; and how its handle is made."""

METHODS = [pytest.param(port, name, id=f"{port.__name__}.{name}") for port in PORTS for name in methods_of(port)]


def shape(signature: inspect.Signature) -> list[tuple[object, ...]]:
    return [(given.name, given.kind, given.default) for given in signature.parameters.values()]


@pytest.mark.parametrize(("port", "name"), METHODS)
def test_the_room_has_each_method_of_its_port_with_the_ports_signature(port: type, name: str) -> None:
    components, _ = PORTS[port]
    component = next(component for component in components if hasattr(component, name))
    assert shape(methods_of(component)[name]) == shape(methods_of(port)[name])


@pytest.mark.parametrize("name", sorted(methods_of(Fork).keys() - {"graft"}))
def test_a_manager_has_each_method_of_a_fork_with_the_forks_name_before_its_arguments(name: str) -> None:
    assert shape(methods_of(RemoteFork)[name]) == shape(methods_of(Fork)[name])
    (first, *rest) = shape(methods_of(HostedForks)[name])
    assert first[0] == "name"
    assert rest == shape(methods_of(Fork)[name])


WAYS = dict.fromkeys(((port, name) for port in PORTS for name in methods_of(port)), "ask") | {
    (LiveHost, "snapshot"): "reference",
    (LiveHost, "saved"): "ask in save",
    (Decider, "decide"): "ask within 2.5 s",
    (Decider, "advance"): "ask within 2.5 s",
    (EmergencyPort, "stop"): "ask within 9.5 s",  # what it is given, and the slack
}
"""How each method is sent."""


@pytest.mark.parametrize(("port", "name"), METHODS)
def test_a_method_is_one_message_with_its_arguments_in_the_ports_order(port: type, name: str) -> None:
    actor, names = remote(), methods_of(port)[name].parameters
    values: dict[str, Any] = {given: RoundState.model_construct(fence=place) for place, given in enumerate(names)}
    values |= {given: 7.0 for given in names if given == "drain_s"}
    getattr(PORTS[port][1](actor), name)(**dict(reversed(values.items())))
    assert actor.sent == [(WAYS[port, name], name, *values.values())]


def test_every_port_has_methods_and_every_group_a_thread() -> None:
    assert all(methods_of(port) for port in PORTS)
    groups = {way.removeprefix("ask in ") for way in WAYS.values() if way.startswith("ask in ")}
    assert groups <= CONCURRENCY_GROUPS.keys()


@pytest.mark.parametrize("name", ["train_to", "run_rounds", "_update", "__call__", "ask"])
def test_what_the_port_does_not_have_is_refused_before_anything_is_sent(name: str) -> None:
    actor = remote()
    host: Any = tolaria_handle(actor)
    with pytest.raises(AttributeError, match=name):
        getattr(host, name)
    assert actor.sent == []


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3)])
def test_wrong_arguments_are_refused_before_anything_is_sent(arguments: tuple[Any, ...]) -> None:
    actor = remote()
    with pytest.raises(TypeError, match="argument"):
        tolaria_handle(actor).run_round(*arguments)
    assert actor.sent == []


def test_a_delivery_for_a_method_that_the_port_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="Registrar has no method view_all"):
        handle(Registrar, remote(), view_all=in_group("ctl"))
