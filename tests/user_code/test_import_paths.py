"""Where a task's modules are found, and what is said where another module of the name is found instead."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from esper.errors import ConfigError, TaskError
from esper.testing import telling
from esper.user_code import plugins
from esper.user_code.import_paths import ROOT, absolute_path, is_the_users, join_path
from esper.user_code.task_reference import import_task, load_task, locate

TASK = "from esper.testing import tiny_task\ntask = tiny_task(epochs={epochs})\n"
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def same_path_afterwards() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files by path below an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def files(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / (name.replace("__", "/") + ".py").replace("/init.py", "/__init__.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return files


def complaint(text: str) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(text)
    return str(caught.value)


# -- what a task imports -----------------------------------------------------------------------------------------


def test_a_task_file_imports_its_sibling_from_any_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(project__mine="import sizes_of_mine\n" + TASK.format(epochs="sizes_of_mine.EPOCHS"))
    write(project__sizes_of_mine="EPOCHS = 7\n")
    assert load_task("project/mine.py:task")[0].epochs == 7
    monkeypatch.chdir("/")
    task, reference = load_task(f"{folder}/project/mine.py:task")
    assert task.epochs == 7
    assert reference.modules() == {
        "esper_task_mine": folder / "project" / "mine.py",
        "sizes_of_mine": folder / "project" / "sizes_of_mine.py",
    }


def test_a_module_is_found_in_the_folder_where_a_run_was_begun(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(
        here__package__init="", here__package__mine="from .sizes import EPOCHS\n" + TASK.format(epochs="EPOCHS")
    )
    write(here__package__sizes="EPOCHS = 7\n", there__package__init="", there__package__mine=TASK.format(epochs=3))
    monkeypatch.chdir(folder / "there")
    task, reference = import_task(locate("package.mine:task", str(folder / "here")))
    assert (task.epochs, reference.file) == (7, folder / "here" / "package" / "mine.py")
    assert load_task("package.mine:task")[0].epochs == 3


def test_two_folders_with_modules_of_one_name_do_not_mix(write: Write) -> None:
    for number in (1, 2):
        write(**{f"f{number}__mine": "import sizes_of_two\n" + TASK.format(epochs="sizes_of_two.EPOCHS")})
        write(**{f"f{number}__sizes_of_two": f"EPOCHS = {number}\n"})
    assert [load_task(f"f{number}/mine.py:task")[0].epochs for number in (1, 2, 1)] == [1, 2, 1]


def test_a_sibling_that_was_edited_is_imported_anew(write: Write) -> None:
    write(mine="import sizes_edited\n" + TASK.format(epochs="sizes_edited.EPOCHS"), sizes_edited="EPOCHS = 5\n")
    assert load_task("mine.py:task")[0].epochs == 5
    write(sizes_edited="EPOCHS = 11\n")
    assert load_task("mine.py:task")[0].epochs == 11


def test_nothing_of_a_task_is_run_to_find_its_file(write: Write) -> None:
    folder = write(loud__init="raise SystemExit('run')", loud__mine="raise SystemExit('run')")
    for text in ("loud.mine:task", "loud/mine.py:task"):
        assert locate(text).file == folder / "loud" / "mine.py"


@pytest.mark.parametrize("name", ["my-task", "1", "a b", "größe", "random", "torch", "esper"])
def test_a_task_file_may_have_any_name(write: Write, name: str) -> None:
    folder = write(
        **{name: "import random, torch\n" + TASK.format(epochs="int(random.random() * 0 + torch.ones(1)) + 1")}
    )
    assert load_task(f"{name}.py:task")[0].epochs == 2
    assert load_task(f"{folder}/{name}.py:task")[0].epochs == 2


def test_a_home_folder_may_be_written_short(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(write(mine=TASK.format(epochs=4))))
    assert load_task("~/mine.py:task")[0].epochs == 4


def test_a_file_that_imports_relative_to_its_package_is_told_how_it_can_be_named(write: Write) -> None:
    relative = "from .sizes import EPOCHS\n" + TASK.format(epochs="EPOCHS")
    folder = write(package__init="", package__mine=relative, package__sizes="EPOCHS = 9\n")
    assert complaint("package/mine.py:task").endswith(f"line 1); name it package.mine:task and run in {folder}")
    assert load_task("package.mine:task")[0].epochs == 9


# -- names that are taken ----------------------------------------------------------------------------------------


def test_modules_of_the_users_with_names_that_are_taken_disturb_nobody(write: Write) -> None:
    loud = "raise SystemExit('imported')"
    write(random=loud, types=loud, torch__init=loud, esper__init=loud, mine=TASK.format(epochs=6))
    assert load_task("mine.py:task")[0].epochs == 6


@pytest.mark.parametrize("name", ["random", "torch", "actors"])
def test_an_import_that_does_not_find_the_file_beside_it_is_named(write: Write, name: str) -> None:
    import_module("actors")
    write(mine="import helping\n" + TASK.format(epochs=6), helping=f"x = 1\nimport {name}\n", **{name: ""})
    said = complaint("mine.py:task")
    assert f"it imports {name!r} ({Path.cwd()}/helping.py, line 2) and gets " in said
    assert said.endswith(f", not {Path.cwd()}/{name}.py: rename yours")


@pytest.mark.parametrize("asks", ["from random import EPOCHS", "import random; random.EPOCHS", "import actors.mine"])
def test_an_import_that_fails_because_another_module_has_the_name_says_so(write: Write, asks: str) -> None:
    name = asks.split()[1].split(".")[0].rstrip(";")
    ours = import_module(name)
    write(**{f"{name}__init": "", f"{name}__mine": "", "mine": "import helping\n", "helping": f"x = 1\n{asks}\n"})
    said = complaint("mine.py:task")
    assert f"({Path.cwd()}/helping.py, line 2); {name!r} is " in said
    assert f"{ours.__file__}" in said
    assert said.endswith(f", not {Path.cwd()}/{name}/__init__.py: rename yours")


def test_a_package_of_our_name_cannot_hold_a_task(write: Write) -> None:
    import_module("actors")
    write(actors__mine=TASK.format(epochs=6))
    assert "esper's own package" in complaint("actors.mine:task")


def test_a_module_named_as_one_that_is_loaded_has_to_be_named_by_its_path(write: Write) -> None:
    folder = write(types=TASK.format(epochs=6))
    assert f"rename yours or give its path, {folder}/types.py:task" in complaint("types:task")
    assert load_task("types.py:task")[0].epochs == 6


# -- what is looked up beside a task ------------------------------------------------------------------------------


OWN = "drills.drill_commands:add"
"""The command that esper's own package `drills` adds."""


def test_no_entry_point_of_the_working_directory_is_looked_up(write: Write) -> None:
    folder = write(evil="raise SystemExit('evil')") / "esper_evil-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: esper-evil\nVersion: 9\n")
    (folder / "entry_points.txt").write_text("[esper.commands]\nevil = evil:go\n[esper.launchers]\nray = evil:go\n")
    for place in ("", ".", str(folder.parent)):
        sys.path.insert(0, place)
        assert [entry.value for entry in plugins.entries("esper.commands")] == [OWN]
        assert [entry.value for entry in plugins.entries("esper.launchers")] == ["actors.launcher:RayLauncher"]
        del sys.path[0]
    sys.path.insert(0, str(folder.parent))
    (folder.parent / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("elsewhere")
        assert [entry.value for entry in plugins.entries("esper.commands")] == [OWN, "evil:go"]


def test_our_launcher_is_found_before_a_package_of_its_name(write: Write) -> None:
    folder = write(actors__init="raise SystemExit('hers')", actors__launcher="raise SystemExit('hers')")
    code = "import sys; from esper.user_code.plugins import launcher as get; "
    sees = code + "print(sys.modules[get('ray').__module__].__file__)"
    told = subprocess.run([sys.executable, "-c", sees], cwd=folder, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(Path(plugins.__file__).parents[2] / "actors" / "launcher.py")


def test_a_package_that_was_imported_in_the_place_of_ours_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("actors")
    module.__file__ = str(write() / "actors" / "__init__.py")
    monkeypatch.setitem(sys.modules, "actors", module)
    with pytest.raises(ConfigError, check=telling(field="actors", value=re.compile("/actors/__init__\\.py$"))):
        plugins.launcher("ray")


def test_an_install_that_is_older_than_the_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = EntryPoint("ray", "actors.launcher:launch", plugins.LAUNCHERS)
    monkeypatch.setattr(plugins, "entries", lambda _: [before])
    with pytest.raises(ConfigError, check=telling(field="entry point", value="actors.launcher:launch")):
        plugins.launcher("ray")


def test_an_import_path_is_taken_over_with_its_order(write: Write) -> None:
    sys.path[:] = ["", "rel", "/a", "/b"]
    path = absolute_path()
    assert path == (str(write()), f"{write()}/rel", "/a", "/b")
    sys.path[:] = ["/worker", "/b"]
    join_path(path)
    assert sys.path == [*path, "/worker"]


@pytest.mark.parametrize(
    ("file", "hers"),
    [
        ("/home/her/.local/lib/python3.11/site-packages/lib/deep.py", False),
        ("/usr/lib/python3/dist-packages/lib.py", False),
        (subprocess.__file__, False),
        (pytest.__file__, False),
        (f"{ROOT}/esper/tasks/digits.py", False),
        (f"{ROOT}/actors/launcher.py", False),
        (f"{ROOT}/tests/test_import_paths.py", True),
        ("/home/her/packages/task.py", True),
    ],
)
def test_a_file_is_the_users_where_it_is_not_installed_and_not_ours(file: str, hers: bool) -> None:
    assert is_the_users(Path(file)) is hers
