"""Holds the table of rooms: who may import whom, read from the source by `ast`. It imports none of it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from ray_names import private_names, underscored
from source_imports import Import, Module, at_import

ROOT = Path(__file__).resolve().parents[1]
OURS = frozenset({"esper", "actors", "drills", "tests", "benchmarks", "examples", "tools"})

FLOORS: tuple[tuple[str, str], ...] = (
    ("errors", ""),
    ("task", ""),
    ("ground", "errors"),
    ("leyline", "errors ground"),
    ("policies", "leyline"),
    ("durable", "errors ground"),
    ("telemetry.settings", "leyline"),
    ("telemetry", "errors ground"),
    ("trace", "errors ground"),
    ("faults", "errors leyline ground durable telemetry"),
    ("user_code", "errors task leyline ground"),
    ("tasks", "errors task"),
    ("emergency.settings", "errors leyline ground"),
    ("emergency", "errors leyline ground durable telemetry faults emergency.settings"),
    ("kasmina.settings", "leyline"),
    ("kasmina.blueprints", "errors leyline ground user_code"),
    ("kasmina.host", "errors leyline ground user_code kasmina.blueprints"),
    ("kasmina.judging", "errors leyline ground user_code kasmina.settings kasmina.blueprints kasmina.host"),
    (
        "kasmina.incubation",
        "errors leyline ground telemetry kasmina.settings kasmina.blueprints kasmina.host kasmina.judging",
    ),
    (
        "kasmina.registry",
        "errors leyline ground telemetry faults kasmina.settings kasmina.blueprints kasmina.host "
        "kasmina.judging kasmina.incubation",
    ),
    ("kasmina", ""),
    ("tamiyo.settings", "leyline"),
    ("tamiyo", "errors leyline policies ground durable telemetry faults user_code tamiyo.settings"),
    ("tolaria.settings", "leyline"),
    ("tolaria", "errors task leyline ground durable telemetry faults user_code"),
    (
        "config",
        "errors leyline ground telemetry.settings faults emergency.settings kasmina.settings "
        "tamiyo.settings tolaria.settings",
    ),
    (
        "setup",
        "errors task leyline ground user_code kasmina.blueprints kasmina.host kasmina.judging "
        "kasmina.incubation kasmina.registry tamiyo tolaria config",
    ),
    ("archive", "errors task leyline ground durable emergency emergency.settings user_code tolaria config setup"),
    ("export", "errors task leyline ground durable user_code kasmina.blueprints kasmina.host tolaria setup archive"),
    (
        "flow",
        "errors task leyline ground durable telemetry faults user_code emergency emergency.settings kasmina.registry "
        "tamiyo tolaria "
        "config setup archive export",
    ),
    (
        "cli",
        "errors task leyline ground durable trace emergency user_code tasks tolaria config setup archive export flow",
    ),
    ("testing", "leyline tasks config flow"),
)
"""Room of esper/ -> the other rooms of it that it may import, as words. A room may always
import itself, and only rooms that stand before it: what depends on nothing comes first."""


def _named(words: str) -> frozenset[str]:
    return frozenset(f"esper.{word}" for word in words.split())


MAY_IMPORT: dict[str, frozenset[str]] = {
    **{f"esper.{room}": _named(words) for room, words in FLOORS},
    "esper": _named("task leyline ground kasmina.blueprints config export flow cli"),
    "actors": _named(
        "errors task leyline ground durable telemetry faults user_code emergency.settings emergency "
        "kasmina.blueprints "
        "kasmina.incubation kasmina.registry tamiyo tolaria config setup archive export flow"
    ),
    "drills": _named(" ".join(room for room, _ in FLOORS if room != "testing")) | {"actors", "esper"},
}
"""Room -> the other rooms of ours that it may import. `esper` is the package's own `__init__` and `__main__`."""

NEVER_OUTSIDE = {
    "ray": frozenset({"esper"}),
    "torch": frozenset({"esper.leyline", "esper.config", *(room for room in MAY_IMPORT if room.endswith(".settings"))}),
    **dict.fromkeys(("rich", "typer"), frozenset(MAY_IMPORT) - {"esper", "esper.cli", "drills"}),
}
"""Package of others -> rooms and packages of ours that never import it, nor does anything below them."""

FRONT = frozenset({"esper", "esper.__main__"})
"""What every import of esper loads, and what the command line begins with: none of these packages is imported here."""

LOADS_BY_NAME = {
    "esper.user_code.task_reference": "the module or file of a user's task",
    "esper.user_code.plugins": "launchers that are installed beside esper",
    "esper.export.definitions": "the modules of a user's blueprints, whose source is written into a file",
    "esper.export.exporting": "a network's file that was just written, with a user's blueprints in it",
    "drills.choosing": "the file of a user's drill",
    "esper.cli.lazy_group": "commands, by the places in `esper.cli.command_table`, which count as imports there",
}
"""Module -> what it imports that its source does not name. Every other module names what it imports."""


def modules_under(root: Path) -> Iterator[Module]:
    for room in ("esper", "actors", "drills"):
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            yield Module(name, ast.parse(path.read_text(encoding="utf-8")), is_package)


def named_in(module: Module) -> Iterator[Import]:
    """Everything that a file imports or names as `module:attribute`, wherever it stands."""
    yield from module.imports()
    yield from module.places()


def starts_with(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def room_of(name: str) -> str:
    """The room with the longest prefix of `name`; a package of ours that has none is its own, forbidden, room."""
    return max((room for room in MAY_IMPORT if starts_with(name, room)), key=len, default=name.partition(".")[0])


def violations(module: Module) -> Iterator[str]:
    room = room_of(module.name)
    if room == "esper" and module.name not in {"esper", "esper.__main__"}:
        yield f"{module.name} is in no room: give it one in MAY_IMPORT"
        return
    if module.name not in LOADS_BY_NAME:
        yield from (f"{module.name}:{line} may import what its source does not say" for line in module.hidden())
    outside = {package for package in NEVER_OUTSIDE if never_loads(module.name, package)}
    for found in named_in(module):
        top = found.target.partition(".")[0]
        other = room_of(found.target)
        if top in outside or (top in OURS and other != room and other not in MAY_IMPORT[room]):
            yield f"{module.name}:{found.line} imports {found.target}"


def never_loads(name: str, package: str) -> bool:
    """Whether a module of ours never imports that package of others."""
    return name in FRONT or any(starts_with(name, room) for room in NEVER_OUTSIDE[package])


def breaches(modules: Iterable[Module], package: str) -> set[str]:
    """Imports of `package` at import time of a module that may not load it, or of what such a module loads.

    The import of a module also loads each package above it.
    """
    by_name = {module.name: module for module in modules}
    reached, crossed = set[str](), set[str]()
    todo = [name for name in by_name if never_loads(name, package)]
    while todo:
        name = todo.pop()
        if name in reached or name not in by_name:
            continue
        reached.add(name)
        todo.append(name.rpartition(".")[0])
        for found in by_name[name].imports(at_import(by_name[name].tree)):
            if starts_with(found.target, package):
                crossed.add(f"{name}:{found.line} is imported where {package} may not be")
            todo += [found.target, found.target.rpartition(".")[0]]
    return crossed


def cycle(modules: Iterable[Module]) -> list[str]:
    """One cycle of top-level imports, first module repeated at the end; empty if there is none."""
    by_name = {module.name: module for module in modules}
    graph = {
        name: {
            known
            for found in module.imports(at_import(module.tree))
            for known in [found.target if found.target in by_name else found.target.rpartition(".")[0]]
            if known in by_name
        }
        for name, module in by_name.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def files_beside_kasminas_rooms(modules: list[Module]) -> set[str]:
    return {module.name for module in modules if room_of(module.name) == "esper.kasmina"} - {"esper.kasmina"}


def modules_without_a_purpose(modules: list[Module]) -> set[str]:
    return {module.name for module in modules if not ast.get_docstring(module.tree)}


def folders_that_are_no_packages(modules: list[Module]) -> set[str]:
    packages = {module.name for module in modules if module.is_package}
    return {module.name.rpartition(".")[0] for module in modules} - packages - {""}


def names_of_several_files(modules: list[Module]) -> set[str]:
    counted = Counter(module.name.rpartition(".")[2] for module in modules if not module.is_package)
    return {name for name, times in counted.items() if times > 1} - {"settings"}


WHOLE_TREE_RULES = (
    files_beside_kasminas_rooms,
    modules_without_a_purpose,
    folders_that_are_no_packages,
    names_of_several_files,
)
"""Each returns what breaks it."""


# -- the tree ----------------------------------------------------------------------------------------------------

TREE = list(modules_under(ROOT))


def test_the_tree_was_read() -> None:
    assert {"esper", "esper.errors", "actors", "drills"} <= {module.name for module in TREE}


def test_every_import_stays_within_the_table_of_rooms() -> None:
    assert [line for module in TREE for line in violations(module)] == []


def test_every_permission_of_the_table_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for module in TREE:
        for found in named_in(module):
            if found.target.partition(".")[0] in OURS:
                used[room_of(module.name)].add(room_of(found.target))
    unused = {room: MAY_IMPORT[room] - used[room] for room in MAY_IMPORT if room != "drills"}  # a drill may use all
    assert {room: sorted(rooms) for room, rooms in unused.items() if rooms} == {}


@pytest.mark.parametrize("package", NEVER_OUTSIDE)
def test_no_import_leads_from_a_room_to_a_package_that_it_may_not_load(package: str) -> None:
    assert breaches(TREE, package) == set()


def test_each_file_that_may_load_what_its_source_does_not_name_does() -> None:
    assert {module.name for module in TREE if module.hidden()} == set(LOADS_BY_NAME)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle(TREE) == []


@pytest.mark.parametrize("rule", WHOLE_TREE_RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_every_rule_that_needs_no_table(rule: Callable[[list[Module]], set[str]]) -> None:
    assert rule(TREE) == set()


def files_of_ray() -> Iterator[Path]:
    """Every source file but the one that may name what Ray does not promise, its test, and what tests do to workers."""
    for folder in ("esper", "actors", "drills", "tests", "benchmarks"):
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if "ray_private" not in path.name)


def test_what_ray_does_not_promise_is_named_in_one_file() -> None:
    marked = underscored((ROOT / "actors" / "ray_private.py").read_text()) - {"_private"}
    named = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files_of_ray()
        if path != Path(__file__)
        for name in private_names(ast.parse(path.read_text(encoding="utf-8")), marked)
    }
    assert {"_raylet", "_global_node", "_actor_id", "_temp_dir"} <= marked
    assert named == set()


@pytest.mark.parametrize(
    "source",
    [
        "from ray._raylet import ActorID",
        "import ray._private.worker",
        "import ray\nray._private.worker.print_to_stdstream = None",
        "from ray.actor import ActorHandle\nActorHandle._remote()",
        "def f(actor): return actor._actor_id",
        "ray.init(_temp_dir='here')",
        "os.environ['RAY_worker_niceness'] = '0'",
    ],
)
def test_planted_name_that_ray_does_not_promise_is_found(source: str) -> None:
    assert private_names(ast.parse(source), {"_actor_id", "_temp_dir"})


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


# -- the checker itself ------------------------------------------------------------------------------------------


def planted(name: str, source: str, is_package: bool = False) -> Module:
    return Module(name, ast.parse(source), is_package)


def test_the_rooms_of_esper_stand_in_the_order_of_their_imports() -> None:
    for number, (room, _) in enumerate(FLOORS):
        before = {f"esper.{name}" for name, _ in FLOORS[:number]}
        assert MAY_IMPORT[f"esper.{room}"] <= before, room


def test_the_page_of_the_architecture_names_every_room_in_the_order_of_their_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| room |") :].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    assert named == [room for room, _ in FLOORS]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_room_is_held_to_each_of_its_rules(room: str) -> None:
    for other in MAY_IMPORT.keys() - {room}:
        crossed = list(violations(planted(room, f"import {other}")))
        assert bool(crossed) == (other not in MAY_IMPORT[room]), other


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("esper.flow.line", "from rich.text import Text"),
        ("esper.leyline.state", "from torch import nn"),
        ("esper.kasmina.host.host_editor", "from esper.tolaria.trainer import Trainer"),
        ("esper.kasmina.host.host_editor", "from esper import tolaria"),
        ("esper.kasmina.host.host_editor", "from ...tolaria import trainer"),
        ("esper.tamiyo.risk", "def late():\n    import esper.kasmina.judging.gates"),
        ("esper.tolaria.loss", "if TYPE_CHECKING:\n    from esper.tamiyo.risk import Risk"),
        ("esper.tolaria.loss", "import importlib\nimportlib.import_module('esper.tamiyo.risk')"),
        ("esper.tolaria.loss", "from esper import Task"),
        ("esper.tolaria.loss", "from esper import *"),
        ("esper.kasmina.host.host_editor", "def late():\n    from ray.actor import ActorHandle"),
        ("esper.cli.main", "from drills.cli import add"),
        ("actors.remote", "from tests.conftest import ALLOWED_SKIPS"),
        ("drills.runner", "from benchmarks import growth"),
        ("esper.nowhere.file", "import json"),
        ("esper.__main__", "def late():\n    import typer"),
        ("esper.flow.line", "COMMAND = 'esper.cli.main:main'"),
    ],
)
def test_planted_breach_is_caught(name: str, source: str) -> None:
    assert len(list(violations(planted(name, source)))) == 1


@pytest.mark.parametrize(
    ("package", "room"), [(package, room) for package, rooms in NEVER_OUTSIDE.items() for room in sorted(rooms | FRONT)]
)
def test_each_room_that_may_not_load_a_package_is_caught_loading_it(package: str, room: str) -> None:
    assert list(violations(planted(room, f"def late():\n    import {package}.part")))
    assert breaches([planted(room, f"import {package}.part", is_package=True)], package)


IMPORTING = "import importlib\nfrom importlib import import_module, import_module as im\n"


@pytest.mark.parametrize(
    "source",
    [
        "import_module('esper.tamiyo.risk')",
        "import_module(name='esper.tamiyo.risk')",
        "im('esper.tamiyo.risk')",
        "import importlib as lib\nlib.import_module('esper.tamiyo.risk')",
        "import_module(f'esper.tamiyo.{\"risk\"}')",
        "FOLDER = 'tamiyo'\ndef late():\n    import_module(f'esper.{FOLDER}.risk')",
        "import_module('esper.' + 'tamiyo')",
        "import_module('esper.tamiyo' if late else 'json')",
        "LATER = {'a': 'json', 'b': 'esper.tamiyo'}\ndef late(name):\n    import_module(LATER[name])",
        "import_module('..tamiyo', 'esper.tolaria')",
        "import_module('..tamiyo', package=__package__)",
        "__import__('esper.tamiyo.risk')",
        "import builtins\nbuiltins.__import__('esper.tamiyo.risk')",
        "from esper.user_code.plugins import import_module as load\nload('esper.tamiyo')",
    ],
)
def test_planted_dynamic_import_counts_as_an_import(source: str) -> None:
    found = list(violations(planted("esper.tolaria.loss", IMPORTING + source)))
    assert len(found) == 1
    assert "imports esper.tamiyo" in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "def late(name):\n    import_module(name)",
        "def late(name):\n    im(name=name)",
        "def late(name):\n    importlib.import_module(f'esper.{name}')",
        "def late(name):\n    __import__(name)",
        "def late(**named):\n    import_module(**named)",
        "load = import_module",
        "lib = importlib",
        "list(map(im, ['esper.tamiyo']))",
        "import_module.__call__('esper.tamiyo')",
        "__import__('importlib').import_module('esper.tamiyo')",
        "import sys\nsys.modules['importlib'].import_module('esper.tamiyo')",
        "getattr(importlib, 'import_' + 'module')('esper.tamiyo')",
        "globals()['import_module']('esper.tamiyo')",
        "__builtins__['__import' + '__']('esper.tamiyo')",
        "PLACE = 'json'\nPLACE = 'esper.tamiyo'\nimport_module(PLACE)",
        "PLACE = 'json'\ndef late(PLACE):\n    import_module(PLACE)",
        "LATER = {'a': 'json'}\nLATER.update(a='esper.tamiyo')\nimport_module(LATER['a'])",
        "LATER = {'a': 'json'}\nLATER['a'] = 'esper.tamiyo'\nimport_module(LATER['a'])",
        "exec('import esper.tamiyo')",
        "from importlib.util import spec_from_file_location as spec\nspec('a', 'esper/tamiyo/risk.py')",
        "import runpy\nrunpy.run_module('esper.tamiyo')",
        "from importlib import *",
        "def one():\n    from json import loads as im\ndef other(name):\n    im(name)",
    ],
)
def test_planted_import_of_what_the_source_does_not_name_is_caught_outside_the_files_for_users_code(
    source: str,
) -> None:
    found = [line for line in violations(planted("esper.tolaria.loss", IMPORTING + source)) if "does not say" in line]
    assert found
    for name in LOADS_BY_NAME:
        assert not any("does not say" in line for line in violations(planted(name, IMPORTING + source)))


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("from esper.cli import main", True),
        ("if not TYPE_CHECKING:\n    from esper.cli import main", True),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from esper.cli import main", True),
        ("try:\n    pass\nfinally:\n    from esper.cli import main", True),
        ("@import_module('esper.cli.main').mark\ndef late(): ...", True),
        ("def late(shown=import_module('esper.cli.main')): ...", True),
        ("import esper.cli.main", True),
        ("if TYPE_CHECKING:\n    from esper.cli import main", False),
        ("def late():\n    from esper.cli import main", False),
    ],
)
@pytest.mark.parametrize("holder", ["esper", "esper.__main__", "esper.config"])
def test_planted_chain_to_a_package_that_may_not_be_loaded_is_caught(holder: str, source: str, caught: bool) -> None:
    tree = {
        "esper": planted("esper", "", is_package=True),
        "esper.config": planted("esper.config", "", is_package=True),
        "esper.config.joined": planted("esper.config.joined", "import json"),
        "esper.cli": planted("esper.cli", "", is_package=True),
        "esper.cli.main": planted("esper.cli.main", "import rich.text"),
        holder: planted(holder, IMPORTING + source, is_package=holder != "esper.__main__"),
    }
    assert bool(breaches(tree.values(), "rich")) is caught


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (files_beside_kasminas_rooms, "esper.kasmina.loose", '"""Loose."""'),
        (modules_without_a_purpose, "esper.tolaria.silent", "import json"),
        (folders_that_are_no_packages, "esper.tolaria.deep.file", '"""Deep."""'),
        (names_of_several_files, "esper.tamiyo.trainer", '"""Two."""'),
    ],
)
def test_planted_file_that_breaks_a_rule_of_the_whole_tree_is_found(
    rule: Callable[[list[Module]], set[str]], name: str, source: str
) -> None:
    assert rule([*TREE, planted(name, source)]) != set()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("esper.leyline.state", "import json\nfrom esper.leyline.base import Message"),
        (
            "esper.kasmina.host.host_editor",
            "import torch\nfrom esper.leyline import host_ports\nfrom esper.ground import random_streams, tensors",
        ),
        ("esper.kasmina.host.host_editor", "from . import blending\nfrom .dry_run import dry_run"),
        ("esper.flow.in_process", "from esper.kasmina.registry import manager\nfrom esper.tolaria import trainer"),
        ("actors.bring_up", "import ray\nfrom esper.flow.in_process import InProcessLauncher"),
        ("drills.runner", "from actors.embedded_ray import start"),
        ("esper.tolaria.loss", "from importlib import import_module\nimport_module('opentelemetry.context')"),
        (
            "esper.tolaria.loss",
            "import importlib.util as u\nu.find_spec('onnx')\nu.resolve_name('.a', 'b')",
        ),
        ("esper.tolaria.loss", "def late(wanted, model):\n    wanted.import_module(wanted)\n    model.eval()"),
    ],
)
def test_planted_lawful_import_passes(name: str, source: str) -> None:
    assert not list(violations(planted(name, source)))


@pytest.mark.parametrize(
    ("source", "circular"),
    [
        ("from esper.leyline.a import A", True),
        ("from esper.leyline import A", True),
        ("class B:\n    from .a import A", True),
        ("def late():\n    from esper.leyline.a import A", False),
        ("if TYPE_CHECKING:\n    from esper.leyline.a import A", False),
    ],
)
def test_planted_circle_is_found_where_the_import_runs_at_once(source: str, circular: bool) -> None:
    package = planted("esper.leyline", "from .a import A", is_package=True)
    a = planted("esper.leyline.a", "from esper.leyline import b")
    assert bool(cycle([package, a, planted("esper.leyline.b", source)])) is circular
