"""Small tasks that a survey refuses, each with what the refusal says: field, value and mend in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esper.task import Task

F = nn.functional
REFUSED: dict[str, tuple[Callable[[], Task], str]] = {}
"""By name: the task, and a pattern that its refusal matches."""


def refused(pattern: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Put a task into the table, with a pattern of what its refusal says."""

    def note(make: Callable[[], Task]) -> Callable[[], Task]:
        REFUSED[make.__name__] = make, pattern
        return make

    return note


def _points(count: int = 64, key: int = 0) -> TensorDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(key))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


class Net(nn.Module):
    """[B, 6] -> [B, 2] with a slot "body"."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def _task(model: Any = Net, **changes: Any) -> Task:
    shards = {name: _points(key=key) for key, name in enumerate(("train", "pick", "gate", "valid", "test"))}
    fields: dict[str, Any] = {"model": model, "slots": ["body"], "loss": F.cross_entropy, "batch_size": 16, **shards}
    return Task(**(fields | changes))


def _changed(forward: Callable[[Net, Tensor], Any]) -> type[Net]:
    return type("Changed", (Net,), {"forward": forward})


# -- fields ------------------------------------------------------------------------------------------------------


@refused(r"task\.model = 'a Net': give the function that builds it, such as `lambda: Net\(\.\.\.\)`")
def a_model_instance() -> Task:
    return _task(Net())


@refused(r"task\.train = 'a DataLoader': give its data set; batch_size and collate are fields of the task")
def a_data_loader() -> Task:
    return _task(train=DataLoader(_points()))


@refused(r"task\.optimizer = 'a SGD': give a function, such as `lambda params: torch\.optim\.SGD\(params\)`")
def an_optimizer_instance() -> Task:
    return _task(optimizer=torch.optim.SGD(Net().parameters(), lr=0.1))


@refused(r"task\.loss = 'CrossEntropyLoss': give a function, or an instance of this class")
def a_loss_class() -> Task:
    return _task(loss=nn.CrossEntropyLoss)


@refused(r"task\.train = 'a dict of 2': a sample must be a pair \(input, target\); give task\.collate")
def samples_that_are_dicts() -> Task:
    return _task(train=[{"x": x, "y": y} for x, y in _points()])


# -- optimizers and schedulers -----------------------------------------------------------------------------------


@refused(r"task\.optimizer = 'LBFGS': its step cannot be called without 'closure'")
def lbfgs() -> Task:
    return _task(optimizer=torch.optim.LBFGS)


@refused(r"task\.scheduler = 'ReduceLROnPlateau': give a torch scheduler that steps once a step")
def reduce_on_plateau() -> Task:
    return _task(scheduler=lambda optimizer, _total: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


@refused(r"task\.optimizer = 'the optimizer factory': it raised ValueError: Muon only supports 2D .*tasks_refused\.py")
def muon_over_every_parameter() -> Task:
    return _task(optimizer=lambda params: torch.optim.Muon(params, lr=0.01))


@refused(r"task\.scheduler = 'scheduler\.step': it raised ValueError: Tried to step .*tasks_refused\.py|Tried to step")
def a_one_cycle_that_is_too_short() -> Task:
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    return _task(scheduler=lambda optimizer, _total: one_cycle(optimizer, max_lr=0.1, total_steps=3))


@refused(r"task\.optimizer = 'SGD': it has parameters that it was not given")
def an_optimizer_of_other_parameters() -> Task:
    return _task(optimizer=lambda _params: torch.optim.SGD(Net().parameters(), lr=0.1))


# -- modules -----------------------------------------------------------------------------------------------------


@refused(r"task\.model = 'body\.weight': a lazy module has no weights yet")
def a_lazy_module() -> Task:
    def build() -> Net:
        net = Net()
        net.body = nn.LazyLinear(6)
        return net

    return _task(build)


@refused(r"task\.model = 'OptimizedModule, compiled': leave torch\.compile out; run\.compile=true")
def a_compiled_model() -> Task:
    return _task(lambda: torch.compile(Net()))


@refused(
    r"task\.model = 'DataParallel': it calls copies of the model that have no seeds; give the module that it wraps"
)
def a_model_in_data_parallel() -> Task:
    return _task(lambda: nn.DataParallel(Net()))


@refused(r"task\.model = 'body\.weight': it lies on the meta device")
def a_model_without_values() -> Task:
    return _task(lambda: Net().to("meta"))


def _with_buffer(tensor: Tensor) -> Task:
    def build() -> Net:
        net = Net()
        net.register_buffer("graph", tensor)
        return net

    return _task(build)


@refused(r"task\.model = 'graph': its elements share memory \(expand\?\)")
def a_buffer_that_is_expanded() -> Task:
    return _with_buffer(torch.ones(1).expand(6))


@refused(r"task\.model = 'graph': it is a tensor of layout torch\.sparse_coo, .*register its parts as buffers")
def a_sparse_buffer() -> Task:
    return _with_buffer(torch.eye(6).to_sparse())


@refused(r"task\.model = 'graph': it is a tensor of layout torch\.sparse_csr, ")
def a_buffer_with_compressed_rows() -> Task:
    return _with_buffer(torch.eye(6).to_sparse_csr())


@refused(r"task\.model = 'graph': it is a nested tensor, ")
def a_nested_buffer() -> Task:
    return _with_buffer(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))


@refused(r"task\.model = 'words\.weight': its gradient is torch\.sparse_coo; .* sparse=False")
def sparse_gradients() -> Task:
    class Words(Net):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 6, sparse=True)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.words((x[:, 0] > 0).long()))

    return _task(Words, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))


@refused(r"encoder\.layers\.0: a nested tensor in evaluation mode: .*enable_nested_tensor=False")
def a_padding_mask_and_nested_tensors() -> Task:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 8, padding_idx=0)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.words(x), src_key_padding_mask=x == 0).mean(1))

    words = torch.randint(1, 9, (64, 5), generator=torch.Generator().manual_seed(0))
    words[::2, 3:] = 0
    return _task(Masked, slots=["encoder.layers.*"], train=TensorDataset(words, words[:, 0] % 2))


@refused(r"task\.model = 'RecursiveScriptModule': a scripted module calls no seed; give the module itself")
def a_scripted_model() -> Task:
    return _task(lambda: torch.jit.script(Net()))


# -- what the user's own code does -------------------------------------------------------------------------------


@refused(r"task\.model = 'the model factory': it raised KeyError: 'width' \(.*tasks_refused\.py, line \d+\)")
def a_factory_that_raises() -> Task:
    settings: dict[str, int] = {}
    return _task(lambda: nn.Linear(6, settings["width"]))


@refused(r"task\.model = 'the model factory': it raised TypeError: Linear.__init__\(\) missing 2 [^(]*$")
def a_class_that_wants_arguments() -> Task:
    return _task(nn.Linear)


@refused(r"task\.group = 'the group of a sample': it raised ZeroDivisionError: .*tasks_refused\.py, line \d+\)")
def a_group_that_raises() -> Task:
    return _task(group=lambda index: index // 0)


@refused(r"task\.model = 'a forward in training mode': it raised RuntimeError: .*dtype.*tasks_refused\.py, line \d+\)")
def inputs_of_another_dtype() -> Task:
    x, y = _points().tensors
    return _task(train=TensorDataset(x.double(), y))


@refused(r"task\.loss = 'the loss of a batch': it raised RuntimeError: .*Long.*")
def targets_of_another_dtype() -> Task:
    x, y = _points().tensors
    return _task(train=TensorDataset(x, y.float()))


@refused(r"task\.model = 'a forward in evaluation mode': it raised RuntimeError: .*does not require grad.*line \d+\)")
def a_gradient_inside_a_forward() -> Task:
    def forward(self: Net, x: Tensor) -> Tensor:
        hidden = self.body(x.requires_grad_())
        (slope,) = torch.autograd.grad(hidden.sum(), x, create_graph=True)
        return self.head(hidden + slope)

    return _task(_changed(forward))


@refused(
    r"task\.model = 'a forward in training mode, with a part of its input changed, to measure the effect': "
    r"it raised Val"
)
def a_model_that_checks_its_input() -> Task:
    def forward(self: Net, x: Tensor) -> Tensor:
        if (x != x.round()).any():
            raise ValueError("whole numbers only")
        return self.head(self.body(x).relu())

    x, y = _points().tensors
    return _task(_changed(forward), train=TensorDataset((4 * x).round(), y))


@refused(r"task\.loss = 'tuple': it must return a scalar tensor")
def a_loss_that_is_a_tuple() -> Task:
    return _task(loss=lambda output, target: (F.cross_entropy(output, target), {}))


@refused(r"task\.loss = [\d.]+: it has no gradient")
def a_loss_without_a_gradient() -> Task:
    return _task(loss=lambda output, target: F.cross_entropy(output.detach(), target), sample_loss=F.cross_entropy)


class Scaled(nn.Module):
    """A loss with a temperature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output * self.scale, target)


def _one_number(loss: Any, **changes: Any) -> Task:
    """A task whose output is [B, 1] and whose target is [B]."""
    shards = {
        name: TensorDataset(_points(key=key).tensors[0], _points(key=key).tensors[0][:, 0].sign())
        for key, name in enumerate(("train", "pick", "gate", "valid", "test"))
    }
    return _task(_changed(lambda self, x: self.head(self.body(x))[:, :1]), loss=loss, **(shards | changes))


BROADCAST = r"task\.loss = 'output \[16, 1\], target \[16\]': .*give both the same shape"


@refused(BROADCAST)
def a_loss_of_torch_that_warns_of_a_broadcast() -> Task:
    return _one_number(nn.MSELoss())


@refused(BROADCAST)
def a_loss_of_her_own_in_which_torch_warns_of_a_broadcast() -> Task:
    each = F.huber_loss
    return _one_number(
        lambda output, target: each(output, target),
        sample_loss=lambda output, target: each(output, target, reduction="none").mean(dim=1),
    )


@refused(BROADCAST.replace("16", r"\d+"))
def a_loss_of_torch_that_broadcasts_without_a_warning() -> Task:
    return _one_number(F.poisson_nll_loss)


@refused(r"task\.loss = 'scale': a parameter of the loss is never trained: put it into the model")
def a_loss_with_a_parameter() -> Task:
    return _task(loss=Scaled(), sample_loss=partial(F.cross_entropy, reduction="none"))


@refused(r"task\.model = 'a parameter of shape \(1,\)': the loss depends on it and model\.parameters\(\) does not")
def a_parameter_in_a_closure() -> Task:
    scaled = Scaled()
    return _task(
        loss=lambda output, target: scaled(output, target), sample_loss=partial(F.cross_entropy, reduction="none")
    )


@refused(r"slot body = 'called without gradients by a forward in training mode': .* use_reentrant=False")
def a_reentrant_checkpoint() -> Task:
    whole = torch.utils.checkpoint.checkpoint
    return _task(_changed(lambda self, x: whole(lambda h: self.head(self.body(h).relu()), x, use_reentrant=True)))


@refused(r"task\.loss = nan: it is not finite on the first batch")
def a_loss_that_is_not_a_number() -> Task:
    return _task(loss=lambda output, target: F.cross_entropy(output * math.nan, target), sample_loss=F.cross_entropy)


@refused(
    r"task\.collate = 'a batch of \d+ samples': it raised RuntimeError: stack expects each tensor to be equal size"
)
def samples_of_other_lengths_without_a_collate() -> Task:
    return _task(train=[(torch.zeros(5 + n % 3), torch.tensor(0)) for n in range(64)])


@refused(r"task\.valid = 'a sample of the data set': it raised FileNotFoundError: .*tasks_refused\.py, line \d+\)")
def a_sample_that_is_missing() -> Task:
    class Missing(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            raise FileNotFoundError(f"image-{index}.png")

    return _task(valid=Missing(*_points().tensors))


@refused(r"""task\.metrics\['best'\] = 'the metric on .*': it raised .*tasks_refused\.py, line \d+\)""")
def a_metric_that_raises() -> Task:
    return _task(metrics={"best": lambda output, _target: output["logits"].mean()})
