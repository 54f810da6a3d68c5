"""Converts a network to a program of `torch.export` or ONNX, which runs without the Python code of the network. It
writes no file."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from esper.errors import ConfigError, TaskError
from esper.ground.temporary_rng import temporary_rng
from esper.user_code.their_code import exception_in_words

MEND = "torch cannot convert the forward; change the code that its error names, or use --format torch"

Play = Callable[[Any], Any]
"""A loaded program as a function of its inputs."""


def trace(network: nn.Module, inputs: Any, rows: int) -> torch.export.ExportedProgram:  # Any: the inputs of a model
    """Trace a network as a program for batches of any size.

    Args:
        inputs: One batch of `rows` samples. If the first dimension of a tensor is `rows`, it is the batch dimension.

    Raises:
        TaskError: torch cannot trace the network for every batch size. torch's exception is the cause.
    """
    batch = torch.export.Dim("batch")

    def dynamic(leaf: Any) -> Any:  # Any: whatever the user's model takes
        return {0: batch} if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows else None

    shapes = (pytree.tree_map(dynamic, inputs),)
    with temporary_rng(0), torch.no_grad(), _refused("torch.export"):
        return torch.export.export(network, (inputs,), dynamic_shapes=shapes)


@contextmanager
def _refused(call: str) -> Iterator[None]:
    """Turn exceptions of the block, which makes or loads a program, into a `TaskError`, and hide torch's warnings.

    Raises:
        TaskError: the block raised. That exception is the cause.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise TaskError("task.model", call, f"{exception_in_words(error)}; {MEND}") from error


_ELSEWHERE = {
    "python": "Python's `random`",
    "numpy": "`numpy.random`",
}
"""The global generators from which a program cannot draw."""

WITHOUT_DRAWS = "return outputs without them in evaluation"


def drawn_by_program(drawn: tuple[str, ...]) -> str:
    """Return why a program of `torch.export` draws other random numbers than the network. "": it draws the same."""
    fixed = [words for name, words in _ELSEWHERE.items() if name in drawn]
    if not fixed:
        return ""
    where = f"in evaluation its forward draws random numbers from {' and '.join(fixed)}"
    return f"{where}, which become constants of a program; {WITHOUT_DRAWS}, draw them by torch, or use --format torch"


# -- torch.export ------------------------------------------------------------------------------------------------


def export_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return the bytes of a file that `torch.export.load` reads. Raises: TaskError: torch cannot write it."""
    buffer = io.BytesIO()
    with _refused("torch.export.save"):
        torch.export.save(program, buffer)
    return buffer.getvalue()


def play_export(data: bytes) -> Play:
    """Load an exported program from the bytes of its file.

    Raises:
        TaskError: torch cannot read the file that it wrote. The error is raised here, or at the first call of the
            program. For example, torch writes module names into Python source without escapes, so a quote or a
            backslash in a name breaks the source.
    """
    with _refused("torch.export.load"):
        module = torch.export.load(io.BytesIO(data)).module()

    def play(inputs: Any) -> Any:  # Any: whatever the user's model takes
        with _refused("the program of torch.export"):
            return module(inputs)

    return play


# -- ONNX --------------------------------------------------------------------------------------------------------


def check_onnx() -> None:
    """Raises: ConfigError: the packages of the extra `onnx` are not installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        mend = f"needs {' and '.join(missing)}; install the extra: pip install 'esper-runtime[onnx]'"
        raise ConfigError("--format", "onnx", mend)


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return the bytes of an ONNX file, weights included.

    Raises:
        TaskError: torch cannot convert the program to ONNX. torch's exception is the cause.
    """
    with _quiet(), _refused("torch.onnx.export"):
        made = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
    assert made is not None, "torch returns a program if it gets no file"
    data: bytes = made.model_proto.SerializeToString()
    return data


def drawn_by_onnx(drawn: tuple[str, ...]) -> str:
    """Return why a graph of ONNX draws other random numbers than the network."""
    where = "in evaluation its forward draws random numbers"
    return drawn_by_program(drawn) or f"{where}, and ONNX draws others; {WITHOUT_DRAWS}, or use --format export"


FLOAT32_TOLERANCE = 1e-4
"""Other kernels than those of torch sum in another order."""


def onnx_tolerance(program: torch.export.ExportedProgram) -> float:
    """Return the largest allowed difference of an output of ONNX, divided by the largest absolute value.

    It is 1e-4. If the program computes in a shorter type, as under autocast, it is twice the spacing of this type at 1:
    1.6e-2 for bfloat16 and 2e-3 for float16. Each kernel rounds to this type at other places.
    """
    spacings = [torch.finfo(dtype).eps for dtype in _float_types(program)]
    return max([FLOAT32_TOLERANCE, *(2 * spacing for spacing in spacings if spacing > FLOAT32_TOLERANCE)])


def _float_types(program: torch.export.ExportedProgram) -> set[torch.dtype]:
    """Return the floating-point types of all tensors in a program, also in its nested graphs, which autocast makes."""
    graphs = (one.graph for one in program.graph_module.modules() if isinstance(one, torch.fx.GraphModule))
    values = (node.meta.get("val") for graph in graphs for node in graph.nodes)
    leaves = (leaf for value in values for leaf in pytree.tree_leaves(value))
    return {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point}


def play_onnx(data: bytes) -> Play:
    """Load an ONNX file into the reference evaluator of ONNX. Raises: TaskError: the file is not valid, or cannot be
    run."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    with _refused("the graph of ONNX"):
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        names = [one.name for one in model.graph.input]
        evaluator = ReferenceEvaluator(model)

    def play(inputs: Any) -> Any:  # Any: whatever the user's model takes
        with _refused("the graph of ONNX"):
            given = [leaf.numpy() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
            return [_tensor(one) for one in evaluator.run(None, dict(zip(names, given, strict=True)))]

    return play


def _tensor(found: Any) -> Any:  # Any: an array, or a sequence of arrays
    """Return an array as a tensor. numpy has bfloat16 only as a type of another package, which torch does not read."""
    if isinstance(found, np.ndarray) and found.dtype.name == "bfloat16":
        return torch.from_numpy(found.view("int16")).view(torch.bfloat16)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's log messages about optional packages."""
    said = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = said.level
    said.setLevel(logging.ERROR)
    try:
        yield
    finally:
        said.setLevel(before)
