"""Seeds that take padding: what a masked attention computes, alone and in copies, and where it is offered."""

from __future__ import annotations

import pytest
import torch
from growing import slot
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint
from esper.kasmina.blueprints.ntc import Attention
from esper.kasmina.blueprints.padded import seed_output
from esper.kasmina.incubation.choices import chosen
from esper.kasmina.judging.sanity import probe_seed
from esper.kasmina.settings import BlueprintChoice
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import telling

LENGTHS = (6, 3, 1, 0)
PADDED = torch.arange(6) >= torch.tensor(LENGTHS)[:, None]
H = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


def spec(*, causal: bool = False, padding: str | None = "padding_mask", path: str = "body") -> SlotSpec:
    return slot(path, Kind.NTC, (6, 8), causal=causal, padding=padding)


def trained(name: str, *, causal: bool, copies: int = 1) -> nn.Module:
    seed, draw = BLUEPRINTS.get(name).build(spec(causal=causal), 0, copies), torch.Generator().manual_seed(1)
    for parameter in seed.parameters():
        nn.init.normal_(parameter, std=0.5, generator=draw)
    return seed


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "acausal"])
@pytest.mark.parametrize("junk", [7.0, float("nan"), float("inf")])
def test_padded_positions_are_not_read_get_nothing_and_have_no_gradient(junk: float, causal: bool, copies: int) -> None:
    seed = trained("masked_attention", causal=causal, copies=copies)
    h = H.masked_fill(PADDED[..., None], junk).requires_grad_()
    s = seed_output(seed, h, PADDED)
    assert torch.equal(s, seed_output(seed, H, PADDED))
    assert not s[PADDED].count_nonzero()
    assert s[~PADDED].count_nonzero() == s[~PADDED].numel()
    (s * torch.randn(s.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert h.grad[~PADDED].abs().sum() > 0
    assert not h.grad[PADDED].count_nonzero()
    assert all(parameter.grad.isfinite().all() for parameter in seed.parameters())


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "acausal"])
def test_a_masked_attention_of_a_padded_batch_is_an_attention_of_each_sentence_alone(causal: bool) -> None:
    masked, plain = trained("masked_attention", causal=causal), trained("attention", causal=causal)
    assert isinstance(plain, Attention)
    plain.load_state_dict(masked.attention.state_dict())
    read: list[Tensor] = []
    masked.attention.register_forward_pre_hook(lambda _module, args: read.append(args[1]))
    s = seed_output(masked, H, PADDED)
    assert read[0].any(-1).all(), "a kernel may give nan if a query reads nothing"
    for row, length in enumerate(LENGTHS[:-1]):
        assert torch.allclose(s[row : row + 1, :length], plain(H[row : row + 1, :length]), atol=1e-5)
    assert torch.allclose(seed_output(masked, H, None), plain(H), atol=1e-5)


def test_it_is_offered_in_slots_with_a_padding_mask_only_and_asking_for_it_elsewhere_is_an_error() -> None:
    specs = [spec(path="bare", padding=None), spec(path="told")]
    offered = {path: {made.name for made in found} for path, found in chosen(specs, {}, BLUEPRINTS).items()}
    assert offered["told"] - offered["bare"] == {"masked_attention"}
    choice = {"*": BlueprintChoice(only=("masked_attention", "mlp"))}
    assert [made.name for made in chosen(specs, choice, BLUEPRINTS)["bare"]] == ["mlp"]
    with pytest.raises(ConfigError, check=telling("bare gets none", value="masked_attention")):
        chosen(specs, {"bare": choice["*"]}, BLUEPRINTS)


def test_whether_a_blueprint_needs_padding_is_true_or_false() -> None:
    with pytest.raises(ConfigError, check=telling(field="blueprint.mine.needs_padding", value="yes")):
        Blueprint("mine", (Kind.NTC,), 0.1, lambda _: nn.Identity(), needs_padding="yes")


def test_a_seed_gets_booleans_also_without_a_mask_and_a_plain_seed_gets_its_input_alone() -> None:
    class Given(nn.Module):
        takes_padding = True

        def forward(self, h: Tensor, padding: Tensor) -> Tensor:
            del h
            return padding

    assert seed_output(Given(), H, PADDED) is PADDED
    assert torch.equal(seed_output(Given(), H, None), PADDED & False)
    assert seed_output(nn.Identity(), H, PADDED) is H


class ReadsAllIfPadded(nn.Module):
    """[B, T, C] -> [B, T, C]: where a batch has padding, each position also reads all others of all samples."""

    takes_padding = True

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 8)

    def forward(self, h: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.out(h + h.mean((0, 1), keepdim=True) * padding.any())
        return out


def test_g0_measures_a_seed_that_takes_padding_also_with_padding() -> None:
    causal = spec(causal=True)
    found = probe_seed(ReadsAllIfPadded(), causal, H, "own")
    assert min(found.causality_leak, found.sample_leak) > 1e-3
    fine = probe_seed(BLUEPRINTS.get("masked_attention").build(causal, 0), causal, H, "masked_attention")
    assert max(fine.causality_leak, fine.sample_leak) < 1e-9
