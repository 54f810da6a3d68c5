"""A task that sets process-wide settings and keeps state by itself: on actors it ends with the bits of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actors.embedded_ray import EmbeddedRay
from actors.task_transport import SentSurvey
from esper import InProcess, OnRay, run
from esper.setup.survey import survey_of
from esper.testing import tiny_config
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

TASK = """
import torch
from esper.testing import Bands, TinyHost, tiny_task

torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
torch.set_flush_denormal(True)


class Keeping(TinyHost):
    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(1)

    def forward(self, x):
        return super().forward(x + torch.rand(x.shape, generator=self.own) / 50)

    def get_extra_state(self):
        return self.own.get_state()

    def set_extra_state(self, state):
        self.own.set_state(state)


class Drawing(Bands):
    def __init__(self, count, key):
        super().__init__(count, key)
        self.own = torch.Generator()

    def __getitem__(self, index):
        x, target = super().__getitem__(index)
        return x + torch.rand(8, generator=self.own) / 50, target

    def state_dict(self):
        return {"own": self.own.get_state()}

    def load_state_dict(self, state):
        self.own.set_state(state["own"])


def task():
    return tiny_task(model=Keeping, train=Drawing(1024, 1), gate=Drawing(256, 5))
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    before = torch.get_num_threads()
    (tmp_path / "mine.py").write_text(TASK)
    yield tmp_path / "mine.py"
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


def test_an_actor_works_with_our_settings_after_it_has_loaded_the_task(file: Path) -> None:
    task, reference = load_task(f"{file}:task")
    with process_state(1):
        sent = SentSurvey.of(survey_of(task, tiny_config()), reference)
        sent.open()  # it imports the file anew, as in an actor
        assert torch.get_num_threads() == 1
        assert not torch.are_deterministic_algorithms_enabled()


def test_actors_end_with_the_bits_of_one_process(file: Path, embedded: EmbeddedRay, tmp_path: Path) -> None:
    task, reference = load_task(f"{file}:task")
    results = [
        run(task, tiny_config(run__dir=str(tmp_path / name), run__epochs=4), on=on, reference=reference)
        for name, on in (("alone", InProcess()), ("actors", OnRay(embedded)))
    ]
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert results[0].twin_weights_sha256 == results[1].twin_weights_sha256
