"""Isolation: which parameters a backward pass from a seed's branch would touch, however the graph is laid out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.kasmina.host.isolation import reachable_parameters


def leaves(*names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.full((2,), 1.0 + place)) for place, name in enumerate(names)}


def test_a_parameter_handed_through_is_reached():
    host = leaves("body")
    assert reachable_parameters(host["body"], host) == ("body",)


def test_what_has_no_graph_reaches_nothing():
    host = leaves("body")
    with torch.no_grad():
        assert reachable_parameters(host["body"] * 2, host) == ()
    assert reachable_parameters(torch.ones(2), host) == ()


def test_a_parameter_that_is_frozen_is_not_reached():
    host = leaves("body", "frozen")
    host["frozen"].requires_grad_(False)
    assert reachable_parameters(host["body"] * host["frozen"], host) == ("body",)


def test_a_view_an_index_and_an_in_place_change_hide_nothing():
    host = leaves("a", "b", "c")
    branch = torch.zeros(2)
    branch += host["a"].view(1, 2)[0]
    branch[0] = host["b"][1]
    branch = torch.stack([branch, host["c"].expand(2, 2).sum(0)])[0]
    assert reachable_parameters(branch, host) == ("a", "b", "c")  # the edge to c is there, whatever flows along it


def test_a_long_path_is_walked_to_its_end():
    host = leaves("body")
    branch: Tensor = host["body"]
    for _ in range(5_000):
        branch = branch + 1
    assert reachable_parameters(branch, host) == ("body",)


@given(st.data())
def test_for_random_graphs_it_finds_what_backward_touches(data):
    host = leaves("a", "b", "c", "d")
    nodes: list[Tensor] = [*host.values()]
    for _ in range(data.draw(st.integers(1, 8))):
        left, right = data.draw(st.sampled_from(nodes)), data.draw(st.sampled_from(nodes))
        made = left * 0.5 + right
        nodes.append(made.detach() if data.draw(st.booleans()) else made)
    branch = nodes[-1]

    found = reachable_parameters(branch, host)

    if branch.requires_grad:
        branch.sum().backward()
    assert found == tuple(sorted(name for name, leaf in host.items() if leaf.grad is not None))
