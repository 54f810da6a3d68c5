"""The survey before a run: fences, window of growth, sizes, and what it refuses before anything starts."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from esper import run
from esper.errors import ConfigError, TaskError
from esper.leyline.commands import Command
from esper.leyline.decisions import Hold, HoldReason
from esper.leyline.ids import new_run_id
from esper.leyline.ports import Policy
from esper.leyline.state import RoundState
from esper.setup.assembly import RunKey, make_kasmina, make_tamiyo, make_trainer
from esper.setup.candidates import why_nothing_grows
from esper.setup.forecast import forecast
from esper.setup.survey import Survey, survey_of
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.task import Task
from esper.testing import Bands, FakeClock, TinyHost, telling, tiny_config, tiny_task


def survey(task: dict[str, Any] | None = None, **overrides: Any) -> Survey:
    return survey_of(tiny_task(**(task or {})), tiny_config(**overrides))


def test_rounds_end_every_round_steps_and_at_the_end_of_the_run() -> None:
    assert survey().fence_steps == tuple(range(0, 321, 20))
    assert survey(run__round_steps=300).fence_steps == (0, 300, 320)
    assert survey(run__round_steps=320).fence_steps == (0, 320)


@pytest.mark.parametrize(("epochs", "rounds"), [(10, 15), (18, 15), (19, 60)])
def test_by_default_a_short_run_has_15_rounds_and_a_long_one_60(epochs: int, rounds: int) -> None:
    found = survey({"round_steps": None, "epochs": epochs})
    assert found.total_steps == 32 * epochs
    assert 0.9 * rounds <= len(found.fence_steps) - 1 <= rounds


def test_the_config_beats_the_task() -> None:
    found = survey(run__epochs=1, run__batch_size=64, run__round_steps=4)
    assert (found.total_steps, found.fence_steps, found.data.batch_size) == (16, (0, 4, 8, 12, 16), 64)


def test_the_last_germination_leaves_time_to_become_a_fossil() -> None:
    found = survey()  # one round of incubation, two of ramp, one of shadowing, two of probation
    assert (found.fences_to_fossil, found.last_germination) == (6, 10)
    assert found.can_grow
    assert not survey(run__epochs=3).can_grow
    assert not survey(growth__enabled=False).can_grow


@pytest.mark.parametrize(
    ("policy", "last"),
    [pytest.param(None, 10, id="of the config"), pytest.param(HeuristicPolicy(1, 1, 20), 11, id="own")],
)
def test_the_last_germination_follows_the_ramp_of_the_policy(policy: Policy | None, last: int) -> None:
    found, key, clock = survey(), RunKey(new_run_id(), 1, b"key"), FakeClock()
    tamiyo, kasmina = make_tamiyo(found, key, clock, policy), make_kasmina(found, key, clock)
    training = make_trainer(found, key).untrained()
    verdicts = [tamiyo.decide(RoundState.of(kasmina.view(fence), training, None)).outcome for fence in (last, last + 1)]
    assert isinstance(verdicts[0], Command)
    assert isinstance(verdicts[1], Hold)
    assert (verdicts[1].reason, verdicts[1].limit) == (HoldReason.GROWTH_OVER, last)


def test_sizes_are_those_of_the_host_alone() -> None:
    found = survey()
    assert found.host_parameters == 8 * 8 + 8 + 8 * 4 + 4
    assert found.host_bytes == 4 * found.host_parameters
    forward = 2 * 32 * (8 * 8 + 8 * 4)
    assert found.host_flops == 3 * forward - 2 * 32 * 8 * 8  # nothing asks for the gradient of the input


def test_the_limit_of_g2_is_that_of_as_many_samples_or_groups_as_a_fence_judges_and_of_the_tests_of_the_run() -> None:
    for tests in (1, 400):
        assert survey(growth__max_tests=tests).g2_limit() == pytest.approx(stats.t.isf(0.05 / tests, df=255))
    found = survey({"group": lambda index: index // 4}, growth__min_samples=64, growth__judge_samples=64)
    assert found.judged_units == 64
    assert found.g2_limit() == pytest.approx(stats.t.isf(0.05 / 400, df=63))


def drawn() -> tuple[float, float, float]:
    """The next number of each global generator."""
    return random.random(), float(np.random.random()), float(torch.rand(()))


def seed_all(key: int) -> None:
    random.seed(key)
    np.random.seed(key)
    torch.manual_seed(key)


@pytest.mark.parametrize("refused", [False, True])
def test_a_survey_leaves_the_random_streams_and_the_gradient_mode_of_its_caller_alone(refused: bool) -> None:
    seed_all(7)
    expected = drawn()
    seed_all(7)
    with pytest.raises(TaskError) if refused else nullcontext():
        survey_of(tiny_task(slots=["nowhere"] if refused else ["body"]), tiny_config())
    assert drawn() == expected
    assert torch.is_grad_enabled()


class Mine:
    """Builds the same network at each call, as a closure over a module does."""

    def __init__(self) -> None:
        self.network = TinyHost()

    def __call__(self) -> TinyHost:
        return self.network


def test_a_model_that_is_not_built_anew_is_refused_because_forks_would_share_it() -> None:
    with pytest.raises(TaskError, check=telling(field="task.model", value="body.weight")):
        survey({"model": Mine()})


def test_a_model_that_draws_its_weights_elsewhere_is_refused_because_forks_would_differ() -> None:
    own = torch.Generator()

    def build() -> TinyHost:
        host = TinyHost()
        torch.nn.init.normal_(host.head.bias, generator=own)
        return host

    with pytest.raises(TaskError, check=telling(field="task.model", value="head.bias")):
        survey({"model": build})


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"run__device": "nonsense"}, "run.device"),
        ({"run__device": "cuda:99"}, "run.device"),
        ({"run__batch_size": 2000}, "run.batch_size"),
        ({"run__round_steps": 321}, "run.round_steps"),
        ({"growth__judge_samples": 100}, "growth.judge_samples"),
        ({"growth__min_samples": 257, "growth__judge_samples": 257}, "task.pick"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_field(overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        survey(**overrides)
    assert caught.value.field == field


class Words(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Sequences of 3 to 9 symbols of 11."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        draw = torch.Generator().manual_seed(index)
        return torch.randint(0, 11, (3 + index % 7,), generator=draw), index % 4


def padded(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.nn.utils.rnn.pad_sequence([words for words, _ in samples], batch_first=True)
    return rows, torch.tensor([target for _, target in samples])


class Convolved(torch.nn.Module):
    """[B, T] -> [B, 4]; `mix` works on [B, C, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.mix = torch.nn.Conv1d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, words_BT: torch.Tensor) -> torch.Tensor:
        h = self.mix(self.embed(words_BT).transpose(1, 2))
        scores: torch.Tensor = self.head(h.mean(dim=2))
        return scores


class Compared(torch.nn.Module):
    """[B, T] -> [B, 4]; `mix` gives [B, T, T], and has no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = torch.nn.Embedding(11, 8), Products(), torch.nn.Linear(8, 4)

    def forward(self, words_BT: torch.Tensor) -> torch.Tensor:
        h = self.embed(words_BT)
        scores: torch.Tensor = self.head((self.mix(h) @ h).mean(dim=1))
        return scores


class Products(torch.nn.Module):
    def forward(self, h_BTC: torch.Tensor) -> torch.Tensor:
        return h_BTC @ h_BTC.transpose(1, 2)


def of_words(*slots: str, model: type[torch.nn.Module] = Compared) -> dict[str, Any]:
    data = {name: Words() for name in ("train", "valid", "test", "pick", "gate")}
    return {**data, "model": model, "slots": slots, "collate": padded, "batch_size": 4, "round_steps": None}


def test_a_slot_of_a_pattern_that_fails_in_the_trial_is_left_out_and_a_named_one_refused() -> None:
    judging = {"growth__judge_samples": 128, "run__epochs": 1}
    found = survey(of_words("*"), **judging)
    assert [spec.path for spec in found.specs] == ["embed", "head"]
    assert {pair.slot for pair in found.options} == {"embed", "head"}
    assert "in a later batch" in found.left_out["mix"]
    with pytest.raises(TaskError, check=telling(field="slot mix")):
        survey(of_words("*", "mix"), **judging)


def test_a_convolution_over_time_is_a_slot_in_batches_of_several_lengths() -> None:
    found = survey(of_words("mix", model=Convolved), growth__judge_samples=128, run__epochs=1)
    assert [(spec.kind, spec.channels) for spec in found.specs] == [("NCT", 8)]
    assert found.varying == ("mix",)
    assert {pair.blueprint_id for pair in found.options} >= {"norm", "conv_mlp_3"}


SMALL = {"train": Bands(40, key=1), "pick": None, "gate": None, "batch_size": 8}


def test_data_too_small_to_judge_on_trains_without_growth() -> None:
    with pytest.raises(ConfigError, check=telling("--no-growth", field="task.pick", value="4 samples")):
        survey(SMALL)
    found = survey(SMALL, growth__enabled=False)
    assert [len(found.data.shards[name]) for name in ("train", "pick", "gate")] == [32, 4, 4]


def test_without_growth_even_judging_shards_of_no_sample_do_not_matter(tmp_path: Path) -> None:
    few = SMALL | {"train": Bands(9, key=1), "round_steps": None, "epochs": 2}
    found = survey(few, growth__enabled=False)
    assert [len(found.data.shards[name]) for name in ("train", "pick", "gate")] == [9, 0, 0]
    told = forecast(found)
    assert (told["g2_z"], told["germinates_at_fences"], told["tournament_gflops"]) == (None, None, 0.0)
    assert run(tiny_task(**few), tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False)).steps == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("epochs", 0), ("round_steps", 0), ("metrics", {"loss": lambda _o, _t: 42.0})],
)
def test_a_length_below_one_and_a_metric_called_loss_are_refused_by_their_field(field: str, value: Any) -> None:
    with pytest.raises(TaskError, check=telling(field=f"task.{field}", value=value if value == 0 else "loss")):
        survey({field: value})


def test_a_shard_that_the_model_cannot_read_shows_before_the_run_and_not_at_its_end() -> None:
    narrow = torch.utils.data.TensorDataset(torch.zeros(8, 5), torch.zeros(8, dtype=torch.long))
    with pytest.raises(
        TaskError, check=telling("RuntimeError", field="task.model", value="a forward in evaluation mode")
    ):
        survey({"valid": narrow})


def test_a_seed_waits_for_the_end_of_the_rates_warmup_if_that_is_asked_for() -> None:
    rising = tiny_task(
        scheduler=lambda o, _: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 51))
    )

    def first(task: Task, **settings: Any) -> tuple[int, int]:
        survey = survey_of(task, tiny_config(**settings))
        return survey.resolved.growth.first_step, survey.first_fence

    assert first(rising, growth__after_warmup=True) == (50, 3)  # rounds of 20 steps
    assert first(rising, growth__after_warmup=True, growth__first_step=90) == (90, 5)
    assert first(rising) == (0, 1)
    assert first(tiny_task(), growth__after_warmup=True) == (0, 1)
    assert survey_of(rising, tiny_config(growth__after_warmup=True)).config.growth.first_step == 0  # as it was given


@pytest.mark.parametrize(
    ("settings", "key", "longer"),
    [
        ({"after_warmup": True}, "fence 3 (growth.after_warmup)", False),
        ({"first_step": 50}, "fence 3 (growth.first_step)", True),
        ({"first_fence": 3, "first_step": 50}, "fence 3 (growth.first_fence)", True),
    ],
)
def test_the_advice_names_the_key_of_the_first_fence_and_no_length_if_the_warmup_may_depend_on_it(
    settings: dict[str, Any], key: str, longer: bool
) -> None:
    rising = tiny_task(
        epochs=3,
        scheduler=lambda o, _: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 51)),
    )
    given = {f"growth__{name}": value for name, value in settings.items()}
    why = why_nothing_grows(survey_of(rising, tiny_config(**given)))
    assert why is not None
    assert key in why
    assert ("run.epochs=" in why) is longer
