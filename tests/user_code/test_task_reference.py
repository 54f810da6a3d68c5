"""Finding a task by name: what is found, and one clear sentence for each way of not finding it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from esper.errors import TaskError
from esper.task import Task
from esper.user_code.task_reference import load_task

FILE = """
from esper.testing import tiny_task
task = tiny_task()
make = tiny_task
number = 3
def wrong(): return 3
def needs(argument): return argument
def breaks(): raise KeyError("lost")
async def later(): return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def complaint(text: str) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(text)
    return str(caught.value)


@pytest.mark.parametrize("attribute", ["task", "make"])
def test_a_file_gives_its_task_or_what_its_function_returns(file: Path, attribute: str) -> None:
    task, reference = load_task(f"{file}:{attribute}")
    assert isinstance(task, Task)
    assert (reference.text, reference.file) == (f"{file}:{attribute}", file)


def test_a_module_gives_its_task() -> None:
    task, reference = load_task("esper.testing:tiny_task")
    assert isinstance(task, Task)
    assert reference.file is not None
    assert reference.file.name == "testing.py"


def test_what_a_file_defines_can_be_found_by_its_module(tmp_path: Path) -> None:
    path = tmp_path / "defines.py"
    path.write_text("from esper.testing import TinyHost, tiny_task\nclass Mine(TinyHost): pass\ntask = tiny_task()\n")
    load_task(f"{path}:task")
    module = sys.modules["esper_task_defines"]
    assert module.Mine.__module__ == "esper_task_defines"


@pytest.mark.parametrize("text", ["mine.py", "", ":task", "mine.py:"])
def test_a_text_without_a_place_or_an_attribute_is_refused(text: str) -> None:
    assert "use module:attribute or path/to/file.py:attribute" in complaint(text)


def test_what_is_not_there_is_named(file: Path) -> None:
    assert "there is no module 'nowhere'" in complaint("nowhere:task")
    assert "there is no module 'esper.nowhere'" in complaint("esper.nowhere:task")
    assert "there is no such file" in complaint("nowhere.py:task")
    assert "has no 'tsk'; the nearest is 'task'" in complaint(f"{file}:tsk")


def test_a_path_without_its_ending_is_no_module() -> None:
    assert "the path of a file ends in .py" in complaint("./mine:task")
    assert "the path of a file ends in .py" in complaint("tasks/mine:task")


def test_what_is_no_task_is_named_by_its_type(file: Path) -> None:
    assert "of type int; name a Task" in complaint(f"{file}:number")
    assert "it is an async function" in complaint(f"{file}:later")
    assert "it returned a value of type int; return an esper.Task" in complaint(f"{file}:wrong")


def test_what_the_users_code_raises_is_told_with_its_place(file: Path, tmp_path: Path) -> None:
    assert complaint(f"{file}:breaks").endswith(f"it raised KeyError: 'lost' ({file}, line 8)")
    assert "missing 1 required positional argument" in complaint(f"{file}:needs")
    broken = tmp_path / "broken.py"
    broken.write_text("task = 1 +\n")
    assert complaint(f"{broken}:task").endswith("it raised SyntaxError: invalid syntax (broken.py, line 1)")


def test_a_module_that_the_task_file_imports_is_named_with_the_line_that_imports_it(tmp_path: Path) -> None:
    path = tmp_path / "imports.py"
    path.write_text("import not_installed_anywhere\n")
    assert complaint(f"{path}:task").endswith(
        f"it raised ModuleNotFoundError: No module named 'not_installed_anywhere' ({path}, line 1)"
    )


def test_an_error_of_ours_that_the_file_raises_is_told_as_the_files(tmp_path: Path) -> None:
    path = tmp_path / "ours.py"
    path.write_text("from esper.errors import TaskError\nraise TaskError('corpus', 'x', 'mend it')\n")
    assert f"it raised TaskError: corpus = 'x': mend it ({path}, line 2)" in complaint(f"{path}:task")
