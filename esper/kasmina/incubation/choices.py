"""Selects the blueprints that `growth.blueprints` allows in each slot. A choice without effect is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from esper.errors import ConfigError
from esper.ground.suggest import existing_names
from esper.kasmina.blueprints.catalogue import Blueprint, BlueprintRegistry
from esper.kasmina.host.slot_patterns import matches
from esper.kasmina.settings import BlueprintChoice
from esper.leyline.slots import SlotSpec

FIELD = "growth.blueprints"


def chosen(
    specs: Sequence[SlotSpec], choices: Mapping[str, BlueprintChoice], registry: BlueprintRegistry
) -> dict[str, tuple[Blueprint, ...]]:
    """Return the blueprints of each slot, by path.

    A blueprint must fit the slot's kind, and every matching choice must allow it.

    Raises:
        ConfigError: a choice matches no slot; a choice names a blueprint that is not registered, or that fits no slot
            of the choice; or no blueprint is left for a slot.
    """
    for pattern, choice in choices.items():
        _check(pattern, choice, specs, registry)
    found = {}
    for spec in specs:
        mine = {pattern: choice for pattern, choice in choices.items() if matches(spec.path, pattern)}
        found[spec.path] = tuple(
            made for made in registry.for_slot(spec) if all(_allows(one, made.name) for one in mine.values())
        )
        if mine and not found[spec.path]:
            mend = f"nothing is left for slot {spec.path}; leave it out of task.slots"
            raise ConfigError(FIELD, ", ".join(mine), mend)
    return found


def _allows(choice: BlueprintChoice, name: str) -> bool:
    if choice.only is not None:
        return name in choice.only
    return name not in (choice.exclude or ())


def _check(pattern: str, choice: BlueprintChoice, specs: Sequence[SlotSpec], registry: BlueprintRegistry) -> None:
    mine = [spec for spec in specs if matches(spec.path, pattern)]
    if not mine:
        slots = existing_names(pattern, [spec.path for spec in specs], repr)
        raise ConfigError(FIELD, pattern, f"no slot of the task matches; {slots}")
    field, kinds = f"{FIELD}.{json.dumps(pattern)}", {spec.kind for spec in mine}
    for name in (*(choice.only or ()), *(choice.exclude or ())):
        if name not in registry:
            raise ConfigError(field, name, registry.absent(name))
        fits = registry.get(name).kinds
        if not kinds & set(fits):
            raise ConfigError(field, name, f"it is for {', '.join(fits)}; the slots are {', '.join(sorted(kinds))}")
        if not any(registry.get(name).fits(spec) for spec in mine):
            paths = ", ".join(spec.path for spec in mine)
            mend = f"it needs a slot whose module is given a padding mask (docs/blueprints.md); {paths} gets none"
            raise ConfigError(field, name, mend)
