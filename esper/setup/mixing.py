"""Tests whether a network mixes the samples of a batch in evaluation mode, and finds the module that mixes them.

It refuses nothing. The test changes the inputs of half of the samples. The batch size stays the same, so that every
kernel rounds as before. If losses or outputs of the unchanged half change, the network mixes samples. Examples are
batch statistics and attention over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.errors import in_a_line
from esper.ground.nested import mapped, tensors
from esper.ground.random_streams import restore_streams, streams
from esper.kasmina.blueprints.precision import named
from esper.kasmina.host.perturbation import is_content, perturbing
from esper.tolaria.compiling import uncompiled
from esper.tolaria.data import split_pair
from esper.tolaria.loss import sample_loss, sample_losses
from esper.tolaria.trainer import Trainer

if TYPE_CHECKING:
    from esper.setup.survey import Survey

SHARE = 1e-3
"""A movement of unchanged samples is ignored up to this share of the movement of the changed samples."""
ROUNDINGS, LEAST = 2, 1e-6
"""A relative movement is ignored as rounding up to ROUNDINGS times the epsilon of the coarsest type in use, or up to
LEAST if that is larger. A mixture of experts, for example, has kernels that gather samples. These kernels round
differently if they gather other samples.
"""
SHOWN = 50
"""The outputs of changed samples must move by this multiple of the rounding limit. Otherwise the result is None."""
INPUTS = 100
"""A module counts as mixing if the movement of unchanged samples in its output is more than this many times their
movement in its inputs."""
_KEY = 0x0DD_BA7C4


class Mixing(NamedTuple):
    """Result of the search."""

    mixes: bool | None
    """None: inconclusive."""
    module: str | None = None
    """Path and class of the module that mixes. If modules are nested, the innermost is named."""
    why: str | None = None
    """The reason why the search was inconclusive."""


NOT_FOUND_OUT = Mixing(None, None, "it was not tried")


@dataclass(frozen=True)
class Rows:
    """One number for each sample of a batch."""

    values: Tensor
    """[B], double precision. [1] if the tensor has no row per sample."""
    size: float
    """The magnitude of the values. A movement is measured relative to this magnitude."""

    def verdict(self, after: Rows, unchanged: Tensor, rounding: float) -> bool | None:
        """Return whether the samples `unchanged` (booleans [B]) moved although only other samples were changed. None:
        inconclusive."""
        if len(self.values) != len(unchanged) or len(after.values) != len(unchanged):
            return None
        shift, none = (after.values - self.values).abs(), max(ROUNDINGS * rounding, LEAST) * self.size
        moved, changed = float(shift[unchanged].max()), float(shift[~unchanged].max())
        if moved > max(none, SHARE * changed):
            return True
        return False if changed > SHOWN * none else None

    def shift(self, after: Rows, unchanged: Tensor) -> float:
        """Return the largest movement of a sample in `unchanged`, relative to the size.

        The result is infinite if a tensor without a row per sample moved, because the tensor may contain mixed samples.
        """
        if len(self.values) == len(after.values) == len(unchanged):
            return float((after.values - self.values).abs()[unchanged].max()) / max(self.size, LEAST)
        return 0.0 if torch.equal(self.values, after.values) else math.inf


def find_mixing(survey: Survey, trainer: Trainer, batch: Any) -> Mixing:  # Any: a batch of the task's collate
    """Change half of the samples of a batch and compare the losses of the other half. The comparison is made with four
    different halves.

    If the losses are inconclusive, or the loss mixes samples, the rows of the outputs are compared instead. The random
    streams of the caller are unchanged.

    Args:
        trainer: Its network has trained for some steps, because a last layer that begins at zero would hide a mixture.
        batch: A training batch of `survey.data.batch_size` samples.

    Returns:
        Inconclusive if the inputs have no row per sample, or the user's code does not take the changed batch.
    """
    samples = survey.data.batch_size
    if samples < 2 or not any(is_content(tensor, (samples,)) for tensor in tensors(split_pair(batch)[0])):
        return Mixing(None, None, f"no input has a row for each of {samples} samples")
    before = streams()
    try:
        with uncompiled(trainer.host):
            return _Look(survey, trainer, batch, before).verdict()
    except Exception as error:
        return Mixing(None, None, f"the network or the loss does not take changed inputs: {in_a_line(error)}")
    finally:
        restore_streams(before)


@dataclass(frozen=True)
class _Look:
    """Evaluates one batch several times, each time with the same random numbers."""

    survey: Survey
    trainer: Trainer
    batch: Any
    streams: Any
    """States of the random streams before each forward pass."""

    def verdict(self) -> Mixing:
        """Return whether the network mixes samples, and the module that mixes them."""
        base, rounding = self._evaluated(None), self._rounding()
        found = []
        for unchanged in _halves(self.survey.data.batch_size):
            after = self._evaluated(unchanged)
            found.append(
                _first_shown(one.verdict(other, unchanged, rounding) for one, other in zip(base, after, strict=True))
            )
            if found[-1]:
                return Mixing(True, self._module(unchanged, rounding))
        if all(one is False for one in found):
            return Mixing(False)
        return Mixing(None, None, "a change of half of the samples moved the outputs too little")

    def _evaluated(self, unchanged: Tensor | None) -> list[Rows]:
        """Return losses and outputs of a batch in which all samples but `unchanged` were changed. If `unchanged` is
        None, no sample was changed.
        """
        inputs, targets = split_pair(self.batch)
        samples = self.survey.data.batch_size
        given = mapped(torch.clone, inputs)
        if unchanged is not None:
            given = mapped(perturbing((~unchanged,), (samples,)), given)
        restore_streams(self.streams)
        seen = self.trainer.look_evaluating((given, mapped(torch.clone, targets)), samples)
        rows = [_rows(tensor, samples) for tensor in tensors(seen.output) if tensor.is_floating_point()]
        if self.survey.loss_depends_on_batch is not False:
            return rows
        losses = sample_losses(sample_loss(self.survey.task), seen.output, seen.target, samples).losses.detach()
        values = losses.double().cpu().nan_to_num()
        return [Rows(values, float(values.abs().mean())), *rows]

    def _rounding(self) -> float:
        """Return the epsilon of the coarsest floating type in the network's parameters and slots."""
        names = [name for spec in self.survey.specs for name in (spec.dtype, spec.autocast) if name is not None]
        own = {parameter.dtype for parameter in self.trainer.host.parameters() if parameter.is_floating_point()}
        return max(torch.finfo(dtype).eps for dtype in {torch.float32, *own, *map(named, names)})

    def _module(self, unchanged: Tensor, rounding: float) -> str:
        """Return the module whose output depends on other samples although its inputs do not depend on them. If there
        are several of these modules, return the module whose call returned first.
        """
        host, calls = self.trainer.host, list[list[_Call]]()
        for change in (None, unchanged):
            with _recorded(host, len(unchanged)) as made:
                self._evaluated(change)
            calls.append(made)
        paths = {module: path for path, module in host.named_modules()}
        for one, other in zip(*calls, strict=False):
            if one.module is other.module and one.mixes(other, unchanged, rounding):
                return _label(paths[one.module], one.module)
        return _label("", host)


def _first_shown(verdicts: Iterable[bool | None]) -> bool | None:
    """Return the verdict from the losses if it is conclusive, else the first conclusive verdict from an output. None:
    no verdict is conclusive.
    """
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _halves(samples: int) -> Iterator[Tensor]:
    """Yield the samples to leave unchanged: first half, second half, even samples, odd samples. Booleans [B]."""
    place = torch.arange(samples)
    for half in (place < samples // 2, place % 2 == 0):
        yield half
        yield ~half


def _rows(tensor: Tensor, samples: int) -> Rows:
    """Return a random projection of each row, the same in every call."""
    plain = tensor.detach().cpu().double().nan_to_num(posinf=0.0, neginf=0.0)
    flat = plain.reshape(samples if plain.shape[:1] == (samples,) else 1, -1)
    weights = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(_KEY), dtype=torch.double)
    return Rows(flat @ weights, float(flat.norm(dim=1).max()) if flat.numel() else 0.0)


# -- naming the module -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """One call of a module, with its inputs and outputs."""

    module: nn.Module
    given: Sequence[Rows]
    returned: Sequence[Rows]

    def mixes(self, other: _Call, unchanged: Tensor, rounding: float) -> bool:
        """Return whether the module mixes samples. `other` is the same call of the module after all samples except
        `unchanged` were changed.
        """
        given = list(zip(self.given, other.given, strict=False))
        returned = list(zip(self.returned, other.returned, strict=False))
        mixed = [one.shift(after, unchanged) for one, after in returned if one.verdict(after, unchanged, rounding)]
        return bool(given and mixed) and max(one.shift(after, unchanged) for one, after in given) < max(mixed) / INPUTS


@contextmanager
def _recorded(host: nn.Module, samples: int) -> Iterator[list[_Call]]:
    """Record all calls of modules, in the order in which they return."""
    open_calls, calls = list[list[Rows]](), list[_Call]()

    def rows(*values: object) -> list[Rows]:
        return [_rows(tensor, samples) for tensor in tensors(values) if tensor.is_floating_point()]

    def begin(_module: nn.Module, args: object, keywords: object) -> None:
        open_calls.append(rows(args, keywords))

    def end(module: nn.Module, _args: object, output: object) -> None:
        calls.append(_Call(module, open_calls.pop(), rows(output)))

    modules = list(host.modules())
    handles: list[Any] = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(end) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _label(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"
