"""A double of an older system's blend, which became CONVEX where its mode lacked something: our check finds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from growing import slot

from esper.errors import DependencyViolationError
from esper.kasmina.host.blending import BLENDS, Blend, Problem, blend_of, check_blend, next_confidence, target_alpha
from esper.kasmina.host.formulas import weight_of
from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.slots import SlotSpec

BODY = slot(shape=(4,))
SOUND: dict[str, tuple[BlendSpec, tuple[float, ...]]] = {
    "RESIDUAL": (BlendSpec(mode="RESIDUAL", ramp_steps=4), ()),
    "CONVEX": (BlendSpec(mode="CONVEX", ramp_steps=4), ()),
    "CHANNEL": (BlendSpec(mode="CHANNEL", ramp_steps=4, channels=(0.0, 0.5, 1.0, 0.25)), ()),
    "CONFIDENCE": (BlendSpec(mode="CONFIDENCE", ramp_steps=4), (2.0, 1.0)),
}
"""A blend of each mode, with the logits of its command."""
LACKING: dict[str, tuple[BlendSpec, tuple[float, ...]]] = {
    "no vector": (SOUND["CHANNEL"][0].model_copy(update={"channels": ()}), ()),
    "a vector of another length": (SOUND["CHANNEL"][0].model_copy(update={"channels": (0.5, 0.5)}), ()),
    "no logits": (SOUND["CONFIDENCE"][0], ()),
    "one logit": (SOUND["CONFIDENCE"][0], (1.0,)),
    "a logit that is not finite": (SOUND["CONFIDENCE"][0], (1.0, math.nan)),
}


@dataclass(frozen=True)
class DegradesToConvex(Blend):
    """A mode as the older system had it: complete, it is itself; incomplete, it is CONVEX, and nobody is told."""

    itself: Blend = BLENDS[BlendMode.CONVEX]

    def problems(self, blend: BlendSpec, slots: Iterable[SlotSpec], logits: Sequence[float]) -> Iterable[Problem]:
        del blend, slots, logits
        return ()

    def vector(self, blend: BlendSpec, slot: SlotSpec) -> torch.Tensor | None:
        return None if any(self.itself.problems(blend, [slot], ())) else self.itself.vector(blend, slot)

    def confidence(self, blend: BlendSpec, logits: Sequence[float]) -> float | None:
        return None if any(self.itself.problems(blend, [], logits)) else self.itself.confidence(blend, logits)

    def unclamped(self, alpha: float, confidence: float | None) -> float:
        return alpha if confidence is None else self.itself.unclamped(alpha, confidence)


def check_that_no_blend_is_another(lacking: BlendSpec, logits: tuple[float, ...]) -> None:
    """Every mode of the table accepts its sound blend, and refuses one that lacks something."""
    for blend, given in SOUND.values():
        check_blend(blend, [BODY], given, "command 1")
    with pytest.raises(DependencyViolationError):
        check_blend(lacking, [BODY], logits, "command 1")


@pytest.fixture
def legacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double in the place of each mode that needs more than alpha."""
    for mode in (BlendMode.CHANNEL, BlendMode.CONFIDENCE):
        double = DegradesToConvex(BLENDS[mode].formula, BLENDS[mode].fields, BLENDS[mode])
        monkeypatch.setitem(cast("dict[BlendMode, Blend]", BLENDS), mode, double)


@pytest.mark.parametrize("lacking", LACKING)
def test_the_table_keeps_every_mode_itself(lacking: str) -> None:
    check_that_no_blend_is_another(*LACKING[lacking])


@pytest.mark.usefixtures("legacy")
@pytest.mark.parametrize("lacking", LACKING)
def test_a_blend_that_degrades_to_convex_is_found(lacking: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"DID NOT RAISE .*DependencyViolationError"):
        check_that_no_blend_is_another(*LACKING[lacking])


@pytest.mark.usefixtures("legacy")
@pytest.mark.parametrize("lacking", LACKING)
def test_the_double_is_what_it_stands_for(lacking: str) -> None:
    host, seed = torch.ones(2, 4), torch.zeros(2, 4)
    convex = torch.full((2, 4), 0.75)

    def blended(spec: BlendSpec, logits: tuple[float, ...]) -> torch.Tensor:
        quarter = spec.model_copy(update={"alpha_target": 0.25})
        alpha = torch.tensor(target_alpha(quarter, next_confidence(quarter, logits, None)).effective)
        return blend_of(spec).formula(host, seed, weight_of(alpha, blend_of(spec).vector(spec, BODY), host))

    assert torch.equal(blended(*LACKING[lacking]), convex)
    assert not torch.equal(blended(*SOUND[LACKING[lacking][0].mode]), convex)
