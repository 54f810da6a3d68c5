"""docs/blueprints.md: its task and its config are run as they stand there, and the run is loaded again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from growing import slot
from torch import nn

import esper
from esper import run
from esper.config.joined import load_config
from esper.errors import ConfigError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry, blueprint
from esper.leyline.slots import Kind, SlotSpec
from esper.setup.forecast import forecast
from esper.setup.survey import survey_of
from esper.testing import telling
from esper.user_code.task_reference import load_task

PAGE = Path(__file__).parents[3] / "docs" / "blueprints.md"


def block(language: str, place: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[place]


@pytest.mark.slow
def test_the_page_is_a_task_that_runs_with_its_own_blueprint_and_is_loaded_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLUEPRINTS, "_blueprints", dict(BLUEPRINTS._blueprints))  # other tests have their own
    (tmp_path / "my_task.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "choice.toml").write_text(block("toml"), encoding="utf-8")
    assert "--set" not in block("sh")  # the default settings are enough
    config = load_config(tmp_path / "choice.toml", {"run.dir": str(tmp_path / "run"), "run.epochs": 4})
    task, reference = load_task(f"{tmp_path / 'my_task.py'}:task")
    told = forecast(survey_of(task, config))
    assert {one["blueprint"]: one["place"] for one in told["candidates"]} == dict.fromkeys(
        ("channel_gate", "low_rank"), "first tournament"
    )
    result = run(task, config, reference=reference)
    assert "channel_gate" in {seed.blueprint for seed in result.seeds}
    assert result.network is not None
    for _ in range(2):  # each imports the file anew, and its blueprint with it
        points = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(esper.load(tmp_path / "run")(points), result.network.eval()(points))


def test_the_seed_of_the_page_that_takes_padding_reads_no_padded_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLUEPRINTS, "_blueprints", dict(BLUEPRINTS._blueprints))
    exec(block("python", 1), {"__name__": "page"})
    spec = slot("body", Kind.NTC, (5, 8), padding="padding_mask")
    bare = spec.model_copy(update={"padding": None})
    made = BLUEPRINTS.get("sentence_mean")
    assert (made in BLUEPRINTS.for_slot(spec), made in BLUEPRINTS.for_slot(bare)) == (True, False)
    seed, h, padded = made.build(spec, 0), torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[3], [0]])
    nn.init.normal_(seed.out.weight)
    s = seed(h.masked_fill(padded[..., None], float("nan")), padded)
    assert torch.allclose(s[:1, :3], seed.out(h[:1, :3].mean(1, keepdim=True)).expand(-1, 3, -1), atol=1e-6)
    assert not s[padded].count_nonzero()


def make(registry: BlueprintRegistry, width: int) -> None:
    @blueprint("own", kinds=(Kind.NC,), risk=0.1, registry=registry)
    def own(spec: SlotSpec) -> nn.Module:
        return nn.Linear(spec.shape[-1], width)


def test_a_function_that_is_registered_again_replaces_its_older_self_and_no_other(body_spec: SlotSpec) -> None:
    registry = BlueprintRegistry()
    make(registry, 8)
    make(registry, 4)
    assert registry.get("own").parameters(body_spec) == 8 * 4 + 4

    def other(spec: SlotSpec) -> nn.Module:
        return nn.Linear(spec.shape[-1], 8)

    for taken in (other, lambda _spec: nn.Identity()):
        with pytest.raises(ConfigError, check=telling(field="blueprint.name", value="own")):
            blueprint("own", kinds=(Kind.NC,), risk=0.1, registry=registry)(taken)
    assert registry.get("own").parameters(body_spec) == 8 * 4 + 4
