"""Finds private names and environment variables of Ray in a source file. Ray may change them without notice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set

VARIABLE = re.compile(r"RAY_[A-Za-z_]+")


def private_names(tree: ast.AST, also: Set[str] = frozenset()) -> set[str]:
    """Return the private names of Ray in a file, and Ray's environment variables.

    The function finds private parts of names that are imported from Ray, private attributes of imported names, and
    every attribute of a private name. Names in `also` are found if they are an attribute, an argument or a method.
    """
    imported = set(_of_ray(tree))
    names = {part for found in imported for part in found.split(".") if _is_private(part)}
    roots = {found.rpartition(".")[2] for found in imported} | {"ray"}
    private = {found.rpartition(".")[2] for found in imported if any(map(_is_private, found.split(".")))}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=base), attr=name) if base in private:
                names.add(name)
            case ast.Attribute(attr=name) if _is_private(name) and (_root(node) in roots or name in also):
                names.add(name)
            case ast.Constant(value=str(text)) if VARIABLE.fullmatch(text) or text in also:
                names.add(text)
            case ast.keyword(arg=str(name)) | ast.FunctionDef(name=name) if name in also:
                names.add(name)
    return names


def underscored(source: str) -> set[str]:
    """Return the names with a leading underscore in a source. Functions that the source defines are left out."""
    own = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return set(re.findall(r"(?<!\w)_[a-z]\w*", source)) - own


def _of_ray(tree: ast.AST) -> Iterator[str]:
    """Yield every name that is imported from Ray, with its module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.partition(".")[0] == "ray")
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == "ray":
                yield from (f"{module}.{alias.name}" for alias in names)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
