"""Exports the grown network of a run to a file for use without esper: plain torch, `torch.export` or ONNX.

The export is written under a temporary name, checked, and then renamed. The check compares the outputs of export and
network on two batches. No file is overwritten, and a failed export leaves no file.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.durable.files import FULL, atomic_write, make_folders, remove_folder, sync_folder
from esper.durable.streams import write_stream
from esper.errors import ConfigError, StoreWriteFailed
from esper.export.comparison import Explain, check_outputs
from esper.export.loading import Loaded, build_network, load_grown
from esper.export.network_file import network_file
from esper.export.program_inputs import check_inputs
from esper.export.programs import (
    Play,
    check_onnx,
    drawn_by_onnx,
    drawn_by_program,
    export_bytes,
    onnx_bytes,
    onnx_tolerance,
    play_export,
    play_onnx,
    trace,
)
from esper.ground.arguments import path_of
from esper.ground.closing import at_the_end, noted_on
from esper.ground.temporary_rng import temporary_rng
from esper.ground.workplace import fixed
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.host.rebuilt import structure_digest, whole_state
from esper.setup.survey import open_data
from esper.task import Task
from esper.tolaria.data import Slice, split_pair
from esper.tolaria.host_building import call_model
from esper.user_code.their_code import refused_as_theirs

ROWS = (3, 5)
"""Number of samples in the traced batch, and in a second batch of the check. The sizes differ because an exported
program must work for every batch size.
"""


class Format(StrEnum):
    """Formats of an export."""

    TORCH = "torch"
    EXPORT = "export"
    ONNX = "onnx"


SUFFIX = {Format.TORCH: "", Format.EXPORT: ".pt2", Format.ONNX: ".onnx"}


@dataclass(frozen=True)
class Exported:
    """The files that `esper.export_network` wrote, with the fence and the number of seeds of the network."""

    files: tuple[Path, ...]
    fence: int
    seeds: int


def export_network(
    run_dir: str | os.PathLike[str],
    format: str = Format.TORCH,
    to: str | os.PathLike[str] | None = None,
    *,
    task: Task | str | None = None,
    fence: int | None = None,
    generation: int | None = None,
) -> Exported:
    """Write the grown network of a run to a new file or folder. The run is only read.

    ```python
    print(esper.export_network("runs/my-run", "onnx", to="my-network.onnx").files)
    ```

    Args:
        format: "torch", "export" or "onnx"; see README.
        to: For `torch` a folder, which is absent or empty. For other formats a file. By default it is in the run's
            parent folder.
        task, fence, generation: See `esper.load`.

    Raises:
        ConfigError: an argument is wrong; the target exists, is inside the run or cannot be written; a package is
            missing; or a blueprint cannot be written as source.
        TaskError: the network cannot be traced, or the export gives other outputs than the network.
        StoreWriteFailed: the files could not be written.
        Exception: as `esper.load`. None of these errors leaves a file.
    """
    run_dir, format = path_of("run_dir", run_dir), _format(format)
    place = fixed(path_of("to", to)) if to is not None else default_place(run_dir, format)
    _check_place(run_dir, place, format)
    if format is Format.ONNX:
        check_onnx()
    loaded = load_grown(run_dir, task, fence, generation)
    batches = _inputs(loaded)
    if format is Format.TORCH:
        files = _write_torch(loaded, run_dir.resolve().name, batches, place)
    else:
        files = _write_program(loaded, batches, place, PROGRAMS[format])
    return Exported(files, loaded.checkpoint.fence, len(loaded.topology))


def _format(format: str) -> Format:
    if format not in [str(one) for one in Format]:
        raise ConfigError("format", format, f"give one of {', '.join(Format)}")
    return Format(format)


# -- the target --------------------------------------------------------------------------------------------------


def default_place(run_dir: Path, format: Format) -> Path:
    """Return the default path of an export. It is in the run's parent folder and has the name of the run."""
    run_dir = fixed(run_dir).resolve()
    return run_dir.with_name(f"{run_dir.name}-network{SUFFIX[format]}")


def _check_place(run_dir: Path, place: Path, format: Format) -> None:
    """Raises: ConfigError: the path exists, cannot be written, or is inside the run. A file is made there to test this,
    and is removed.
    """
    if place.resolve().is_relative_to(fixed(run_dir).resolve()):
        raise ConfigError("to", str(place), f"it is inside the run {run_dir}, which is only read; choose another")
    if os.path.lexists(place) and not (format is Format.TORCH and place.is_dir() and not any(place.iterdir())):
        raise ConfigError("to", str(place), "it exists already, and nothing is overwritten: choose another")
    ground = next(folder for folder in place.parents if os.path.lexists(folder))
    try:
        with tempfile.NamedTemporaryFile(dir=ground, prefix=f".{place.name}.", suffix="-probing.tmp"):
            pass  # as long as the name of a draft, so that a name that is too long is refused here
    except OSError as error:
        if error.errno not in FULL:  # no error here, because the write reports a full disk
            mend = f"it cannot be made in {ground} ({error.strerror}); choose another"
            raise ConfigError("to", str(place), mend) from error


def _draft(place: Path) -> Path:
    """Return a new name in the same folder. The export has this name until the check has passed."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def _folder_of(place: Path) -> Iterator[Path]:
    """Make the parent folders of a path. If the block raises, remove the new folders that are empty."""
    new = [folder for folder in place.parents if not folder.exists()]
    try:
        make_folders(place.parent)
        yield place.parent
    except BaseException as error:
        with noted_on(error, "removing the new folders"):
            for folder in new:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise


# -- batches ---------------------------------------------------------------------------


def _inputs(loaded: Loaded) -> list[Any]:  # Any: whatever the user's model takes
    """Return inputs of two batch sizes (`ROWS`) from the first validation samples."""
    found = []
    with temporary_rng(0), refused_as_theirs():
        data = open_data(loaded.task, loaded.identity.config)
        known = data.shards["valid"].indices
        for rows in ROWS:
            part = Slice("valid", 0, tuple(int(known[i % len(known)]) for i in range(rows)), None)
            inputs, _ = split_pair(next(iter(data.batches_of(part))))
            found.append(inputs)
    return found


class CalledAs(nn.Module):
    """A module that calls a network in the same way as its task does."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self._call = network, task.input_output

    def forward(self, inputs: Any) -> Any:
        """Return the output of the task's `input_output`. Not called if the task has no `input_output`."""
        assert self._call is not None, "without it the network is called directly"
        return self._call(self.network, inputs)


# -- torch: a state dict and a Python file -----------------------------------------------------------------------


def _write_torch(loaded: Loaded, run: str, batches: list[Any], place: Path) -> tuple[Path, ...]:
    identity, checkpoint = loaded.identity, loaded.checkpoint
    specs = {spec.path: spec for spec in identity.slots}
    modules = structure_digest(build_network(loaded.task, identity))
    text = network_file(run, checkpoint.fence, loaded.topology, specs, BLUEPRINTS, modules)
    with _folder_of(place) as folder:
        draft = _draft(place)
        with at_the_end(lambda: remove_folder(draft), "removing the draft"):
            make_folders(draft)
            write_stream(draft / "network.pt", lambda stream: torch.save(whole_state(loaded.network), stream))
            atomic_write(draft / "network.py", text.encode())
            check_outputs(loaded, batches, play_torch(draft / "network.py", loaded))
            _publish(draft, place)
            sync_folder(folder)
    return place / "network.pt", place / "network.py"


def _publish(draft: Path, place: Path) -> None:
    try:
        draft.rename(place)
    except OSError as error:
        raise StoreWriteFailed(str(place), "export") from error


def play_torch(file: Path, loaded: Loaded) -> Play:
    """Run the exported file, and return the network that it builds. The returned module calls the network in the same
    way as the task does.
    """
    scope: dict[str, Any] = {"__name__": "network", "__file__": str(file)}
    exec(compile(file.read_bytes(), str(file), "exec"), scope)  # this process has just written the text
    (build,) = scope["__all__"]
    rebuilt = scope[build](lambda: build_network(loaded.task, loaded.identity))
    return lambda inputs: call_model(loaded.task, rebuilt, inputs)


# -- a program in one file ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """One program format: its writer, its loader, and the allowed difference of its outputs."""

    make: Callable[[torch.export.ExportedProgram], bytes]
    play: Callable[[bytes], Play]
    tolerance: Callable[[torch.export.ExportedProgram], float]
    """Largest allowed difference of an output, divided by its largest absolute value."""
    explain: Explain
    """The reason why a program draws other random numbers than the network."""


PROGRAMS = {
    Format.EXPORT: Program(export_bytes, play_export, lambda _: 1e-6, drawn_by_program),  # the network's own kernels
    Format.ONNX: Program(onnx_bytes, play_onnx, onnx_tolerance, drawn_by_onnx),
}


def _write_program(loaded: Loaded, batches: list[Any], place: Path, kind: Program) -> tuple[Path, ...]:
    check_inputs(loaded.task, *batches)
    network = loaded.network if loaded.task.input_output is None else CalledAs(loaded.network, loaded.task)
    program = trace(network, batches[0], ROWS[0])
    data, tolerance = kind.make(program), kind.tolerance(program)
    check_outputs(loaded, batches, kind.play(data), tolerance, kind.explain)
    with _folder_of(place):
        atomic_write(place, data, replace=False)
    return (place,)
