"""A wrong field of a message that users make is one of esper's errors, with the field, the value and the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from deciding import make_decision, make_pair, make_state, make_tamiyo
from pydantic import ValidationError

from esper.errors import ConfigError, PolicyFailed
from esper.kasmina.blueprints.catalogue import BlueprintRegistry, blueprint
from esper.leyline.slots import Kind
from esper.policies import BlendSpec, Decision, Pair, RateScale, RoundState, SeedState
from esper.testing import FakeClock, telling


def registered(name: Any = "mine", factory: Any = len, **fields: Any) -> object:
    wanted: dict[str, Any] = {"kinds": (Kind.NC,), "risk": 0.1, **fields}
    return blueprint(name, registry=BlueprintRegistry(), **wanted)(factory)


@pytest.mark.parametrize(
    ("make", "field", "value", "mend"),
    [
        (lambda: BlendSpec(mode="CONVEX", ramp_steps=0), "BlendSpec.ramp_steps", 0, "must be 1 or more"),
        (
            lambda: BlendSpec(mode="CONVEX", ramp=3, ramp_steps=1),
            "BlendSpec.ramp",
            3,
            "the fields are mode, ramp_steps",
        ),
        (lambda: RateScale(seed_id="x"), "RateScale.scale", None, "give it"),
        (lambda: RateScale(seed_id="x", scale="2"), "RateScale.scale", "2", "must be a number"),
        (lambda: make_pair(mesh=["a"]), "Pair.mesh", ["a"], "must be a tuple"),
        (lambda: make_decision("pair"), "Decision.pairs.0", "pair", "must be an object"),
        (lambda: make_state(fence="5"), "RoundState.fence", "5", "must be a whole number"),
        (lambda: registered(kinds="NC"), "blueprint.mine.kinds", "NC", "(Kind.NC,)"),
        (lambda: registered(kinds=Kind.NC), "blueprint.mine.kinds", Kind.NC, "(Kind.NC,)"),
        (lambda: registered(kinds=()), "blueprint.mine.kinds", (), "at least one"),
        (lambda: registered(risk="0.1"), "blueprint.mine.risk", "0.1", "from 0 to 1"),
        (lambda: registered(risk=True), "blueprint.mine.risk", True, "from 0 to 1"),
        (lambda: registered(name=5), "blueprint.name", 5, "a text"),
        (lambda: registered(factory=5), "blueprint.mine.factory", 5, "function"),
        (lambda: registered(mesh=("a",)), "blueprint.mine.mesh", ("a",), "function"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_mend(
    make: Callable[[], object], field: str, value: object, mend: str
) -> None:
    with pytest.raises(ConfigError, check=telling(mend, field=field, value=value)) as caught:
        make()
    assert "http" not in str(caught.value)


def test_what_is_read_and_not_made_keeps_the_error_of_its_reader() -> None:
    for read in (
        lambda: BlendSpec.model_validate({"mode": "CONVEX", "ramp_steps": 0}),
        lambda: BlendSpec.model_validate_json('{"mode": "CONVEX", "ramp_steps": 0}'),
        lambda: Decision.model_validate_json('{"blend": {"mode": "CONVEX", "ramp_steps": 0}}'),
    ):
        with pytest.raises(ValidationError):
            read()


class Wrong:
    name, version = "wrong", "1"

    def decide(self, state: RoundState, eligible: tuple[Pair, ...], past: object) -> Decision:
        del state, past
        return make_decision(*eligible, blend=BlendSpec(mode="CONVEX", ramp_steps=0))

    def logits(self, state: RoundState, seed: SeedState, past: object) -> tuple[float, ...]:
        del state, seed, past
        return ()


def test_a_policy_that_makes_a_wrong_message_fails_by_its_name_and_fence() -> None:
    told = telling("BlendSpec.ramp_steps = 0: must be 1 or more", policy="wrong", fence=5)
    with pytest.raises(PolicyFailed, check=told) as caught:
        make_tamiyo(Wrong(), FakeClock()).decide(make_state())
    assert isinstance(caught.value.__cause__, ConfigError)
