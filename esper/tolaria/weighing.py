"""Weights of samples in the mean that a loss returns.

The weights may differ if the loss has `ignore_index` or class weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.errors import TaskError
from esper.task import Loss


@dataclass(frozen=True, eq=False)
class Weighted:
    """Losses of samples, [B], and the weight of each in the joint loss, [B]."""

    losses: Tensor
    weights: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Weighted]) -> Weighted:
        """Concatenate the samples of several batches."""
        return cls(torch.cat([part.losses for part in parts]), torch.cat([part.weights for part in parts]))

    @property
    def alike(self) -> bool:
        """True if all weights are equal."""
        return bool((self.weights == self.weights[0]).all())

    def mean(self) -> float:
        """Return the joint loss, `sum(weights * losses) / sum(weights)`. NaN if all weights are 0."""
        if self.alike:
            return float(self.losses.double().mean()) if self.weights[0] > 0 else float("nan")
        weights = self.weights.double()
        return float((weights * self.losses.double()).sum() / weights.sum())

    def shares(self) -> Tensor:
        """Return each sample's share of the joint loss, [B]: `weights * losses / mean(weights)`.

        The unweighted mean of the shares is the joint loss, so paired tests can compare the shares of two networks.

        Raises:
            TaskError: all weights are 0.
        """
        if self.alike and self.weights[0] > 0:
            return self.losses
        weights = self.weights.double()
        if not weights.sum() > 0:
            raise TaskError("task.loss", "no target that counts", "a shard needs samples that the loss does not ignore")
        return (weights * self.losses.double() / weights.mean()).to(self.losses.dtype)


def by_target(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return (losses, weights) of samples, [B] each, from the losses and weights of their elements, [B, ...].

    Args:
        losses: Loss of each element, already multiplied by its weight, as torch returns it with `reduction="none"`.
        weights: Weight of each element. A sample gets the loss 0 if its weights are all 0.
    """
    sums, totals = losses.reshape(len(losses), -1).sum(1), weights.reshape(len(weights), -1).sum(1)
    return torch.where(totals > 0, sums / totals, 0.0), totals


def target_weights(loss: Loss, target: object) -> Tensor | None:
    """Return the weight of each target in cross entropy or negative log likelihood, in the shape of `target`.

    None: the loss is another function, or no target is ignored and there are no class weights.

    Source: torch.nn.CrossEntropyLoss and NLLLoss, "mean": the sum of the losses, divided by the sum of
        `weight[target]`. Both sums are over the targets that are not `ignore_index`.
    """
    found = _class_weights(loss)
    if found is None or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    class_weights, ignored = found
    counts = target != ignored
    if class_weights is not None:
        return class_weights[torch.where(counts, target, 0)] * counts
    return None if counts.all() else counts.float()


def _class_weights(loss: Loss) -> tuple[Tensor | None, int] | None:
    """Return (class weights or None, ignore_index) of a loss that has these settings. None for other losses."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return loss.weight, loss.ignore_index
    given: dict[str, object] = {}
    while isinstance(loss, functools.partial):
        given, loss = {**loss.keywords, **given}, loss.func
    if loss not in (functional.cross_entropy, functional.nll_loss):
        return None
    settings = {"weight": None, "ignore_index": -100, **given}  # torch's own defaults
    weight, ignored = settings["weight"], settings["ignore_index"]
    assert weight is None or isinstance(weight, Tensor)
    assert isinstance(ignored, int)
    return weight, ignored
