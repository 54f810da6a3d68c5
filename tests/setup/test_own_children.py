"""A network that calls each of its own children is refused before a run: its seeds would be called as its layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from esper.errors import TaskError
from esper.setup.survey import survey_of
from esper.testing import TinyHost, telling, tiny_config, tiny_task


class Chained(TinyHost):
    """Calls its children one after another; one more child that changes nothing is not noticed."""

    def forward(self, x_BC: Tensor) -> Tensor:
        for layer in self.children():
            x_BC = layer(x_BC)
        return x_BC


class Summed(TinyHost):
    """Adds the outputs of its children, so that one more child changes the result."""

    def forward(self, x_BC: Tensor) -> Tensor:
        return torch.stack([layer(x_BC)[:, :4] for layer in self.children()]).sum(0)


class Sequence(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        host = TinyHost()
        self.body, self.head = host.body, host.head


@pytest.mark.parametrize("host", [Chained, Summed])
def test_a_network_that_calls_each_of_its_children_is_refused(host: type[nn.Module]) -> None:
    task = replace(tiny_task(), model=host)
    with pytest.raises(TaskError, check=telling("nn.ModuleList", field="task.model")):
        survey_of(task, tiny_config())


def test_a_sequence_of_layers_is_accepted_and_left_as_it_was() -> None:
    made: list[Sequence] = []
    survey_of(replace(tiny_task(), model=lambda: made.append(Sequence()) or made[-1]), tiny_config())
    assert [list(dict(host.named_children())) for host in made] == [["body", "head"]] * len(made)
