"""Tasks that are sent to another process, and the refusal of those that cannot be sent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from actors.task_transport import SentSurvey, TaskSource
from esper import OnRay, run
from esper.errors import ConfigError, TaskError
from esper.ground.workplace import from_here
from esper.setup.survey import survey_of
from esper.testing import telling, tiny_config, tiny_task
from esper.user_code.task_reference import Reference, load_task

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"


def test_a_task_of_a_relative_path_is_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "mine.py").write_text(TASK)
    monkeypatch.chdir(tmp_path / "here")
    source = TaskSource.of(survey_of(tiny_task(), tiny_config()), load_task("mine.py:task")[1])
    monkeypatch.chdir(tmp_path / "there")
    assert source.load()[0].epochs == tiny_task().epochs


@pytest.mark.parametrize("text", ["esper.testing:tiny_task", ""])
def test_a_task_is_loaded_in_the_folder_where_the_run_began(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, reference = survey_of(tiny_task(), tiny_config()), load_task(text)[1] if text else Reference()
    for name in ("began", "left"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "began")
    with from_here():
        os.chdir(tmp_path / "left")
        (tmp_path / "left").rmdir()
        source = TaskSource.of(survey, reference)
    source.load()
    assert Path.cwd() == tmp_path / "began"
    os.chdir(tmp_path)
    (tmp_path / "began").rmdir()
    with pytest.raises(ConfigError, check=telling("No such file", field="working directory")):
        source.load()


def test_a_file_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    task, reference = load_task(f"{tmp_path}/mine.py:task")
    source = TaskSource.of(survey_of(task, tiny_config()), reference)
    (tmp_path / "mine.py").write_text(TASK + "# changed\n")
    with pytest.raises(TaskError, check=telling(field="task", value=re.compile("/mine\\.py:task$"))):
        source.load()


def test_a_task_of_a_module_is_named_as_it_was() -> None:
    source = TaskSource.of(survey_of(tiny_task(), tiny_config()), load_task("esper.testing:tiny_task")[1])
    assert source.reference.text == "esper.testing:tiny_task"


def test_a_task_that_cannot_be_sent_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    lock = threading.Lock()
    task = replace(tiny_task(), metrics={"held": lambda output, target: output if lock else target})
    with pytest.raises(TaskError, check=telling(field="task", value="TypeError")):
        run(task, tiny_config(run__dir=str(tmp_path / "run")), on=OnRay())
    assert os.listdir(tmp_path) == []


def test_the_survey_is_not_repeated_in_an_actor() -> None:
    survey = survey_of(tiny_task(), tiny_config())
    opened = SentSurvey.of(survey, Reference()).open()
    assert opened.specs == survey.specs
    assert opened.fence_steps == survey.fence_steps
    assert opened.task.slots == survey.task.slots


def test_a_task_without_a_reference_finds_what_the_senders_script_imports(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "of_the_script.py").write_text("EPOCHS = 13\ndef metric(output, target): return output\n")
    (tmp_path / "script.py").write_text(
        "import sys\nfrom pathlib import Path\nsys.path.append('library')\nimport of_the_script\n"
        "from esper.testing import tiny_config, tiny_task\nfrom esper.setup.survey import survey_of\n"
        "from esper.user_code.task_reference import Reference\nfrom actors.task_transport import TaskSource\n"
        "from ray import cloudpickle\n"
        "task = tiny_task(epochs=of_the_script.EPOCHS, metrics={'same': of_the_script.metric})\n"
        "source = TaskSource.of(survey_of(task, tiny_config()), Reference())\n"
        "Path('sent').write_bytes(cloudpickle.dumps(source))\n"
    )
    (tmp_path / "elsewhere").mkdir()
    receives = "import pickle; print(pickle.load(open('../sent', 'rb')).load()[0].epochs)"
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True)
    (tmp_path / "library").rename(tmp_path / "elsewhere" / "moved")
    gone = subprocess.run([sys.executable, "-c", receives], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert "an actor cannot rebuild it (No module named 'of_the_script'); give its reference" in gone.stderr
    (tmp_path / "elsewhere" / "moved").rename(tmp_path / "library")
    here = subprocess.run([sys.executable, "-c", receives], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert here.stdout == "13\n"
