"""Builds the user's network as a host, calls it, and lists its names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from esper.errors import TaskError
from esper.ground.random_streams import seed_process
from esper.task import Task
from esper.tolaria.host_modules import check_modules
from esper.tolaria.modes import begin_training
from esper.user_code.extra_state import extra_states, state_of
from esper.user_code.their_code import their_code

TRAINING_FORWARD = their_code("task.model", "a forward in training mode")
EVALUATION_FORWARD = their_code("task.model", "a forward in evaluation mode")


def build_host(task: Task, run_seed: int, device: str) -> nn.Module:
    """Build the task's model on the device, in training mode. Its weights depend on the run seed only.

    If the factory froze submodules, they stay in evaluation mode; see `esper.tolaria.modes`.

    Raises:
        TaskError: the factory did not return a module; the state dict has a value that is not a tensor; or
            `check_modules` refuses the model.
    """
    seed_process(run_seed, "model")
    with their_code("task.model", "the model factory"):
        model = task.model()
    if not isinstance(model, nn.Module):
        raise TaskError("task.model", type(model).__name__, "it must return a torch.nn.Module")
    check_modules(model)
    own = {f"{path}._extra_state".lstrip(".") for path in extra_states(model)}
    state = state_of("task.model", model)
    extra = [name for name, value in state.items() if not isinstance(value, Tensor) and name not in own]
    if extra:
        mend = "state that is not a tensor cannot be stored; make it a buffer, or return it from get_extra_state"
        raise TaskError("task.model", extra[0], mend)
    model = model.to(device)
    begin_training(model)
    return model


def call_model(task: Task, model: nn.Module, inputs: Any) -> Any:
    """Return the model's output for a batch of inputs. If the task has a function `input_output`, this function makes
    the call.
    """
    call = TRAINING_FORWARD if model.training else EVALUATION_FORWARD
    if task.input_output is None:
        return call.run(model, inputs)
    return call.run(task.input_output, model, inputs)


def names_of(host: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Return the names of modules, of tensors, and of state dict entries.

    The tensors include non-persistent buffers.
    """
    tensors = [*dict(host.named_parameters()), *dict(host.named_buffers())]
    return [name for name, _ in host.named_modules()], tensors, list(state_of("task.model", host))
