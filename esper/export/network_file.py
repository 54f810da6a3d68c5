"""Writes the text of `network.py`, which rebuilds a grown network with torch and without esper.

Users choose some names, such as those of a run or a module. The text contains these names as string literals that
`ascii` made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FunctionType

import torch

from esper.errors import CannotBeWritten, ConfigError
from esper.export.definitions import FUTURE, Definitions
from esper.kasmina.blueprints.catalogue import Blueprint, BlueprintRegistry, Called
from esper.kasmina.blueprints.precision import parameter_dtype
from esper.kasmina.blueprints.seed_copies import SeedCopies
from esper.kasmina.host.blending import blend_of
from esper.kasmina.host.rebuilt import rebuild
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind, SlotSpec

HEAD = '''"""A network that grew. Made by `esper export` with torch {torch}.

    from network import {build}
    model = {build}(my_model_factory)  # the factory of the network that grew: () -> nn.Module

The weights are in `network.pt`, beside this file. It needs torch, but not esper.
"""

# Run {run}, fence {fence}.
'''
TAIL = '''__all__ = ["{build}"]

{rows} = [  # slot, ordinal, (module, types of its parameters and of its alpha, blend, shape of the blend's vector)
{seeds}]

{digest} = "{modules}"


def {build}(model):
    """The grown network around what `model()` gives, on the CPU and in evaluation mode.

    Raises:
        ValueError: `model` builds another network than the one that grew.
    """
    weights = Path(__file__).with_name("network.pt")
    return {rebuild}(model, {rows}, torch.load(weights, map_location="cpu", weights_only=True), {digest})
'''


def network_file(
    run: str,
    fence: int,
    topology: Sequence[GraftPlan],
    specs: Mapping[str, SlotSpec],
    blueprints: BlueprintRegistry,
    modules: str,
) -> str:
    """Return the text of a Python file that rebuilds a grown network around its host's factory.

    The function that rebuilds the network is `build`, or `build_network` if a definition of the user has the name
    `build`. `__all__` contains the name of this function.

    Args:
        modules: `structure_digest` of the host.

    Raises:
        ConfigError: a blueprint of the user cannot be written as source. The error names the blueprint and the reason.
    """
    made = [blueprints.get(plan.blueprint_id) for plan in topology]
    wanted = Definitions(frozenset(one.factory.__module__ for one in made if _is_function(one)))
    rows = []
    for plan, blueprint in zip(topology, made, strict=True):
        spec = specs[plan.slot]
        try:
            call = _several(wanted, plan.copies, _call(wanted, blueprint, spec))
        except CannotBeWritten as error:
            raise ConfigError("blueprint", blueprint.name, f"it cannot be written into a file: {error}") from error
        blend = blend_of(plan.blend)
        vector = blend.vector(plan.blend, spec)
        wanted.add(blend.formula.__module__, blend.formula.__name__)
        types = f"{parameter_dtype(spec)}, {spec.dtype}"
        how = f"{blend.formula.__name__}, {None if vector is None else tuple(vector.shape)}"
        rows.append(f"    ({plan.slot!a}, {plan.ordinal}, (lambda: {call}, {types}, {how})),\n")
    wanted.add(rebuild.__module__, rebuild.__name__)
    wanted.import_module("torch")
    wanted.import_name("pathlib", "Path")
    names = {"build": wanted.free("build"), "rows": wanted.free("SEEDS"), "digest": wanted.free("MODULES")}
    tail = TAIL.format(seeds="".join(rows), modules=modules, rebuild=rebuild.__name__, **names)
    head = HEAD.format(run=ascii(run), fence=fence, torch=torch.__version__, build=names["build"])
    return f"{head}{FUTURE}\n{wanted}\n\n\n{tail}"


def _several(wanted: Definitions, copies: int, call: str) -> str:
    """Return the expression that makes a seed of some copies. `call` makes one of them."""
    if copies == 1:
        return call
    wanted.add(SeedCopies.__module__, SeedCopies.__name__)
    return f"{SeedCopies.__name__}([{call} for _ in range({copies})])"


def _call(wanted: Definitions, blueprint: Blueprint, spec: SlotSpec) -> str:
    """Return the expression that makes a seed's module. Add the definitions that it needs to `wanted`."""
    factory = blueprint.factory
    if isinstance(factory, Called):
        (function, arguments), around = factory.call(spec), factory.around(spec)
        wanted.add(function.__module__, function.__name__)
        call = f"{function.__name__}({', '.join(map(ascii, arguments))})"
        if around is None:
            return call
        wanted.add(around.__module__, around.__name__)
        return f"{around.__name__}({call})"
    if not _is_function(blueprint):
        raise CannotBeWritten(f"{factory!r} is no function at the top of a module; make it one")
    wanted.add(factory.__module__, factory.__name__)
    wanted.import_name("types", "SimpleNamespace")
    told = spec.model_copy(update={"device": "cpu"}).model_dump(mode="json") | {
        "shape": spec.shape,
        "channels": spec.channels,
        "per_channel": spec.per_channel,
        "padding": spec.padding,
    }
    fields = {field: ascii(value) for field, value in told.items()}
    if wanted.has(Kind.__module__, Kind.__name__):
        fields["kind"] = f"{Kind.__name__}({fields['kind']})"
    return f"{factory.__name__}(SimpleNamespace({', '.join(f'{field}={value}' for field, value in fields.items())}))"


def _is_function(blueprint: Blueprint) -> bool:
    """Return whether the blueprint's factory is a top-level function or class of a module."""
    factory = blueprint.factory
    return isinstance(factory, FunctionType | type) and factory.__qualname__.isidentifier()
