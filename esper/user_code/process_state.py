"""Process-wide settings of torch that affect the bits of a run, and the values that esper sets.

Every process of a run sets the values after it has loaded the task and before any work, checks them at every fence, and
restores the earlier values at the end. Warning filters and numpy's handling of floating-point errors are not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from esper.errors import ProcessStateChanged, TaskError

CPU = torch.device("cpu")
CONTRADICTED = "contradicted by a setting fp32_precision of torch.backends"
"""Used as the value of a setting if torch refuses to read the setting."""


@dataclass(frozen=True)
class Setting:
    """One setting: its getter, its setter, and esper's value."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    ours: Any = None
    """Value that esper sets. None: the value comes from the config."""


def _flushes_denormals() -> bool:
    """Return whether this thread rounds subnormal numbers to 0.

    It is measured, because torch has no function for it.
    """
    smallest, half = 2.0**-1022, 0.5
    return smallest * half == 0.0


def _put_device(device: torch.device) -> None:
    torch.set_default_device(None if device == CPU else device)  # a default device makes every torch call slower


def _attribute(module: Any, name: str, ours: Any) -> Setting:
    def put(value: Any) -> None:
        setattr(module, name, value)

    return Setting(f"{module.__name__}.{name}", lambda: getattr(module, name), put, ours)


def _older(name: str, get: Callable[[], Any], put: Callable[[Any], object], ours: Any) -> Setting:
    """Make a setting that torch refuses to read while a newer `fp32_precision` setting contradicts it."""

    def read() -> Any:
        try:
            return get()
        except RuntimeError:
            return CONTRADICTED

    def write(value: Any) -> None:
        if value != CONTRADICTED:  # else skip it, because the newer settings contradict it; they are restored later
            put(value)

    return Setting(name, read, write, ours)


def _precision(place: str, ours: str = "none") -> Setting:
    """Make the setting of float32 rounding for one kind of operation. If the value is "none", the next wider setting
    applies.
    """
    name = f"{place}.fp32_precision"
    holder = attrgetter(place.removeprefix("torch."))(torch)

    def put(value: str) -> None:
        holder.fp32_precision = value

    return Setting(name, lambda: holder.fp32_precision, put, ours)


def _put_cudnn_tf32(on: bool) -> None:
    torch.backends.cudnn.allow_tf32 = on


def _put_mkldnn_precision(value: str) -> None:
    """Set the precision of mkldnn only. Its public attribute would set `torch.backends.fp32_precision`."""
    torch._C._set_fp32_precision_setter("mkldnn", "all", value)


SETTINGS = (
    Setting("torch.get_num_threads()", torch.get_num_threads, torch.set_num_threads),
    Setting("torch.get_default_dtype()", torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    Setting("torch.get_default_device()", torch.get_default_device, _put_device, CPU),
    Setting("torch.is_grad_enabled()", torch.is_grad_enabled, torch.set_grad_enabled, True),
    Setting(
        "torch.are_deterministic_algorithms_enabled()",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
        False,
    ),
    _older(
        "torch.get_float32_matmul_precision()",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "highest",
    ),
    _older(
        "torch.backends.cudnn.allow_tf32",
        lambda: torch.backends.cudnn.allow_tf32,
        _put_cudnn_tf32,
        True,
    ),
    _precision("torch.backends"),
    Setting(
        "torch.backends.mkldnn.fp32_precision",
        lambda: torch.backends.mkldnn.fp32_precision,
        _put_mkldnn_precision,
        "none",
    ),
    _precision("torch.backends.mkldnn.matmul"),
    _precision("torch.backends.mkldnn.conv"),
    _precision("torch.backends.mkldnn.rnn"),
    _precision("torch.backends.cudnn"),
    _precision("torch.backends.cuda.matmul"),
    _precision("torch.backends.cudnn.conv", "tf32"),
    _precision("torch.backends.cudnn.rnn", "tf32"),
    Setting("torch.set_flush_denormal()", _flushes_denormals, torch.set_flush_denormal, False),
    Setting(
        "torch.is_autocast_enabled('cpu')",
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
        False,
    ),
    Setting(
        "torch.get_autocast_dtype('cpu')",
        lambda: torch.get_autocast_dtype("cpu"),
        lambda dtype: torch.set_autocast_dtype("cpu", dtype),
        torch.bfloat16,
    ),
    Setting(
        "torch.is_autocast_enabled('cuda')",
        lambda: torch.is_autocast_enabled("cuda"),
        lambda on: torch.set_autocast_enabled("cuda", on),
        False,
    ),
    _attribute(torch.backends.mkldnn, "enabled", True),
    _attribute(torch.backends.mkldnn, "deterministic", False),
    _attribute(torch.backends.cudnn, "enabled", True),
    _attribute(torch.backends.cudnn, "deterministic", False),
    _attribute(torch.backends.cudnn, "benchmark", False),
    Setting("torch.backends.nnpack.set_flags()", torch._C._get_nnpack_enabled, torch.backends.nnpack.set_flags, True),
    _attribute(torch.backends.opt_einsum, "enabled", torch.backends.opt_einsum.is_available()),
    Setting(
        "torch.backends.mha.get_fastpath_enabled()",
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mha.set_fastpath_enabled,
        True,
    ),
    Setting(
        "torch.backends.cuda.flash_sdp_enabled()",
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.enable_flash_sdp,
        True,
    ),
    Setting(
        "torch.backends.cuda.math_sdp_enabled()",
        torch.backends.cuda.math_sdp_enabled,
        torch.backends.cuda.enable_math_sdp,
        True,
    ),
    Setting(
        "torch.backends.cuda.mem_efficient_sdp_enabled()",
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
        True,
    ),
)
"""All settings, in the order in which they are set. If a setting changes other settings, it comes before these."""
MISLEADING = ("torch.get_default_dtype()", "torch.get_default_device()")
"""Settings of the default type and device of new tensors. Tensors from before and after a change may not fit together.
"""


@dataclass
class _Process:
    """The values that esper has set in this process, and the earlier values."""

    expected: dict[str, Any] | None = None
    """Values that esper has set. None: esper has set no values, and no check is made."""
    found: dict[str, Any] | None = None
    """Values before esper set its values. None: the context `process_state` is not entered."""


_here = _Process()


def set_ours(threads: int) -> None:
    """Set every setting to esper's value in this process. After this, `check_process` finds changes."""
    _here.expected = {one.name: threads if one.ours is None else one.ours for one in SETTINGS}
    _put(_here.expected)


def _put(values: dict[str, Any]) -> None:
    for one in SETTINGS:
        if one.get() != values[one.name]:
            one.put(values[one.name])


@contextmanager
def process_state(threads: int) -> Iterator[None]:
    """Use esper's settings within the block. At its end, restore the earlier values."""
    before, outer = {one.name: one.get() for one in SETTINGS}, (_here.expected, _here.found)
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        try:
            _here.found = before
            set_ours(threads)
            yield
        finally:
            _here.expected, _here.found = outer
            _put(before)


def changes() -> list[tuple[str, Any, Any]]:
    """Return name, expected and present value of each setting that differs from esper's value.

    Unreadable values come last.
    """
    if _here.expected is None:
        return []
    now = ((one.name, _here.expected[one.name], one.get()) for one in SETTINGS)
    return sorted((change for change in now if change[1] != change[2]), key=lambda change: change[2] == CONTRADICTED)


def check_process(who: str) -> None:
    """Compare every setting with esper's value. This takes about 100 us.

    Args:
        who: Name of the component in this process, for the error.

    Raises:
        ProcessStateChanged: the user's code has changed a setting.
    """
    for name, expected, found in changes():
        raise ProcessStateChanged(name, str(expected), str(found), f"{who}, process {os.getpid()}")


def refuse_changes(field: str, call: str) -> None:
    """Like `check_process`, before a run has written anything.

    Args:
        field: Field of the task whose code was called.
        call: Description of the call, for the error.

    Raises:
        TaskError: the call has changed a setting.
    """
    for name, expected, found in changes():
        mend = f"{call} sets this for the whole process; esper works with {expected} everywhere: leave it, or undo it"
        raise TaskError(field, f"{name} = {found}", mend)


@contextmanager
def told_with_settings() -> Iterator[None]:
    """Add the name of a changed setting to an error that the setting may have caused.

    Use it before a run has written anything.

    Raises:
        TaskError: training or measuring changed a setting; or the user's code raised an error, and the default type or
            device had another value before esper set its values.
    """
    try:
        yield
    except ProcessStateChanged as error:
        raise TaskError("task", f"{error.setting} = {error.found}", str(error)) from error
    except TaskError as error:
        found, expected = _here.found, _here.expected
        if found is None or expected is None:
            raise
        other = [name for name in MISLEADING if found[name] != expected[name]]
        if error.__cause__ is None or not other:
            raise
        why = f"the task's file or its caller set it; esper works with {expected[other[0]]} in every process"
        raise TaskError(other[0], str(found[other[0]]), f"{why}, so name it where tensors are made: {error}") from error
