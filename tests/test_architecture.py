"""Holds the table of rooms: who may import whom, read from the source by `ast`. It imports none of it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from ray_names import private_names, underscored

ROOT = Path(__file__).resolve().parents[1]
OURS = frozenset({"esper", "actors", "drills", "tests", "benchmarks", "examples", "tools"})

FLOORS: tuple[tuple[str, str], ...] = (
    ("errors", ""),
    ("task", ""),
    ("leyline", ""),
    ("ground", "errors"),
    ("durable", "errors ground"),
    ("telemetry.settings", "leyline"),
    ("telemetry", "errors ground"),
    ("faults", "errors leyline ground durable telemetry"),
    ("user_code", "errors task leyline ground"),
    ("tasks", "errors task"),
    ("emergency.settings", "leyline"),
    ("emergency", "errors leyline ground telemetry"),
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
    ("tamiyo", "errors leyline ground durable telemetry faults user_code tamiyo.settings"),
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
    ("archive", "errors task leyline ground durable user_code tolaria config setup"),
    ("export", "errors task leyline ground durable user_code kasmina.blueprints kasmina.host tolaria setup archive"),
    (
        "flow",
        "errors task leyline ground durable telemetry faults user_code kasmina.registry tamiyo tolaria "
        "config setup archive export",
    ),
    ("cli", "errors task leyline ground durable user_code tolaria config setup archive export flow"),
    ("testing", "task leyline config flow"),
)
"""Room of esper/ -> the other rooms of it that it may import, as words. A room may always
import itself, and only rooms that stand before it: what depends on nothing comes first."""


def _named(words: str) -> frozenset[str]:
    return frozenset(f"esper.{word}" for word in words.split())


MAY_IMPORT: dict[str, frozenset[str]] = {
    **{f"esper.{room}": _named(words) for room, words in FLOORS},
    "esper": _named("task leyline ground kasmina.blueprints config export flow cli"),
    "actors": _named(
        "errors task leyline ground telemetry faults user_code emergency kasmina.blueprints "
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


@dataclass(frozen=True)
class Module:
    """One source file under its dotted name."""

    name: str
    tree: ast.Module
    is_package: bool = False


@dataclass(frozen=True)
class Import:
    """One imported name, absolute; `target` may be a module or a name inside one."""

    line: int
    target: str


def modules_under(root: Path) -> Iterator[Module]:
    for room in ("esper", "actors", "drills"):
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            yield Module(name, ast.parse(path.read_text(encoding="utf-8")), is_package)


def imports(module: Module, nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """Every import among `nodes`, also one spelled `import_module("...")`."""
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(names=names):
                yield from (Import(node.lineno, f"{origin(module, node)}.{alias.name}") for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(target)), *_]):
                if ast.unparse(function).rpartition(".")[2] in {"import_module", "__import__"}:
                    yield Import(node.lineno, target)


def origin(module: Module, node: ast.ImportFrom) -> str:
    """The absolute module after `from`."""
    package = module.name.split(".")
    keep = len(package) - node.level + module.is_package
    parents = package[:keep] if node.level else []
    return ".".join([*parents, *filter(None, [node.module])])


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported: outside functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        types_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if not (types_only or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield child
            yield from at_import(child)


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
    outside = {package for package, rooms in NEVER_OUTSIDE.items() if any(starts_with(module.name, r) for r in rooms)}
    for found in imports(module, ast.walk(module.tree)):
        top = found.target.partition(".")[0]
        other = room_of(found.target)
        if top in outside or (top in OURS and other != room and other not in MAY_IMPORT[room]):
            yield f"{module.name}:{found.line} imports {found.target}"


def cycle(modules: Iterable[Module]) -> list[str]:
    """One cycle of top-level imports, first module repeated at the end; empty if there is none."""
    by_name = {module.name: module for module in modules}
    graph = {
        name: {
            known
            for found in imports(module, at_import(module.tree))
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


# -- the tree ----------------------------------------------------------------------------------------------------

TREE = list(modules_under(ROOT))


def test_the_tree_was_read() -> None:
    assert {"esper", "esper.errors", "actors", "drills"} <= {module.name for module in TREE}


def test_every_import_stays_within_the_table_of_rooms() -> None:
    assert [line for module in TREE for line in violations(module)] == []


def test_every_permission_of_the_table_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for module in TREE:
        for found in imports(module, ast.walk(module.tree)):
            if found.target.partition(".")[0] in OURS:
                used[room_of(module.name)].add(room_of(found.target))
    unused = {room: MAY_IMPORT[room] - used[room] for room in MAY_IMPORT if room != "drills"}  # there is no drill yet
    assert {room: sorted(rooms) for room, rooms in unused.items() if rooms} == {}


@pytest.mark.parametrize("package", NEVER_OUTSIDE)
def test_no_import_leads_from_a_room_to_a_package_that_it_may_not_load(package: str) -> None:
    by_name = {module.name: module for module in TREE}
    reached: set[str] = set()
    todo = [name for name in by_name if any(starts_with(name, room) for room in NEVER_OUTSIDE[package])]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        for found in imports(by_name[name], at_import(by_name[name].tree)):
            assert found.target.partition(".")[0] != package, (
                f"{name}:{found.line} is imported where {package} may not be"
            )
            todo += [known for known in (found.target, found.target.rpartition(".")[0]) if known in by_name]


def test_the_folder_of_kasminas_rooms_has_no_file_of_its_own() -> None:
    assert {module.name for module in TREE if room_of(module.name) == "esper.kasmina"} == {"esper.kasmina"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle(TREE) == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.name for module in TREE if not ast.get_docstring(module.tree)] == []


def test_every_folder_of_a_room_is_a_package() -> None:
    packages = {module.name for module in TREE if module.is_package}
    assert {module.name.rpartition(".")[0] for module in TREE} - packages == {""}


def test_no_two_files_have_one_name() -> None:
    counted = Counter(module.name.rpartition(".")[2] for module in TREE if not module.is_package)
    assert {name for name, times in counted.items() if times > 1} <= {"settings", "cli"}


def files_of_ray() -> Iterator[Path]:
    """Every source file but the one that may name what Ray does not promise, and its test."""
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
        ("esper.leyline.state", "import torch"),
        ("esper.config.joined", "import torch"),
        ("esper.flow.line", "from rich.text import Text"),
        ("esper.export.loading", "import typer"),
        ("esper.leyline.state", "from torch import nn"),
        ("esper.leyline.state", "from esper.task import Task"),
        ("esper.errors", "from esper.leyline.stages import Stage"),
        ("esper.durable.log", "from esper.leyline.stages import Stage"),
        ("esper.durable.log", "from esper.user_code import plugins"),
        ("esper.ground.clock", "import esper.leyline"),
        ("esper.telemetry.events", "from esper.kasmina.judging.gates import judge"),
        ("esper.emergency.queue", "from esper.tolaria import guard"),
        ("esper.kasmina.host.host_editor", "from esper.tolaria.trainer import Trainer"),
        ("esper.kasmina.host.host_editor", "from esper import tolaria"),
        ("esper.kasmina.host.host_editor", "from ...tolaria import trainer"),
        ("esper.tamiyo.risk", "def late():\n    import esper.kasmina.judging.gates"),
        ("esper.tolaria.loss", "if TYPE_CHECKING:\n    from esper.tamiyo.risk import Risk"),
        ("esper.tolaria.loss", "importlib.import_module('esper.tamiyo.risk')"),
        ("esper.tolaria.loss", "from esper.config.joined import Config"),
        ("esper.tolaria.loss", "from esper import Task"),
        ("esper.tolaria.loss", "from esper import *"),
        ("esper.tolaria.loss", "from esper.testing import FakeClock"),
        ("esper.flow.in_process", "import ray"),
        ("esper.kasmina.host.host_editor", "def late():\n    from ray.actor import ActorHandle"),
        ("esper.cli.main", "import actors.cli"),
        ("esper.cli.main", "from drills.cli import add"),
        ("actors.remote", "from drills import runner"),
        ("actors.remote", "from tests.conftest import ALLOWED_SKIPS"),
        ("drills.runner", "import tests"),
        ("drills.runner", "from benchmarks import growth"),
        ("esper.nowhere.file", "import json"),
    ],
)
def test_planted_breach_is_caught(name: str, source: str) -> None:
    assert len(list(violations(planted(name, source)))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("esper.leyline.state", "import json\nfrom esper.leyline.base import Message"),
        (
            "esper.kasmina.host.host_editor",
            "import torch\nfrom esper.leyline import ports\nfrom esper.ground import random_streams, tensors",
        ),
        ("esper.kasmina.host.host_editor", "from . import blending\nfrom .dry_run import dry_run"),
        ("esper.flow.in_process", "from esper.kasmina.registry import manager\nfrom esper.tolaria import trainer"),
        ("actors.bring_up", "import ray\nfrom esper.flow.in_process import InProcessLauncher"),
        ("drills.runner", "from actors.embedded_ray import start"),
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
