"""The objects of the actors, without Ray: the trainer, a manager's forks, and sent tasks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from actors import hosted_components
from actors.hosted_components import HostedForks
from actors.task_transport import SentSurvey
from esper.emergency.word import EmergencyWord
from esper.errors import EmergencyStop, TaskError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry
from esper.leyline.signals import Level
from esper.setup.assembly import RunKey, make_trainer
from esper.setup.survey import Survey, survey_of
from esper.testing import telling, tiny_config, tiny_task
from esper.user_code.task_reference import Reference

KEY = RunKey("6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10", 1, b"secret")


@pytest.fixture(scope="module")
def survey() -> Survey:
    return survey_of(tiny_task(), tiny_config())


@pytest.fixture
def word(tmp_path: Path) -> Any:
    with EmergencyWord.create(tmp_path / "word") as made:
        yield made


# -- the trainer -------------------------------------------------------------------------------------------------


def test_the_live_host_reads_the_word_at_every_step(survey: Survey, word: EmergencyWord) -> None:
    trainer = hosted_components.tolaria(SentSurvey.of(survey, Reference()), KEY, word.path)
    trainer.train_to(7)
    word.set(Level.CONSERVATIVE, 1, 1)
    trainer.train_to(9)
    word.set(Level.HALT, 1, 2)
    with pytest.raises(EmergencyStop) as stop:
        trainer.run_round(1, 20)
    assert (stop.value.step, trainer.step) == (9, 9)


# -- forks by name -----------------------------------------------------------------------------------------------


def test_forks_share_no_state_with_each_other_or_with_their_host(survey: Survey) -> None:
    house = HostedForks(SentSurvey.of(survey, Reference()), KEY, lambda: False, fetch=lambda snapshot: snapshot)
    live = make_trainer(survey, KEY)
    live.train_to(5)
    before = live.weights_sha256()
    for name in ("one", "other"):
        house.open(name, [live.snapshot()], None, {})
    assert house.train_to("one", 10) == make_and_train(survey, 10)[5:]
    assert house.weights_sha256("other") == before == live.weights_sha256()
    live.train_to(10)
    assert house.weights_sha256("one") == live.weights_sha256()
    assert house.shard_means("one", "test") == live.shard_means("test")
    assert house.sample_losses("one", "pick", 1) == live.sample_losses("pick", 1)
    house.close(["one"])
    with pytest.raises(KeyError, match="one"):
        house.train_to("one", 11)
    assert house.weights_sha256("other") == before


def make_and_train(survey: Survey, step: int) -> tuple[float, ...]:
    return make_trainer(survey, KEY).train_to(step)


# -- how a task gets there ---------------------------------------------------------------------------------------


def sent_and_opened(survey: Survey, reference: Reference) -> Survey:
    opened: Survey = cloudpickle.loads(cloudpickle.dumps(SentSurvey.of(survey, reference))).open()
    return opened


def test_a_task_without_a_reference_is_sent_whole_with_its_blueprints() -> None:
    own = BlueprintRegistry()
    own.add(BLUEPRINTS.get("mlp"))
    survey = survey_of(tiny_task(), tiny_config(), own)
    opened = sent_and_opened(survey, Reference())
    assert [made.name for made in opened.blueprints.for_kind(survey.specs[0].kind)] == ["mlp"]
    assert opened.task is not survey.task
    assert (opened.specs, opened.options, opened.fence_steps) == (
        survey.specs,
        survey.options,
        survey.fence_steps,
    )
    assert make_and_train(opened, 12) == make_and_train(survey, 12)


FILE = """
from esper.testing import tiny_task
from esper.tolaria.trainer import never

LOADED = []

def task():
    LOADED.append(1)
    return tiny_task()
"""


def test_a_referenced_task_is_imported_in_the_actor_and_not_sent(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FILE)
    reference = Reference(f"{tmp_path / 'own.py'}:task", tmp_path / "own.py")
    survey = survey_of(tiny_task(), tiny_config())
    sent = cloudpickle.dumps(SentSurvey.of(survey, reference))
    assert b"own.py" in sent
    assert b"Bands" not in sent
    assert len(sent) < 20_000
    opened = sent_and_opened(survey, reference)
    assert sys.modules["esper_task_own"].LOADED == [1]
    assert opened.blueprints is BLUEPRINTS
    assert make_and_train(opened, 12) == make_and_train(survey, 12)


def test_a_missing_task_file_is_an_error_in_the_actor(tmp_path: Path) -> None:
    sent = SentSurvey.of(survey_of(tiny_task(), tiny_config()), Reference(f"{tmp_path}/gone.py:task"))
    with pytest.raises(TaskError, check=telling(field="TASK", value=re.compile("/gone\\.py$"))):
        sent.open()
