"""Types of slots and seeds: the host's own autocast is measured, and what a seed gives has its slot's type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.blueprints.precision import as_slot
from esper.kasmina.host.dry_run import dry_run
from esper.kasmina.judging.sanity import probe_seed
from esper.leyline.slots import SlotSpec

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Host(nn.Module):
    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.body, self.cast = nn.Linear(8, 8), cast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.cast):
            return self.body(x)


def spec(cast: bool) -> SlotSpec:
    (found,) = dry_run(Host(cast), ["body"], ROWS, lambda model, x: model(x)).specs
    return found


def test_the_autocast_of_a_host_is_measured_and_its_seeds_keep_their_parameters_in_single_precision() -> None:
    assert (spec(cast=False).autocast, spec(cast=False).dtype) == (None, "torch.float32")
    assert (spec(cast=True).autocast, spec(cast=True).dtype) == ("torch.bfloat16", "torch.bfloat16")
    seed = BLUEPRINTS.get("mlp").build(spec(cast=True), seed_key=0)
    assert {parameter.dtype for parameter in seed.parameters()} == {torch.float32}


class Single(nn.Linear):
    """Single precision whatever comes in, as sums and norms give under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def test_a_seed_is_measured_as_it_runs_under_the_hosts_autocast() -> None:
    seen = probe_seed(Single(8, 8), spec(cast=True), ROWS.bfloat16(), "single")
    assert (seen.shape, seen.dtype) == ((8,), "torch.bfloat16")


def test_a_seeds_output_is_cast_only_where_autocast_is_on() -> None:
    single, half = torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    assert as_slot(single, half).dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert as_slot(single, half).dtype is torch.bfloat16
