"""Which submodules of a host train and which its task froze: training and evaluation modes, by module path.

A task freezes a layer in two ways: its factory puts the layer into evaluation mode (`model.bn.eval()`), or its model
overrides `train()` so that the layer never leaves it. Both hold during the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

Modes = Mapping[str, bool]
"""By module path: True in training mode, False in evaluation mode."""


def modes_of(model: nn.Module) -> dict[str, bool]:
    """The present mode of every module; each module once, under its first path."""
    return {path: module.training for path, module in model.named_modules()}


def begin_training(model: nn.Module) -> None:
    """Put a model that its factory has just made into training mode, except what the factory froze.

    Evaluation mode in every module is how many loaders of pretrained weights return a model; nothing is frozen then.
    """
    made = modes_of(model)
    model.train()
    if any(made.values()):
        frozen = {path for path, training in made.items() if not training}
        restore_modes(model, {path: mode and path not in frozen for path, mode in modes_of(model).items()})


def restore_modes(model: nn.Module, modes: Modes) -> None:
    """Put every module into its mode of `modes`, parents first; `train()` is called only where a mode differs.

    A module that was added since is left as it is.
    """
    for path, module in model.named_modules():
        if path in modes and module.training != modes[path]:
            module.train(modes[path])


def set_training(model: nn.Module, modes: Modes, *, training: bool) -> None:
    """Put a model into evaluation mode, or back into the modes that it trains in.

    `model.train()` is always called, because a model may override it (to merge weights, say).
    """
    model.train(training)
    if training:
        restore_modes(model, modes)
