"""The registry of blueprints. A blueprint has a factory of seed modules, the kinds of slots that they fit, and a risk.

A blueprint of a user is a function with a decorator::

    @blueprint("my_mixer", kinds=(Kind.NTC,), risk=0.3)
    def my_mixer(spec: SlotSpec) -> nn.Module: ...

The module maps the slot's output [B, ...] to an output of the same shape and dtype. The blend mode RESIDUAL adds this
output to the slot's output, so it must be exactly 0 in a new module. The other modes replace a part of the slot's
output by a part of the module's output. If `spec.causal`, the module must be causal; see `seed_modules.py`.
`esper.kasmina.judging.sanity` measures these properties.

If a factory or a module cannot compute as planned, it calls `esper.fell_back`, and the gates refuse the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType

import torch
from torch import nn

from esper.errors import ConfigError, SeedBuildFailed
from esper.ground.random_streams import stream_key
from esper.ground.suggest import existing_names
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints import nc, nchw, ntc
from esper.kasmina.blueprints.channels_first import ChannelsFirst
from esper.kasmina.blueprints.fallbacks import heard_while_built
from esper.kasmina.blueprints.flops import flop_counter
from esper.kasmina.blueprints.padded import seed_output
from esper.kasmina.blueprints.placebos import PREFIX, USELESS, kind_of, useless_seed
from esper.kasmina.blueprints.precision import parameter_dtype
from esper.kasmina.blueprints.seed_copies import SeedCopies
from esper.leyline.slots import Kind, SlotSpec
from esper.user_code.their_code import their_code

Factory = Callable[[SlotSpec], nn.Module]
Mesh = Callable[[str], tuple[str, ...]]
"""Slot path -> paths of the host layers on which a seed in that slot depends."""


def slot_alone(slot: str) -> tuple[str, ...]:
    """Return the mesh of a seed if the seed depends only on its slot."""
    return (slot,)


@dataclass(frozen=True)
class Blueprint:
    """A named factory of seed modules for slots of some kinds.

    Raises:
        ConfigError: a field has a wrong type, the name is empty, there is no kind, or the risk is outside 0..1.
    """

    name: str
    kinds: tuple[Kind, ...]
    risk: float
    """The author's estimate of the risk, from 0 (harmless) to 1. The default policy tries low risks first."""
    factory: Factory
    mesh: Mesh = slot_alone
    needs_padding: bool = False
    """Whether the blueprint is offered only in slots whose module is given a padding mask (`SlotSpec.padding`)."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError("blueprint.name", self.name, "give it a name, a text")
        kinds: object = self.kinds
        if not isinstance(kinds, tuple | list | set | frozenset) or not all(isinstance(one, Kind) for one in kinds):
            raise ConfigError(f"blueprint.{self.name}.kinds", kinds, "give a tuple of kinds, such as (Kind.NC,)")
        if not kinds:
            raise ConfigError(f"blueprint.{self.name}.kinds", kinds, "name at least one kind of slot")
        risk: object = self.risk
        if not isinstance(risk, int | float) or isinstance(risk, bool) or not 0 <= risk <= 1:
            raise ConfigError(f"blueprint.{self.name}.risk", risk, "give a number from 0 to 1")
        for field, function in (("factory", self.factory), ("mesh", self.mesh)):
            if not callable(function):
                raise ConfigError(f"blueprint.{self.name}.{field}", function, "give a function")
        needs: object = self.needs_padding
        if not isinstance(needs, bool):
            raise ConfigError(f"blueprint.{self.name}.needs_padding", needs, "give True or False")

    def fits(self, spec: SlotSpec) -> bool:
        """Return whether the blueprint is offered in a slot: it is for the slot's kind, and the slot has a padding mask
        if the blueprint needs one.
        """
        return spec.kind in self.kinds and (spec.padding is not None or not self.needs_padding)

    def build(self, spec: SlotSpec, seed_key: int, copies: int = 1) -> nn.Module:
        """Return a new module on the slot's device, in its `parameter_dtype`.

        The same key always returns the same bits. The global random states are unchanged afterwards.

        Args:
            seed_key: Seed of the random numbers, 0 to 2^64 - 1.
            copies: Number of modules in the seed, 1 or more. Each draws its weights from a stream of its own. If there
                are several, the result is a `SeedCopies`.

        Raises:
            SeedBuildFailed: the factory raised, or its result cannot be moved to the device. `__cause__` is the error.
        """
        keys = [seed_key, *(stream_key(seed_key, "copy", place) for place in range(1, copies))]
        with self._raising_build_failed(spec, "build"):
            return _joined([self._drawn(spec, key) for key in keys]).to(spec.device)

    def parameters(self, spec: SlotSpec, copies: int = 1) -> int:
        """Return the number of parameters of a seed in this slot. No memory is allocated, because the meta device is
        used.

        Raises:
            SeedBuildFailed: the factory does not run on the meta device.
        """
        with self._raising_build_failed(spec, "count parameters"):
            return sum(p.numel() for p in self._several(spec, copies).parameters())

    def flops(self, spec: SlotSpec, batch: int, copies: int = 1) -> int:
        """Return the modelled FLOPs of forward and backward for `batch` samples, including the gradient of the input.

        The multiplications and additions of matrix products and convolutions are counted, as in torch's counter. Other
        operations count 0. The number is the same on every machine, because the meta device is used.

        Raises:
            SeedBuildFailed: the module does not run on the meta device.
        """
        with (
            self._raising_build_failed(spec, "count FLOPs"),
            flop_counter() as counter,
        ):
            module = self._several(spec, copies)
            dtype = parameter_dtype(spec)
            h = torch.empty(batch, *spec.shape, dtype=dtype, device="meta", requires_grad=True)
            seed_output(module, h, None).sum().backward()
        return int(counter.get_total_flops())

    def _several(self, spec: SlotSpec, copies: int) -> nn.Module:
        return _joined([self._make(spec, torch.device("meta")) for _ in range(copies)])

    def _drawn(self, spec: SlotSpec, key: int) -> nn.Module:
        with temporary_rng(key):
            return self._make(spec, torch.device("cpu"))

    def _make(self, spec: SlotSpec, device: torch.device) -> nn.Module:
        if spec.kind not in self.kinds:
            raise ValueError(f"the slot is {spec.kind}, the blueprint is for {', '.join(self.kinds)}")
        with device:
            return heard_while_built(partial(self.factory, spec)).to(parameter_dtype(spec))

    @contextmanager
    def _raising_build_failed(self, spec: SlotSpec, doing: str) -> Iterator[None]:
        try:
            with their_code(f"blueprint {self.name}", f"{doing} at {spec.path}"):
                yield
        except Exception as error:
            raise SeedBuildFailed(self.name, spec.path, doing) from error


def _joined(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else SeedCopies(modules)


class BlueprintRegistry:
    """Blueprints by name. A name belongs to the function that registered it first. No entry is ever removed."""

    def __init__(self) -> None:
        self._blueprints: dict[str, Blueprint] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._blueprints

    def add(self, blueprint: Blueprint) -> None:
        """Add a blueprint. If the file of the blueprint is imported again, the new function replaces the earlier
        version of this function.

        Raises:
            ConfigError: another function has registered this name.
        """
        if blueprint.name.startswith(PREFIX):
            raise ConfigError("blueprint.name", blueprint.name, f"a name that begins with {PREFIX!r} is a placebo's")
        older = self._blueprints.get(blueprint.name)
        if older is not None and (_place(older.factory) is None or _place(older.factory) != _place(blueprint.factory)):
            raise ConfigError("blueprint.name", blueprint.name, "this name is taken; choose another")
        self._blueprints[blueprint.name] = blueprint

    def get(self, name: str) -> Blueprint:
        """Return a blueprint or a placebo by name. Raises: ConfigError: the name is not registered."""
        kind = kind_of(name)
        if kind is not None and kind in USELESS:
            return Blueprint(name, tuple(Kind), 0.0, partial(useless_seed, kind))
        if name not in self:
            raise ConfigError("blueprint", name, self.absent(name))
        return self._blueprints[name]

    def absent(self, name: str) -> str:
        """Return an error message for a name that is not registered. It suggests similar registered names."""
        return f"not registered; {existing_names(name, sorted(self._blueprints), repr)}"

    def for_kind(self, kind: Kind) -> tuple[Blueprint, ...]:
        """Return the blueprints for slots of `kind`, in name order."""
        return tuple(self._blueprints[name] for name in sorted(self._blueprints) if kind in self.get(name).kinds)

    def for_slot(self, spec: SlotSpec) -> tuple[Blueprint, ...]:
        """Return the blueprints that are offered in a slot, in name order."""
        return tuple(made for made in self.for_kind(spec.kind) if made.fits(spec))


BLUEPRINTS = BlueprintRegistry()
"""The built-in blueprints, and the user's blueprints. The decorator `blueprint` adds a user's blueprint."""


def blueprint(
    name: str,
    *,
    kinds: tuple[Kind, ...],
    risk: float,
    mesh: Mesh = slot_alone,
    needs_padding: bool = False,
    registry: BlueprintRegistry = BLUEPRINTS,
) -> Callable[[Factory], Factory]:
    """Register the decorated factory in `registry`. The decorated function is returned unchanged.

    Raises:
        ConfigError: the name is taken, or the blueprint is not well formed.
    """

    def register(factory: Factory) -> Factory:
        registry.add(Blueprint(name, kinds, risk, factory, mesh, needs_padding))
        return factory

    return register


def _place(factory: Factory) -> tuple[str, str] | None:
    """Return file and name of a function. None for a callable object or a lambda, because file and name do not identify
    it.
    """
    if not isinstance(factory, FunctionType) or factory.__name__ == "<lambda>":
        return None
    notebook = factory.__module__ == "__main__"  # each run of a notebook cell gets a new file name
    return "__main__" if notebook else factory.__code__.co_filename, factory.__qualname__


# -- the built-in set --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Called:
    """A factory that calls a known function with known arguments, so that `esper export` can write the call as code.

    The function makes seeds for [B, T, C]. In a slot [B, C, T] they act on the transposed activation.
    """

    call: Callable[[SlotSpec], tuple[Callable[..., nn.Module], tuple[int, ...]]]
    """Slot -> (top-level function of a Python module, its arguments). The arguments are numbers and flags."""

    def __call__(self, spec: SlotSpec) -> nn.Module:
        """Return a new module for the slot."""
        function, arguments = self.call(spec)
        seed, around = function(*arguments), self.around(spec)
        return seed if around is None else around(seed)

    def around(self, spec: SlotSpec) -> type[nn.Module] | None:
        """Return the class of the module around the module that the function makes. None: nothing is around it."""
        return ChannelsFirst if spec.kind is Kind.NCT else None


def _on_channels(make: Callable[..., nn.Module], *more: int) -> Called:
    return Called(lambda spec: (make, (spec.channels, *more)))


def _over_time(make: Callable[..., nn.Module], *more: int) -> Called:
    return Called(lambda spec: (make, (spec.channels, *more, spec.causal)))


def _norm(spec: SlotSpec) -> tuple[Callable[..., nn.Module], tuple[int, ...]]:
    return _on_channels(nchw.scaled_group_norm if spec.kind is Kind.NCHW else nc.scaled_layer_norm).call(spec)


_TIME = (Kind.NTC, Kind.NCT)
_ROWS = (*_TIME, Kind.NC)

for _name, _kinds, _risk, _factory in (
    ("norm", tuple(Kind), 0.05, Called(_norm)),
    ("squeeze_excite", (Kind.NCHW,), 0.1, _on_channels(nchw.SqueezeExcite)),
    ("depthwise_separable", (Kind.NCHW,), 0.2, _on_channels(nchw.depthwise_separable)),
    ("bottleneck", (Kind.NCHW,), 0.25, _on_channels(nchw.bottleneck)),
    ("conv3", (Kind.NCHW,), 0.25, _on_channels(nchw.conv3)),
    ("conv_block", (Kind.NCHW,), 0.35, _on_channels(nchw.conv_block)),
    ("inverted_bottleneck", (Kind.NCHW,), 0.35, _on_channels(nchw.inverted_bottleneck)),
    ("low_rank", _ROWS, 0.1, _on_channels(nc.low_rank)),
    ("mlp", _ROWS, 0.15, _on_channels(nc.mlp)),
    ("gated_mlp", _ROWS, 0.2, _on_channels(nc.GatedMLP)),
    ("wide_mlp", _ROWS, 0.3, _on_channels(nc.mlp, 8)),
    ("conv_mlp_3", _TIME, 0.2, _over_time(ntc.conv_mlp, 3)),
    ("conv_mlp_7", _TIME, 0.2, _over_time(ntc.conv_mlp, 7)),
    ("conv_mlp_15", _TIME, 0.2, _over_time(ntc.conv_mlp, 15)),
    ("gated_conv", _TIME, 0.25, _over_time(ntc.GatedConv)),
    ("token_shift", _TIME, 0.2, _on_channels(ntc.token_shift)),
    ("attention", _TIME, 0.35, _over_time(ntc.Attention)),
    ("block", _TIME, 0.5, _over_time(ntc.Block)),
):
    BLUEPRINTS.add(Blueprint(_name, _kinds, _risk, _factory))

BLUEPRINTS.add(Blueprint("masked_attention", (Kind.NTC,), 0.35, _over_time(ntc.MaskedAttention), needs_padding=True))
