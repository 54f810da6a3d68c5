"""Sets the training and evaluation modes of submodules. A module that the task froze stays frozen.

A task can freeze a layer in two ways: its factory puts the layer into evaluation mode (`model.bn.eval()`), or its model
overrides `train()` so that the layer stays in evaluation mode. A frozen layer stays frozen for the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

Modes = Mapping[str, bool]
"""Module path -> True for training mode, False for evaluation mode."""


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return the present mode of every module. A module with several paths is listed under the first path."""
    return {path: module.training for path, module in model.named_modules()}


def begin_training(model: nn.Module) -> None:
    """Put a new model into training mode, except the modules that its factory froze.

    If every module is in evaluation mode, no module counts as frozen, because many loaders of pretrained weights return
    a whole model in evaluation mode.
    """
    made = modes_of(model)
    model.train()
    if any(made.values()):
        frozen = {path for path, training in made.items() if not training}
        restore_modes(model, {path: mode and path not in frozen for path, mode in modes_of(model).items()})


def restore_modes(model: nn.Module, modes: Modes) -> None:
    """Put every module into its mode in `modes`, parents first.

    A module's `train()` is called only if its mode differs. A module that is not in `modes` is not changed.
    """
    for path, module in model.named_modules():
        if path in modes and module.training != modes[path]:
            module.train(modes[path])


def set_training(model: nn.Module, modes: Modes, *, training: bool) -> None:
    """Put a model into evaluation mode, or restore its training modes from `modes`.

    `model.train()` is always called, because a model may override it, for example to merge weights.
    """
    model.train(training)
    if training:
        restore_modes(model, modes)
