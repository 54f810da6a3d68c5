"""Saves and restores the extra states of modules, by `get_extra_state` and `set_extra_state`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import nn

from esper.errors import DependencyViolationError
from esper.user_code.their_code import their_code

NONE: Mapping[str, nn.Module] = MappingProxyType({})


def state_of(field: str, part: Any) -> dict[str, Any]:  # Any: a module, optimizer, scheduler or data set
    """Return the `state_dict()` of an object of the task. An exception is reported with `field`."""
    with their_code(field, "state_dict"):
        state: dict[str, Any] = part.state_dict()
    return state


def extra_states(model: nn.Module, seeds: Mapping[str, nn.Module] = NONE) -> dict[str, Any]:
    """Return the extra state of each module that overrides `get_extra_state`, by module path.

    The states may share tensors with the modules.

    Args:
        seeds: Path -> a module that is not in the model. Its extra states are returned, too.
    """
    found = {}
    for path, module in _keepers(model, seeds).items():
        with their_code("task.model", f"get_extra_state of {path or 'the model'}"):
            found[path] = module.get_extra_state()
    return found


def load_extra_states(model: nn.Module, stored: Mapping[str, Any], seeds: Mapping[str, nn.Module] = NONE) -> None:
    """Restore the extra states that `extra_states` returned. Each module gets a copy of its state.

    Raises:
        DependencyViolationError: `stored` belongs to other modules. Nothing was changed.
    """
    keepers = _keepers(model, seeds)
    if keepers.keys() != stored.keys():
        found = sorted(keepers.keys() ^ stored.keys())[:3]
        raise DependencyViolationError("snapshot", "modules with get_extra_state differ from the host's", str(found))
    for path, module in keepers.items():
        with their_code("task.model", f"set_extra_state of {path or 'the model'}"):
            module.set_extra_state(copy.deepcopy(stored[path]))


@contextmanager
def extra_states_kept(model: nn.Module, seeds: Mapping[str, nn.Module] = NONE) -> Iterator[None]:
    """At the end of the block, restore the extra states that the modules had at its beginning."""
    before = copy.deepcopy(extra_states(model, seeds))
    try:
        yield
    finally:
        load_extra_states(model, before, seeds)


def _keepers(model: nn.Module, seeds: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    own = nn.Module.get_extra_state
    named = [
        *model.named_modules(),
        *(pair for path, seed in seeds.items() for pair in seed.named_modules(prefix=path)),
    ]
    return {path: module for path, module in named if type(module).get_extra_state is not own}
