"""The network as a file for where esper is not: the same bits or nearly, or a refusal that leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import growing
import numpy as np
import pytest
import torch
from growing import graft_plan
from torch import Tensor, nn
from torch.utils.data import default_collate

import esper
from esper.cli.main import exit_code
from esper.errors import ConfigError, StoreWriteFailed, TaskError
from esper.export import exporting
from esper.export.exporting import Format
from esper.export.exporting import export_network as export
from esper.export.network_file import network_file
from esper.export.program_inputs import check_inputs
from esper.export.programs import export_bytes, onnx_tolerance, play_export, trace
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.blueprints.padded import takes_padding
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import TinyHost, telling, tiny_task

HOSTS = ["tokens", "images", "rows"]
THREE_HOSTS = Path(__file__).parents[1] / "data" / "three_hosts.py"
Get = Callable[[str], Any]
HOSTILE = 'a\\users \'"""\nimport nowhere\n{x}\u2028'
"""A name that is not one literal, one line or one format of Python."""

CLEAN = """
import importlib.util, sys
sys.modules["esper"] = None  # whoever imports it fails
import torch

def module(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found

hosts = module("three_hosts", sys.argv[1])
torch.set_num_threads(1)
for case in torch.load(sys.argv[2]):
    model = module("network", case["folder"] + "/network.py").build(getattr(hosts, case["host"]))
    program = torch.export.load(case["program"]).module() if case["program"] else model
    assert not any(one.training for one in model.modules())
    for inputs, expected in case["batches"]:
        with torch.no_grad():
            near = (program(inputs) - expected).abs().max() <= 1e-6 * max(1, float(expected.abs().max()))
            print(torch.equal(model(inputs), expected), bool(near))
assert not [name for name in sys.modules if name.partition(".")[0] in ("esper", "actors", "ray", "pydantic")][1:]
"""


def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return network(inputs)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Within a share of the largest figure: torch's fused layers, which a program lacks, add in another order."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.fixture(scope="module")
def program_of(grown_host: Get, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The grown host of a name, at its end, as a program."""
    folder = tmp_path_factory.mktemp("programs")

    def get(host: str) -> Path:
        file = folder / f"{host}.pt2"
        if not file.exists():
            export(grown_host(host).ended, Format.EXPORT, file)
        return file

    return get


@pytest.mark.slow
def test_three_hosts_are_rebuilt_to_the_bit_and_run_as_programs_where_there_is_no_esper(
    grown_host: Get, program_of: Callable[[str], Path], tmp_path: Path
) -> None:
    cases = []
    for host in HOSTS:
        grown = grown_host(host)
        for run_dir in (grown.stopped, grown.ended):
            folder = tmp_path / f"{host}-{run_dir.name}"
            export(run_dir, Format.TORCH, folder)
            program = str(program_of(host)) if run_dir == grown.ended else ""
            network, many = esper.load(run_dir), torch.cat([grown.inputs] * 3)
            batches = [(some, outputs(network, some)) for some in (grown.inputs[:1], grown.inputs, many)]
            assert torch.equal(batches[1][1], grown.at_end if run_dir == grown.ended else grown.at_stop)
            kind = host.capitalize()
            cases.append({"folder": str(folder), "program": program, "host": kind, "batches": batches})
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-I", "-c", CLEAN, str(THREE_HOSTS), str(tmp_path / "cases.pt")]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == ["True True"] * (len(HOSTS) * 2 * 3)


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_the_seeds_are_in_the_program(grown_host: Get, program_of: Callable[[str], Path], host: str) -> None:
    grown = grown_host(host)
    program = torch.export.load(program_of(host))
    seeds = {name for name in grown.network.state_dict() if name.startswith("esper_seeds.")}
    assert seeds
    assert seeds <= program.state_dict.keys()
    without = esper.load(grown.ended)
    for name, buffer in without.named_buffers():
        if name.endswith(".alpha"):
            buffer.zero_()
    for inputs in (grown.inputs[:2], torch.cat([grown.inputs] * 2)):
        found = outputs(program.module(), inputs)
        assert_near(found, outputs(grown.network, inputs))
        assert not torch.allclose(found, outputs(without, inputs), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_onnx_gives_the_outputs_for_batches_of_any_size(grown_host: Get, tmp_path: Path, host: str) -> None:
    grown = grown_host(host)
    export(grown.ended, Format.ONNX, tmp_path / "it.onnx")
    assert_onnx_near(tmp_path / "it.onnx", grown)
    assert os.listdir(tmp_path) == ["it.onnx"]


def assert_onnx_near(file: Path, grown: Any) -> None:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(file))
    for inputs in (grown.inputs[:1], grown.inputs, torch.cat([grown.inputs] * 2)):
        (found,) = evaluator.run(None, {evaluator.input_names[0]: inputs.numpy()})
        near = torch.from_numpy(found)
        assert_near(near, outputs(grown.network, inputs), 1e-5)  # numpy's order of additions depends on the processor


# -- what the Python file holds ----------------------------------------------------------------------------------

SHAPES = {Kind.NCHW: (8, 6, 6), Kind.NTC: (6, 8), Kind.NCT: (8, 6), Kind.NC: (8,)}


def slot(kind: Kind, causal: bool = False) -> SlotSpec:
    return growing.slot(f"at.{kind}{'.causal' if causal else ''}", kind, SHAPES[kind], causal=causal)


def plan(spec: SlotSpec, ordinal: int, blueprint: str) -> GraftPlan:
    return graft_plan(seed_id=f"{spec.path}.{ordinal}", slot=spec.path, ordinal=ordinal, blueprint_id=blueprint)


def written(plans: list[GraftPlan], specs: list[SlotSpec], registry: BlueprintRegistry = BLUEPRINTS) -> dict[str, Any]:
    """What the text of a network file defines, evaluated where no module of esper can be imported."""
    text = network_file("a-run", 3, plans, {spec.path: spec for spec in specs}, registry, "")
    assert "esper import" not in text
    assert "import esper" not in text
    scope: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "esper"}
    modules: dict[str, Any] = sys.modules
    modules["esper"] = None  # then its import fails
    try:
        exec(text, scope)
        rows = next(scope[name] for name in ("SEEDS_network", "SEEDS") if name in scope)
        scope["made"] = [make() for _, _, (make, *_) in rows]
    finally:
        sys.modules.update(hidden)
    return scope


def test_every_built_in_blueprint_is_written_down_and_is_the_same_without_esper() -> None:
    specs = [slot(kind, causal) for kind in Kind for causal in ((True, False) if kind.time is not None else (False,))]
    pairs = [(spec, one) for spec in specs for one in BLUEPRINTS.for_kind(spec.kind)]
    copies = [1 + ordinal % 3 for ordinal in range(len(pairs))]
    plans = [
        plan(spec, ordinal, one.name).model_copy(update={"copies": count})
        for ordinal, ((spec, one), count) in enumerate(zip(pairs, copies, strict=True))
    ]
    made = written(plans, specs)["made"]
    assert len(made) == len(pairs) >= 50
    for (spec, blueprint), count, module in zip(pairs, copies, made, strict=True):
        known = blueprint.build(spec, seed_key=1, copies=count)
        for parameter in known.parameters():
            nn.init.uniform_(parameter, -1, 1)
        module.load_state_dict(known.state_dict())
        x, padding = torch.randn(3, *spec.shape), None
        if takes_padding(known):
            padding = torch.rand(x.shape[:2]) > 0.7
        given = (x,) if padding is None else (x, padding)
        assert torch.equal(module(*given), known(*given)), blueprint.name
        assert known(*given).abs().sum() > 0


@pytest.mark.parametrize("key", [HOSTILE, 'a"b', "a\\b"])
def test_the_name_of_a_run_and_of_a_module_is_text_and_never_python(key: str) -> None:
    spec = slot(Kind.NC).model_copy(update={"path": key})
    text = network_file(key, 3, [plan(spec, 0, "mlp")], {key: spec}, BLUEPRINTS, "")
    assert f"# Run {key!a}, fence 3.\n" in text
    ((path, *_),) = written([plan(spec, 0, "mlp")], [spec])["SEEDS"]
    assert path == key


def test_a_file_holds_the_definitions_that_its_network_uses_and_no_others() -> None:
    scope = written([plan(slot(Kind.NC), 0, "mlp")], [slot(Kind.NC)])
    defined = {name for name, value in scope.items() if isinstance(value, type) and value.__module__ == "network"}
    assert defined == {"SquaredReLU", "Seed", "SeedHolder", "SlotHook"}
    assert not {"conv3", "low_rank", "Attention"} & scope.keys()


USERS = '''
import math
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from esper.kasmina.blueprints.catalogue import BlueprintRegistry, blueprint
from esper.kasmina.blueprints.seed_modules import zeroed as silent
from esper.leyline.slots import Kind, SlotSpec

registry = BlueprintRegistry()
PAGES = "\x0c\u2028"
WIDTH = 2 * round(math.sqrt(16))

class Gate(nn.Module):
    """Two layers."""
    def __init__(self, channels: int, kind: Kind) -> None:
        super().__init__()
        self.inward = nn.Linear(channels, WIDTH if kind is Kind.NC else 1)
        self.outward = silent(nn.Linear(WIDTH, channels))
    def forward(self, x: Tensor) -> Tensor:
        return self.outward(F.relu(self.inward(x)))

@blueprint("gate", kinds=(Kind.NC,), risk=0.3, registry=registry)
def gate(spec: SlotSpec) -> nn.Module:
    assert spec.padding is None
    return Gate(spec.shape[-1], spec.kind)

def unfinished(spec):
    return nowhere(spec)

def mlp(spec):
    return nn.Linear(8, 8)

SEEDS = 8
MODULES = ("Gate", SEEDS)

def build(channels):
    """It has names that the file would give its own."""
    assert MODULES == ("Gate", 8)
    return Gate(channels, Kind.NC)

@blueprint("named", kinds=(Kind.NC,), risk=0.3, registry=registry)
def build_network(spec):
    return build(spec.shape[-1])
'''


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "her_blueprints.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("her_blueprints")
    yield module
    del sys.modules["her_blueprints"]


def test_a_users_own_blueprint_is_written_down_with_what_it_uses(users: Any) -> None:
    spec = slot(Kind.NC)
    (module,) = written([plan(spec, 0, "gate")], [spec], users.registry)["made"]
    known = users.registry.get("gate").build(spec, seed_key=1)
    nn.init.ones_(known.outward.weight)
    module.load_state_dict(known.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(module(x), known(x))


def test_names_of_the_users_own_and_of_the_file_do_not_collide(users: Any) -> None:
    spec = slot(Kind.NC)
    scope = written([plan(spec, 0, "named")], [spec], users.registry)
    (name,) = scope["__all__"]
    assert scope[name].__doc__.startswith("The grown network")
    assert isinstance(scope["build"](8), scope["Gate"])


def test_a_blueprint_that_cannot_be_written_down_is_refused_with_the_reason(users: Any) -> None:
    spec = slot(Kind.NC)
    registry = BlueprintRegistry()
    registry.add(Blueprint("hers", (Kind.NC,), 0.1, users.mlp))
    registry.add(BLUEPRINTS.get("mlp"))
    mend = r"esper\.kasmina\.blueprints\.nc and her_blueprints both define 'mlp'; rename yours"
    with pytest.raises(ConfigError, match=mend):
        written([plan(spec, 0, "mlp"), plan(spec, 1, "hers")], [spec], registry)
    for factory, told in (
        (lambda _: nn.Linear(8, 8), r"blueprint = 'hers': .* is no function at the top of a module; make it one"),
        (partial(users.gate), r"is no function at the top of a module"),
        (users.unfinished, r"her_blueprints uses 'nowhere', which is not defined at its top"),
    ):
        registry = BlueprintRegistry()
        registry.add(Blueprint("hers", (Kind.NC,), 0.1, factory))
        with pytest.raises(ConfigError, match=told):
            written([plan(spec, 0, "hers")], [spec], registry)


@pytest.mark.parametrize("key", ['a"b', "a\\b", HOSTILE])
def test_a_module_whose_name_breaks_the_code_of_torch_is_refused_as_untraceable(key: str) -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({key: nn.Linear(4, 4)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[key](x)

    data = export_bytes(trace(Keyed(), torch.zeros(3, 4), 3))
    with pytest.raises(TaskError, check=telling("torch.export", field="task.model")):
        play_export(data)(torch.zeros(5, 4))


def test_another_factory_is_refused_by_the_file(grown_host: Get, three_hosts: Any, tmp_path: Path) -> None:
    export(grown_host("images").ended, Format.TORCH, tmp_path / "it")
    spec = importlib.util.spec_from_file_location("it", tmp_path / "it" / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Strided(three_hosts.Images):
        def __init__(self) -> None:
            super().__init__()
            self.stem[0].stride = (2, 2)

    class Wider(three_hosts.Images):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 5)

    class Elsewhere(three_hosts.Images):
        def __init__(self) -> None:
            super().__init__()
            self.tail = nn.ReLU()

    for other in (Strided, Wider, Elsewhere, three_hosts.Rows):
        with pytest.raises(ValueError, match=r"this is another network than the one that grew"):
            module.build(other)
    with pytest.raises(TypeError, match=r"give the factory"):
        module.build(three_hosts.Images())
    state = torch.load(tmp_path / "it" / "network.pt", weights_only=True)
    model = module.build(three_hosts.Images)
    assert list(state) == list(model.state_dict())
    state["head.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"head\.bias is \[4\] of torch\.float32, and was \[5\] of torch\.float32"):
        module.fill(model, state)


# -- the place, and failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(Format))
def test_nothing_is_overwritten(grown_host: Get, tmp_path: Path, format: Format) -> None:
    folder, file, gone = tmp_path / "folder", tmp_path / "file", tmp_path / "gone"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    file.write_text("mine")
    gone.symlink_to(tmp_path / "nowhere")
    for place in (folder, file, gone):
        with pytest.raises(ConfigError, check=telling(field="to")):
            export(grown_host("rows").ended, format, place)
    with pytest.raises(ConfigError, check=telling(field="to")):
        export(grown_host("rows").ended, format, file / "it")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "gone"]
    assert (folder / "notes").read_text() == file.read_text() == "mine"


def test_a_run_of_any_name_is_exported_beside_itself(grown_host: Get, three_hosts: Any, tmp_path: Path) -> None:
    grown = grown_host("rows")
    shutil.copytree(grown.ended, tmp_path / HOSTILE)
    made = export(tmp_path / HOSTILE, Format.TORCH)
    file = tmp_path / f"{HOSTILE}-network" / "network.py"
    assert made.files[1] == file
    scope: dict[str, Any] = {"__name__": "network", "__file__": str(file)}
    exec(file.read_bytes(), scope)
    assert torch.equal(outputs(scope["build"](three_hosts.Rows), grown.inputs), grown.at_end)


@pytest.mark.parametrize("inside", ["", "inside", "new/../checkpoints/it"])
def test_nothing_is_written_into_the_run(grown_host: Get, tmp_path: Path, inside: str) -> None:
    run_dir, link = grown_host("rows").ended, tmp_path / "link"
    link.symlink_to(run_dir)
    before = sorted(run_dir.rglob("*"))
    for named, place in ((run_dir, link / inside), (link, run_dir / inside)):
        with pytest.raises(ConfigError, check=telling(field="to")):
            export(named, Format.TORCH, place)
    assert sorted(run_dir.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_a_wrong_input(
    grown_host: Get, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("/proc/x", str(tmp_path / ("x" * 250))):
        for format in Format:
            assert exit_code(["export", str(grown_host("rows").ended), "--format", format, "--to", place]) == 2
            told = capsys.readouterr().err
            assert told.startswith("esper: to = ")
            assert "it cannot be made in" in told
    assert os.listdir(tmp_path) == []


class Untraceable(TinyHost):
    __qualname__ = "TinyHost"  # only its forward is another

    def forward(self, x_BC: Tensor) -> Tensor:
        scores = super().forward(x_BC)
        return scores if float(scores.sum()) > 0 else scores + 0


class OneSize(TinyHost):
    __qualname__ = "TinyHost"  # only its forward is another

    def forward(self, x_BC: Tensor) -> Tensor:
        return super().forward(x_BC).view(3 if len(x_BC) == 3 else -1, 4)


class Other(TinyHost):
    """It gives other outputs each time it is built."""

    __qualname__ = "TinyHost"

    built = 0

    def __init__(self) -> None:
        super().__init__()
        Other.built += 1
        self.times = Other.built

    def forward(self, x_BC: Tensor) -> Tensor:
        return super().forward(x_BC) * self.times


@pytest.mark.parametrize(
    ("format", "model", "told"),
    [
        (
            Format.EXPORT,
            Untraceable,
            r"task\.model = 'torch\.export': it raised .*test_exporting\.py, line \d+.*; .*use --format torch",
        ),
        (Format.EXPORT, OneSize, r"task\.model = 'torch\.export': it raised"),
        (Format.TORCH, Other, r"gives other outputs"),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused_and_nothing_is_left(
    drained_twice: Path, tmp_path: Path, format: Format, model: type[nn.Module], told: str
) -> None:
    before = sorted(os.listdir(drained_twice.parent))
    with pytest.raises(TaskError, match=told):
        export(drained_twice, format, tmp_path / "new" / "it", task=replace(tiny_task(), model=model))
    assert os.listdir(tmp_path) == []
    assert sorted(os.listdir(drained_twice.parent)) == before


class Changed(TinyHost):
    """A host whose evaluation passes its outputs through `change`."""

    __qualname__ = "TinyHost"
    change: Callable[[Tensor], Tensor]

    def forward(self, x_BC: Tensor) -> Tensor:
        return type(self).change(super().forward(x_BC))


def with_change(change: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    return type("TinyHost", (Changed,), {"change": staticmethod(change), "__module__": TinyHost.__module__})


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        pytest.param(
            lambda y: y + torch.randn_like(y), {Format.ONNX: "ONNX draws others"}, id="randn", marks=pytest.mark.slow
        ),
        pytest.param(lambda y: nn.functional.dropout(y, 0.5, True), {Format.ONNX: "ONNX draws others"}, id="dropout"),
        pytest.param(
            lambda y: y + random.random(), dict.fromkeys([Format.EXPORT, Format.ONNX], "constants"), id="python"
        ),
        pytest.param(
            lambda y: y + float(np.random.rand()),
            dict.fromkeys([Format.EXPORT, Format.ONNX], "constants"),
            id="numpy",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_random_numbers_in_evaluation_are_the_same_for_network_and_export_or_named(
    drained_twice: Path, tmp_path: Path, change: Callable[[Tensor], Tensor], refused: dict[Format, str]
) -> None:
    task = replace(tiny_task(), model=with_change(change))
    for format in Format:
        place = tmp_path / format
        if format in refused:
            with pytest.raises(TaskError, check=telling(refused[format], "random numbers", field="task.model")):
                export(drained_twice, format, place, task=task)
        else:
            export(drained_twice, format, place, task=task)
        assert place.exists() == (format not in refused)


class Autocast(TinyHost):
    __qualname__ = "TinyHost"  # only its forward is another

    def forward(self, x_BC: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x_BC)


def test_a_network_under_autocast_is_exported_within_the_spacing_of_its_shortest_type(
    drained_twice: Path, tmp_path: Path
) -> None:
    for format in Format:
        export(drained_twice, format, tmp_path / format, task=replace(tiny_task(), model=Autocast))
        assert (tmp_path / format).exists()
    for model, tolerance in (
        (Autocast(), 2 * 2**-7),
        (with_change(lambda y: y.half().float())(), 2 * 2**-10),
        (TinyHost(), 1e-4),
        (TinyHost().double(), 1e-4),
    ):
        inputs = torch.zeros(3, 8, dtype=next(model.parameters()).dtype)
        assert onnx_tolerance(trace(model, inputs, 3)) == tolerance


@dataclass
class Record:
    x: Tensor


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (lambda rows: ["a"] * rows, "['extra']"),
        (lambda rows: f"{rows} rows", "['extra']"),
        (lambda rows: {"ids": [{"row": i} for i in range(rows)]}, "['extra']['ids']"),
        (lambda rows: np.zeros(rows), "no numpy.ndarray"),
        (lambda rows: Record(torch.zeros(rows)), "test_exporting.Record"),
    ],
    ids=["texts", "text", "nested", "array", "record"],
)
def test_a_part_of_the_input_that_a_program_cannot_take_is_named(extra: Callable[[int], Any], named: str) -> None:
    one, other = ({"x": torch.zeros(rows, 8), "extra": extra(rows)} for rows in (3, 5))
    for collate, field in ((None, "task.valid"), (default_collate, "task.collate")):
        with pytest.raises(TaskError, check=telling(named, "--format torch", field=field)):
            check_inputs(tiny_task(collate=collate), one, other)
    fine = [{"x": (torch.zeros(rows, 8), [None, 1, "mean"])} for rows in (3, 5)]
    check_inputs(tiny_task(), *fine)


def named_rows(samples: list[Any]) -> Any:
    inputs, targets = default_collate(samples)
    return {"x": inputs, "names": ["a"] * len(inputs)}, targets


def test_a_list_of_texts_in_the_input_is_refused_before_the_trace(drained_twice: Path, tmp_path: Path) -> None:
    task = tiny_task(collate=named_rows, input_output=lambda model, batch: model(batch["x"]))
    export(drained_twice, Format.TORCH, tmp_path / "it", task=task)
    with pytest.raises(TaskError, check=telling("['names']", field="task.collate")):
        export(drained_twice, Format.EXPORT, tmp_path / "it.pt2", task=task)


@pytest.mark.parametrize(("format", "write"), [(Format.TORCH, "write_stream"), (Format.EXPORT, "atomic_write")])
def test_a_full_disk_is_told_and_leaves_nothing(
    grown_host: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, write: str
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise StoreWriteFailed(str(path), "write") from OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, write, full)
    with pytest.raises(StoreWriteFailed, check=telling("No space left", doing="write")):
        export(grown_host("rows").ended, format, tmp_path / "new" / "it")
    assert os.listdir(tmp_path) == []


def test_a_second_failure_does_not_replace_the_first(
    grown_host: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(exporting, "play_torch", lambda *_: lambda _: torch.zeros(0))
    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(TaskError, check=telling(field="task.model", value="Rows")) as caught:
        export(grown_host("rows").ended, Format.TORCH, tmp_path / "new" / "it")
    (note,) = caught.value.__notes__
    assert note.startswith("a second failure, while removing the draft: PermissionError: ")


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote_and_refuses_to_write_it_again(
    grown_host: Get, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(grown_host("rows").ended), "--to", str(tmp_path / "new" / "it"), "--fence", "7", "--json"]
    assert exit_code(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["fence"]) == ("torch", 7)
    assert told["seeds"] > 0
    assert told["files"] == [str(tmp_path / "new" / "it" / name) for name in ("network.pt", "network.py")]
    assert sorted(os.listdir(tmp_path / "new" / "it")) == ["network.pt", "network.py"]
    assert exit_code(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert exit_code([*words[:4], "--format", "tflite"]) == 2


def test_a_missing_package_is_named_with_its_extra(
    grown_host: Get, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    place = str(tmp_path / "it.onnx")
    assert exit_code(["export", str(grown_host("rows").ended), "--format", "onnx", "--to", place]) == 2
    assert "pip install 'esper-runtime[onnx]'" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_readme_leads_from_a_run_to_inference(
    grown_host: Get,
    three_hosts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grown = grown_host("rows")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.partition("## Use the trained network")[2].partition("\n## ")[0]
    load, commands, rebuild = (part.partition("```")[0] for part in section.split("```")[1::2])
    example = "torch.tensor([[1.0, 2.0], [1.0, -2.0]])"  # for the network of README; here is another one
    assert example in load
    shutil.copytree(grown.ended, tmp_path / "runs" / "my-run")
    monkeypatch.chdir(tmp_path)
    scope = {"inputs": grown.inputs, "build_model": three_hosts.Rows}
    exec(load.removeprefix("python").replace(example, "inputs"), scope)
    assert capsys.readouterr().out.strip() == str(grown.at_end.argmax(dim=-1))
    assert len(load.strip().splitlines()) - 2 <= 5
    for line in commands.removeprefix("sh").strip().splitlines():
        assert exit_code(line.partition("#")[0].split()[1:]) == 0, line
    assert sorted(os.listdir(tmp_path / "runs")) == ["my-run", "my-run-network.onnx", "my-run-network.pt2"]
    assert_onnx_near(tmp_path / "runs" / "my-run-network.onnx", grown)
    monkeypatch.syspath_prepend(tmp_path / "my-network")
    monkeypatch.delitem(sys.modules, "network", raising=False)
    factory = "from my_task import build_model"
    assert factory in rebuild
    exec(rebuild.removeprefix("python").replace(factory, ""), scope)
    del sys.modules["network"]
    assert torch.equal(outputs(scope["model"], grown.inputs), grown.at_end)
