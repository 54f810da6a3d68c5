"""Finds the modules that `task.slots` names, and records the matched modules that cannot be slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from esper.errors import TaskError
from esper.ground.suggest import existing_names

EVERY = "*"
"""The pattern that matches every module, at any depth."""
WILD = frozenset("*?[")


@dataclass
class Matched:
    """The matched modules, by path. A module named without a wildcard must be a slot; other modules may be left out."""

    by_pattern: Mapping[str, frozenset[str]]
    """Pattern or path, as in `task.slots` -> the paths that it matches."""
    order: tuple[str, ...]
    """All matched paths, each once, in the order of `named_modules`."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Path -> the reason why the module is not a slot, in the order of discovery."""
    _repeated: set[str] = field(default_factory=set)
    _mends: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """The matched paths that are not left out."""
        return tuple(path for path in self.order if path not in self.left_out)

    @property
    def named(self) -> frozenset[str]:
        """The paths that `task.slots` names without a wildcard."""
        return frozenset[str]().union(*(paths for text, paths in self.by_pattern.items() if not WILD & set(text)))

    @contextmanager
    def trying(self, path: str) -> Iterator[None]:
        """Wrap a check of one module.

        If the check raises a TaskError and only a wildcard matched the module, leave it out.

        Raises: TaskError: the check failed, and the module was named without a wildcard.
        """
        try:
            yield
        except TaskError as error:
            if path in self.named:
                raise
            self.left_out[path] = str(error.value)
            self._mends[path] = error.mend

    def same_as(self, path: str, other: str) -> None:
        """Leave out a module with the same output as another slot, for example a container of one module."""
        self.left_out[path] = f"its output equals that of {other}"
        self._repeated.add(path)

    def check(self) -> None:
        """Check that each pattern matches a slot, or a module with the same output as a slot.

        Raises:
            TaskError: a pattern matches no slot, and no module with the same output as a slot.
        """
        for pattern, paths in self.by_pattern.items():
            if paths <= self.left_out.keys() - self._repeated:
                first = next(path for path in self.left_out if path in paths)
                why = f"{self.left_out[first]}: {self._mends[first]}"
                mend = f"none of the {len(paths)} modules that it matches can be a slot; {first}: {why}"
                raise TaskError("task.slots", pattern, mend)


def match(model: nn.Module, patterns: Sequence[str]) -> Matched:
    """Find the modules that `patterns` name.

    A pattern is a module path whose parts may contain `*`, `?` and `[...]`. A `*` does not match a dot. The pattern `*`
    alone matches every module, at any depth. A module with several paths is listed under its first path.

    Raises:
        TaskError: a pattern matches nothing, or is the model itself; or two paths without a wildcard name one module.
    """
    if isinstance(patterns, str):
        raise TaskError("task.slots", patterns, f"give a list of module paths, not one string: [{patterns!r}]")
    first = {module: path for path, module in model.named_modules()}
    paths = {path: first[module] for path, module in model.named_modules(remove_duplicate=False) if path}
    by_pattern: dict[str, frozenset[str]] = {}
    for pattern in patterns:
        found = frozenset(known for path, known in paths.items() if matches(path, pattern))
        if not found:
            raise TaskError("task.slots", pattern, _existing(pattern, paths))
        for other, paths_of_other in by_pattern.items():
            if other != pattern and found == paths_of_other and not WILD & {*other, *pattern}:
                mend = "both paths are of one module that is registered twice; name it once"
                raise TaskError("task.slots", f"{other}, {pattern}", mend)
        by_pattern[pattern] = found
    chosen = frozenset[str]().union(*by_pattern.values())
    return Matched(by_pattern, tuple(path for path in first.values() if path in chosen))


def matches(path: str, pattern: str) -> bool:
    """Return whether the pattern matches the module at `path`; see `match`."""
    if pattern == EVERY:
        return True
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _existing(pattern: str, paths: Mapping[str, str]) -> str:
    if not paths:
        return "the model has no submodule that could be a slot"
    if not pattern:
        return "the model itself is not a slot; name one of its modules"
    return f"no module has this path; {existing_names(pattern, paths, repr)}"
