"""Training and evaluation modes of submodules, by module path: sets them; modules that the task froze stay frozen.

A task freezes a layer in two ways: its factory puts the layer into evaluation mode (`model.bn.eval()`), or its model
overrides `train()` so that the layer never leaves it. Both hold during the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

Modes = Mapping[str, bool]
"""Module path -> True for training mode, False for evaluation mode."""


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return the present mode of every module. A module with several paths is listed under the first."""
    return {path: module.training for path, module in model.named_modules()}


def begin_training(model: nn.Module) -> None:
    """Put a model that its factory has just made into training mode, except the modules that the factory froze.

    If every module is in evaluation mode, no module counts as frozen: many loaders of pretrained weights return such
    models.
    """
    made = modes_of(model)
    model.train()
    if any(made.values()):
        frozen = {path for path, training in made.items() if not training}
        restore_modes(model, {path: mode and path not in frozen for path, mode in modes_of(model).items()})


def restore_modes(model: nn.Module, modes: Modes) -> None:
    """Put every module into its mode in `modes`, parents first. `train()` is called only if the mode differs.

    A module that is not in `modes` is not changed.
    """
    for path, module in model.named_modules():
        if path in modes and module.training != modes[path]:
            module.train(modes[path])


def set_training(model: nn.Module, modes: Modes, *, training: bool) -> None:
    """Put a model into evaluation mode, or back into `modes`, its modes in training.

    `model.train()` is always called, because a model may override it, for example to merge weights.
    """
    model.train(training)
    if training:
        restore_modes(model, modes)
