"""A host with a padding mask grows seeds that take it, and keeps them through a stop, a proof and exports."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import esper
from esper.archive.identity import load_identity
from esper.errors import Drained, TaskError
from esper.flow.identifying import check_same_task
from esper.kasmina.blueprints.ntc import MaskedAttention
from esper.kasmina.judging import gates
from esper.setup.survey import survey_of
from esper.testing import StopAt
from esper.user_code.task_reference import load_task

ZOO = runpy.run_path(str(Path(__file__).parent / "zoo.py"))
WORDS = torch.tensor([[1, 2, 3, 4, 5], [4, 2, 7, 0, 0], [8, 3, 0, 0, 0]])
"""As long as the sentences of the batch with which programs are traced; 0 is the padding."""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch's own, at what users write


@pytest.mark.parametrize("entry", ["graft", "adopt"])
def test_masked_attention_grows_in_torchs_encoder_and_survives_stop_proof_and_export(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in ("_improves", "_no_harm"):  # of such short runs: whether a seed gains depends on the processor
        monkeypatch.setattr(gates, check, lambda *_: [])
    task, reference = load_task(ZOO["RUNNING"]["transformer_with_a_padding_mask"])
    choice = {"body.layers.*": ["masked_attention"], "words": ["norm"]}

    def config(name: str):
        return ZOO["config"](tmp_path / name, growth__blueprints=choice, growth__entry=entry, growth__copies=2)

    whole = esper.run(task, config("whole"), reference=reference)
    assert [seed.blueprint for seed in whole.seeds if seed.slot.startswith("body")]
    with pytest.raises(Drained):
        esper.run(task, config("run"), drain=(watch := StopAt(3)).drain, progress=watch, reference=reference)
    assert esper.resume(tmp_path / "run").weights_sha256 == whole.weights_sha256
    assert esper.prove(tmp_path / "run").divergence is None

    began = load_identity(tmp_path / "run")
    older = began.model_copy(update={"slots": tuple(one.model_copy(update={"padding": None}) for one in began.slots)})
    with pytest.raises(TaskError, match="other padding masks than when the run began"):
        check_same_task(survey_of(task, began.config), older)

    network = esper.load(tmp_path / "run")
    assert any(isinstance(module, MaskedAttention) for module in network.modules())
    expected = network(WORDS)
    assert torch.allclose(network(WORDS[1:2, :3]), expected[1:2], atol=1e-5), "the padding changes nothing"
    folder = esper.export_network(tmp_path / "run", "torch", to=tmp_path / "network").files[0].parent
    assert torch.equal(runpy.run_path(str(folder / "network.py"))["build"](task.model)(WORDS), expected)
    (file,) = esper.export_network(tmp_path / "run", "export", to=tmp_path / "network.pt2").files
    assert torch.allclose(torch.export.load(file).module()(WORDS), expected, atol=1e-6)
    assert esper.export_network(tmp_path / "run", "onnx", to=tmp_path / "network.onnx").files  # it compares outputs
