"""The trial before a run: seeds in every slot, real steps, batches of other shapes. What fails there is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from esper import resume, run
from esper.cli import plan_view
from esper.errors import Drained, SeedBuildFailed, TaskError
from esper.kasmina.blueprints.catalogue import BlueprintRegistry, blueprint
from esper.leyline.slots import Kind
from esper.setup.assembly import RunKey, make_trainer
from esper.setup.survey import Survey, survey_of
from esper.setup.trial import cheapest_plans
from esper.testing import Bands, StopAt, TinyHost, telling, tiny_config, tiny_task

SHORT = 44
"""Rows of the last evaluation batch of a test shard of 300."""


def survey(**changes: Any) -> Survey:
    return survey_of(tiny_task(test=Bands(300, key=3), **changes), tiny_config())


class Narrowing(TinyHost):
    """Gives fewer channels at its slot, for the short batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body.register_forward_hook(lambda _module, _args, h: h[:, :4] if len(h) == SHORT else h)

    def forward(self, x_BC: Tensor) -> Tensor:
        hidden = self.body(x_BC)
        return self.head(nn.functional.pad(hidden, (0, 8 - hidden.shape[1])))


def test_a_slot_with_other_channels_in_a_later_batch_is_refused() -> None:
    with pytest.raises(TaskError, check=telling("(4,) torch.float32", "(8,) torch.float32", field="slot body")):
        survey(model=Narrowing)


class Refusing(TinyHost):
    """Cannot train on what begins the third batch while its slot holds a seed."""

    refused: Tensor

    def forward(self, x_BC: Tensor) -> Tensor:
        if self.training and self.body._forward_hooks and torch.equal(x_BC[0], self.refused):
            raise ValueError("not these")
        return super().forward(x_BC)


class Skipping(TinyHost):
    """Skips its slot by chance: in `share` of the forwards in training mode."""

    share = 0.0

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(x_BC) if self.training and torch.rand(()) < self.share else super().forward(x_BC)


class Seldom(Skipping):
    share = 0.6


class Mostly(Skipping):
    share = 0.4


@pytest.mark.slow
def test_a_slot_that_steps_skip_by_chance_trains_a_seed_in_the_others(tmp_path: Path) -> None:
    """As in plain PyTorch: without a gradient an optimizer changes nothing. The run is as repeatable as any other."""
    assert survey(model=Seldom).specs[0].path == "body"
    task, end = tiny_task(model=Mostly), {"growth__false_pass": 0.5, "growth__margin": 1e-6, "run__epochs": 10}
    whole = run(task, tiny_config(run__dir=str(tmp_path / "whole"), **end))
    assert any(seed.z is not None for seed in whole.seeds)
    watch = StopAt(4)
    with pytest.raises(Drained):
        run(task, tiny_config(run__dir=str(tmp_path / "it"), **end), drain=watch.drain, progress=watch)
    assert resume(tmp_path / "it", task).weights_sha256 == whole.weights_sha256


def test_isolation_is_not_said_to_be_seen_in_a_step_that_skips_the_slot() -> None:
    found = survey()
    trainer = make_trainer(found, RunKey("r", 1, b""))
    plan, blob = next(cheapest_plans(found))
    trainer.graft(plan.model_copy(update={"isolated": True}), {plan.weights_digest: blob})
    forward, trainer.host.forward = trainer.host.forward, trainer.host.head.forward
    trainer.train_to(1)
    (seed,) = trainer.observe(1, {}).seeds
    assert (seed.isolation_leaks, seed.calls) == (None, 0)
    trainer.host.forward = forward
    trainer.train_to(2)
    (seed,) = trainer.observe(2, {}).seeds
    assert (seed.isolation_leaks, seed.calls) == ((), 1)
    batches = trainer.probe_gradients(seed.seed_id, 2).batches
    assert batches == 2


def test_code_that_fails_in_a_later_step_is_told_as_the_users_and_that_seeds_were_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Refusing, "refused", survey().data.batch(2)[0][0], raising=False)
    said = r"task\.model = 'a forward in training mode, with a seed in every slot': it raised ValueError: not these"
    with pytest.raises(TaskError, match=said):
        survey(model=Refusing)


def test_an_optimizer_that_takes_no_seed_is_refused_with_the_seed() -> None:
    def matrices(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.ndim == 2], lr=0.1)

    said = r"task\.optimizer = \"the optimizer factory, over the parameters of the seed 'norm' in the slot 'body'"
    with pytest.raises(TaskError, match=said):
        survey(optimizer=matrices)


def test_a_rate_that_diverges_is_left_to_the_guard_of_the_run() -> None:
    assert survey(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30)).varying == ()


def test_a_seed_whose_own_code_fails_is_not_told_as_the_host() -> None:
    registry = BlueprintRegistry()

    @blueprint("picky", kinds=(Kind.NC,), risk=0.1, registry=registry)
    def picky(_spec: object) -> nn.Module:
        class Picky(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                if len(x) == SHORT:
                    raise ValueError("44 again")
                return super().forward(x)

        return Picky(8, 8)

    with pytest.raises(
        SeedBuildFailed, check=telling("ValueError", "'44 again'", blueprint="picky", slot="body", doing="forward")
    ):
        survey_of(tiny_task(test=Bands(300, key=3)), tiny_config(), registry)


def doubled(seed: nn.Linear, x: Tensor) -> Tensor:
    return nn.Linear.forward(seed, x).double()


def shorter_when_short(seed: nn.Linear, x: Tensor) -> Tensor:
    y = nn.Linear.forward(seed, x)
    return y[:, :4] if len(x) == SHORT else y


def test_an_output_that_does_not_fit_is_told_by_blueprint_and_slot() -> None:
    registry = BlueprintRegistry()
    kind = type("Odd", (nn.Linear,), {"forward": shorter_when_short})
    blueprint("odd", kinds=(Kind.NC,), risk=0.1, registry=registry)(lambda _spec: kind(8, 8))
    with pytest.raises(SeedBuildFailed, check=telling("does not fit", blueprint="odd", slot="body", doing="forward")):
        survey_of(tiny_task(test=Bands(300, key=3)), tiny_config(), registry)


def test_a_candidate_of_another_type_is_left_to_its_gate() -> None:
    registry = BlueprintRegistry()
    kind = type("Double", (nn.Linear,), {"forward": doubled})
    blueprint("double", kinds=(Kind.NC,), risk=0.1, registry=registry)(lambda _spec: kind(8, 8))
    assert [pair.blueprint_id for pair in survey_of(tiny_task(), tiny_config(), registry).options] == ["double"]


def test_a_candidate_of_another_shape_is_left_to_its_gate() -> None:
    registry = BlueprintRegistry()

    @blueprint("narrow", kinds=(Kind.NC,), risk=0.1, registry=registry)
    def narrow(_spec: object) -> nn.Module:
        return nn.Linear(8, 4)

    assert survey_of(tiny_task(), tiny_config(), registry).options[0].blueprint_id == "narrow"


class Sequences(nn.Module):
    """[B, T, 3] -> [B, 2], T whatever the batch has; the slot "body" gives [B, T, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.head(self.body(x_BTC).mean(1))


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, y = zip(*samples, strict=True)
    return pad_sequence(list(x), batch_first=True), torch.stack(y)


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [True, False])
def test_plan_says_where_seeds_see_padding(ragged: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (5, 256), generator=draw) if ragged else torch.full((5, 256), 7)
    rows = [[(torch.randn(int(n), 3, generator=draw), torch.tensor(0)) for n in shard] for shard in lengths]
    shards = dict(zip(("train", "pick", "gate", "valid", "test"), rows, strict=True))
    found = survey_of(tiny_task(model=Sequences, collate=padded, **shards), tiny_config(run__round_steps=8))

    assert found.varying == (("body",) if ragged else ())
    slots = [spec.model_dump(mode="json") | {"varies": spec.path in found.varying} for spec in found.specs]
    said = " ".join(plan_view.padding({"slots": slots}))
    assert said.startswith("body: the length differs between batches; seeds that mix positions") is ragged
    with_mask = plan_view.padding({"slots": [slots[0] | {"padding": "padding_mask"}]})
    assert " ".join(with_mask).endswith("except masked_attention in body") is ragged
