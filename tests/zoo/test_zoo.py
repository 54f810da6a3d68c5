"""Ordinary PyTorch: what a survey accepts runs, is stopped and resumed with the same bits; the rest is refused."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from esper import resume, run
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import ConfigError, Drained
from esper.kasmina.judging import gates
from esper.setup.survey import survey_of
from esper.testing import StopAt, tiny_config
from esper.user_code.task_reference import load_task

ZOO = runpy.run_path(str(Path(__file__).parent / "zoo.py"))
RUNNING, REFUSED, config = ZOO["RUNNING"], ZOO["REFUSED"], ZOO["config"]
QUICK = (
    *("class_weights", "regression", "output_in_a_dict", "old_weight_norm", "autocast_inside_the_forward"),
    *("lengths_that_differ", "tagging_with_an_lstm", "batch_norm", "segmentation_with_a_skip"),
    "convolutions_over_time_with_pooling",
)
"""Those of `make test`; all others are marked slow."""
GAINING = ("regression", "segmentation_with_a_skip")
"""Their seeds gain by far: z is above 5, and its limit is -2.5. So gate G2 stays as it is."""

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, at what users write


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNNING]
)
def test_what_a_survey_accepts_grows_and_ends_with_the_same_bits_after_a_stop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For other tasks than GAINING, gate G2 asks for no gain: whether the seeds of such short runs gain depends on the
    processor.
    """
    for check in () if name in GAINING else ("_improves", "_no_harm"):
        monkeypatch.setattr(gates, check, lambda *_: [])
    task, reference = load_task(RUNNING[name])
    whole = run(task, config(tmp_path / "whole"), reference=reference)
    with pytest.raises(Drained):
        run(task, config(tmp_path / "run"), drain=(watch := StopAt(3)).drain, progress=watch, reference=reference)
    again = resume(tmp_path / "run")
    assert again.weights_sha256 == whole.weights_sha256
    assert (again.test_loss, again.test_metrics) == (whole.test_loss, whole.test_metrics)
    assert again.rounds == 6
    kinds = {entry.kind for entry in read_past(tmp_path / "run").entries}
    assert RecordKind.PLAN_APPLIED in kinds, "no seed was grafted: the run says nothing about a host with a seed"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_one_line_by_field_value_and_mend(name: str) -> None:
    make, pattern = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        survey_of(make(), tiny_config(growth__judge_samples=64, growth__min_samples=16))
    said = str(caught.value)
    assert re.search(pattern, said), said
    assert "\n" not in said
