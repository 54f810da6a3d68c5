"""Holds the table of rooms: who may import whom, read from the source by `ast`. It imports none of it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = frozenset({"esper", "actors", "drills", "tests", "benchmarks", "examples", "tools"})

ERRORS = frozenset({"esper.errors"})
HELPERS = frozenset(
    f"esper.{name}"
    for name in (
        "attributes",
        "clock",
        "closing",
        "extra_state",
        "faults",
        "hash_seed",
        "heartbeat",
        "import_paths",
        "nested",
        "own_modules",
        "problems",
        "process_state",
        "shared_state",
        "streams",
        "suggest",
        "task",
        "tensors",
        "tensors_kept",
        "their_code",
        "workplace",
    )
)
GROUND = ERRORS | HELPERS | {"esper.leyline", "esper.durable"}
DOMAIN = frozenset({"esper.kasmina", "esper.tamiyo", "esper.tolaria"})
ESPER = GROUND | DOMAIN | {"esper", "esper.telemetry", "esper.emergency", "esper.tasks"}

MAY_IMPORT: dict[str, frozenset[str]] = {
    "esper.errors": frozenset(),
    "esper.leyline": ERRORS,
    "esper.durable": ERRORS | {"esper.closing", "esper.workplace"},
    **dict.fromkeys(HELPERS, ERRORS | HELPERS),
    "esper.faults": ERRORS
    | {"esper.suggest", "esper.durable", "esper.telemetry", "esper.leyline"},  # what fires is told before it does
    "esper.telemetry": GROUND,
    "esper.emergency": GROUND | {"esper.telemetry"},
    "esper.tasks": ERRORS | HELPERS | {"esper.leyline"},
    **dict.fromkeys(DOMAIN, GROUND | {"esper.telemetry", "esper.emergency"}),
    "esper": ESPER,
    "actors": ESPER,
    "drills": ESPER | {"actors"},
}
"""Room -> the other rooms of ours that it may import. A room may always import itself.

`esper` is where rooms meet: the package's own `__init__` and every file of esper/ without a row of its own, such as
config, loop, cli and testing. No room below imports it.
"""

NEVER_OUTSIDE = {"esper": frozenset({"ray"}), "esper.leyline": frozenset({"torch"})}
"""Prefix -> packages of others that nothing below it may import."""


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
    if room == "esper" and (module.is_package, module.name.count(".")) not in {(True, 0), (False, 1)}:
        yield f"{module.name} is in no room: give it one in MAY_IMPORT"
        return
    outside = frozenset().union(
        *(banned for prefix, banned in NEVER_OUTSIDE.items() if starts_with(module.name, prefix))
    )
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


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle(TREE) == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.name for module in TREE if not ast.get_docstring(module.tree)] == []


def test_every_folder_of_a_room_is_a_package() -> None:
    packages = {module.name for module in TREE if module.is_package}
    assert {module.name.rpartition(".")[0] for module in TREE} - packages == {""}


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


# -- the checker itself ------------------------------------------------------------------------------------------


def planted(name: str, source: str, is_package: bool = False) -> Module:
    return Module(name, ast.parse(source), is_package)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("esper.leyline.state", "import torch"),
        ("esper.leyline.state", "from torch import nn"),
        ("esper.leyline.state", "from esper.task import Task"),
        ("esper.errors", "from esper.leyline.stages import Stage"),
        ("esper.durable.log", "from esper.leyline.stages import Stage"),
        ("esper.durable.log", "from esper import clock"),
        ("esper.clock", "import esper.leyline"),
        ("esper.telemetry.events", "from esper.kasmina.gates import judge"),
        ("esper.emergency.queue", "from esper.tolaria import guard"),
        ("esper.kasmina.graft", "from esper.tolaria.trainer import Trainer"),
        ("esper.kasmina.graft", "from esper import tolaria"),
        ("esper.kasmina.graft", "from ..tolaria import trainer"),
        ("esper.tamiyo.risk", "def late():\n    import esper.kasmina.gates"),
        ("esper.tolaria.loss", "if TYPE_CHECKING:\n    from esper.tamiyo.risk import Risk"),
        ("esper.tolaria.loss", "importlib.import_module('esper.tamiyo.risk')"),
        ("esper.tolaria.loss", "from esper.config import Config"),
        ("esper.tolaria.loss", "from esper import Task"),
        ("esper.tolaria.loss", "from esper import *"),
        ("esper.tolaria.loss", "from esper.testing import FakeClock"),
        ("esper.loop", "import ray"),
        ("esper.kasmina.graft", "def late():\n    from ray.actor import ActorHandle"),
        ("esper.cli", "import actors.cli"),
        ("esper.cli", "from drills.cli import add"),
        ("actors.handles", "from drills import runner"),
        ("actors.handles", "from tests.conftest import ALLOWED_SKIPS"),
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
        ("esper.leyline.state", "from esper.errors import EsperError\nfrom esper.leyline.base import Message"),
        ("esper.kasmina.graft", "import torch\nfrom esper.leyline import ports\nfrom esper import streams, tensors"),
        ("esper.kasmina.graft", "from . import gates\nfrom .slots import find"),
        ("esper.loop", "from esper.kasmina import graft\nfrom esper.tolaria import trainer"),
        ("actors.conductor", "import ray\nfrom esper.loop import run"),
        ("drills.runner", "from actors.bootstrap import start"),
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
