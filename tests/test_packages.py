"""What is imported is what this project distributes, and its lists of dependencies agree. It installs nothing."""

from __future__ import annotations

import ast
import importlib
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("esper", "actors", "drills")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


def imported_tops(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]


@pytest.mark.parametrize("package", ROOMS)
def test_package_is_ours_and_not_a_namesake(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None, f"{package} is a bare folder: its __init__.py is missing"
    wheel = Path(str(distribution("esper-runtime").locate_file(package)))
    assert Path(module.__file__).resolve().parent in {ROOT / package, wheel}


def test_distribution_is_esper_runtime_at_the_version_of_the_project() -> None:
    installed = distribution("esper-runtime")
    assert (installed.metadata["Name"], installed.version) == (PROJECT["name"], PROJECT["version"])
    assert PROJECT["scripts"] == {"esper": "esper.__main__:main"}
    assert [entry.name for entry in installed.entry_points.select(group="console_scripts")] == ["esper"]


def test_types_are_declared_to_users() -> None:
    assert (ROOT / "esper" / "py.typed").is_file()


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_bounds_and_justified(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[requirement.name])
    assert f"| {requirement.name} |" in (ROOT / "docs" / "adr" / "0001-dependencies.md").read_text(encoding="utf-8")


def test_every_import_of_a_room_is_declared() -> None:
    """A package that arrives only because another one brings it may be gone, or be another one, in the next version."""
    declared = {canonicalize_name(requirement.name) for requirement in DIRECT}
    origins = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {top}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for top in imported_tops(path.read_text(encoding="utf-8"))
        if top not in sys.stdlib_module_names and top not in ROOMS
        if not declared & {canonicalize_name(origin) for origin in origins[top]}
    }
    assert sorted(undeclared) == []


def test_constraints_name_exact_versions_only() -> None:
    assert [line for line in PINS.items() if set("@/+") & set("".join(line))] == []
