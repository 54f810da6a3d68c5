"""The network comes out of a run: whole, verified, with the trainer's bits, an ordinary module, or a typed refusal."""

from __future__ import annotations

import copy
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import DRAWN, drawn_plan
from torch import nn
from training import live_trainer

import esper
from esper import resume, run
from esper.archive.history import Past, read_past
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import checkpoints_folder, journal_file, run_file
from esper.config.joined import load_config
from esper.errors import CheckpointCorrupt, ConfigError, RunDirectoryError, StoreCorrupt, TaskError
from esper.export import loading
from esper.export.network_file import network_file
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.ground.tensors import state_digest
from esper.kasmina.blueprints.nc import mlp
from esper.kasmina.host.attached import Seed, attach, check_names
from esper.kasmina.host.formulas import residual
from esper.kasmina.host.rebuilt import structure_digest, whole_state
from esper.leyline.commands import BlendSpec
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState
from esper.setup.survey import survey_of
from esper.testing import StopAt, TinyHost, telling, tiny_config, tiny_task

HOSTS = [pytest.param("tokens", marks=pytest.mark.slow), "images", "rows"]
Get = Callable[[str], Any]


def outputs(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(inputs)


# -- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_a_network_has_the_bits_of_the_trainer_at_a_stop_and_at_the_end(grown_host: Get, host: str) -> None:
    grown = grown_host(host)
    for path, expected in ((grown.stopped, grown.at_stop), (grown.ended, grown.at_end)):
        network = esper.load(path)
        assert torch.equal(outputs(network, grown.inputs), expected)
        assert not any(module.training for module in network.modules())
    assert not torch.equal(grown.at_stop, grown.at_end)


@pytest.mark.parametrize("host", HOSTS)
def test_the_seeds_are_there_live_and_fossilised_and_count(grown_host: Get, host: str) -> None:
    grown = grown_host(host)
    entries, _ = read(grown.stopped / "journal-1.log")
    stages = {entry.body["seed_id"]: entry.body["after"] for entry in entries if entry.kind is RecordKind.TRANSITION}
    live = [stage for stage in stages.values() if stage in {str(one) for one in IN_HOST} - {"FOSSILIZED"}]
    assert live, "no live seed at the stop: the test shows nothing of blending"
    network = esper.load(grown.stopped)
    seeds = [module for module in network.modules() if isinstance(module, Seed)]
    assert len(seeds) >= len(live)
    for seed in seeds:
        seed.alpha.zero_()
    assert not torch.equal(outputs(network, grown.inputs), grown.at_stop)


@pytest.mark.parametrize("host", HOSTS)
def test_the_result_has_the_network_that_load_gives(grown_host: Get, host: str) -> None:
    grown, loaded = grown_host(host), esper.load(grown_host(host).ended)
    assert not any(module.training for module in grown.network.modules())
    assert list(loaded.state_dict()) == list(grown.network.state_dict())
    assert state_digest(loaded.state_dict()) == state_digest(grown.network.state_dict()) == grown.weights_sha256
    assert str(loaded) == str(grown.network)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in grown.network.parameters()]


def test_a_generation_and_a_fence_give_the_network_of_then(grown_host: Get) -> None:
    grown = grown_host("rows")
    assert torch.equal(outputs(esper.load(grown.ended, generation=1), grown.inputs), grown.at_stop)
    assert torch.equal(outputs(esper.load(grown.ended, generation=2), grown.inputs), grown.at_end)
    assert torch.equal(outputs(esper.load(grown.ended, generation=1, fence=7), grown.inputs), grown.at_stop)
    assert torch.equal(outputs(esper.load(grown.ended, fence=7), grown.inputs), grown.at_stop)
    assert not any(isinstance(module, Seed) for module in esper.load(grown.ended, fence=0).modules())
    for generation in (3, 0, True, "1", 1.0):
        with pytest.raises(ConfigError, check=telling("generation 1", "2", field="generation")):
            esper.load(grown.ended, generation=generation)
    with pytest.raises(ConfigError, check=telling("generation 2", "fence 8", field="fence", value=7)):
        esper.load(grown.ended, generation=2, fence=7)


def test_a_run_that_goes_on_is_read_at_the_fence_that_it_committed(three_hosts: Any, tmp_path: Path) -> None:
    task, config = three_hosts.rows(), load_config(None, {**three_hosts.EASY, "run.dir": str(tmp_path / "run")})
    digests: dict[int, str] = {}

    class Loading(Quiet):
        def fence(self, state: RoundState, tally: Tally) -> None:
            del tally
            if 2 <= state.fence <= 4:
                network = esper.load(tmp_path / "run", task=task)
                digests[state.fence] = state_digest(network.state_dict())
                watch.fence(state, Tally())

    watch = StopAt(4)
    with pytest.raises(esper.errors.Drained):
        run(task, config, progress=Loading(), drain=watch.drain)
    assert len(set(digests.values())) == 3


def test_a_checkpoint_that_is_dropped_while_it_is_read_is_not_missed(
    grown_host: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal was read when fence 7 was the last; it is dropped then, and the run has gone on."""
    grown = grown_host("rows")
    place = Path(shutil.copytree(grown.ended, tmp_path / "run"))
    (checkpoints_folder(place) / "fence-7-g1.pt").unlink()
    told = iter([read_past(grown.stopped)])

    def overtaken(path: Path) -> Past:
        return next(told, None) or read_past(path)

    monkeypatch.setattr(loading, "read_past", overtaken)
    monkeypatch.setattr(loading, "check_sealed", lambda *_: None)
    assert torch.equal(outputs(esper.load(place), grown.inputs), grown.at_end)


# -- an ordinary module ------------------------------------------------------------------------------------------


def test_a_copy_and_a_pickle_are_the_network_and_stand_alone(grown_host: Get) -> None:
    grown = grown_host("images")
    network = esper.load(grown.ended)
    copied, pickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        for tensor in [
            *network.parameters(),
            *(buffer for buffer in network.buffers() if buffer.dtype.is_floating_point),
        ]:
            tensor.zero_()
    assert torch.equal(outputs(copied, grown.inputs), grown.at_end)
    assert torch.equal(outputs(pickled, grown.inputs), grown.at_end)


def test_modes_types_and_gradients_reach_the_seeds(grown_host: Get) -> None:
    grown = grown_host("images")
    network = esper.load(grown.ended)
    seeds = [module for module in network.modules() if isinstance(module, Seed)]
    assert seeds
    assert not any(module.training for seed in seeds for module in seed.modules())
    network.train()
    assert all(module.training for seed in seeds for module in seed.modules())
    network(grown.inputs).sum().backward()
    assert all(p.grad is not None for seed in seeds for p in seed.parameters())
    assert network.double().eval()(grown.inputs.double()).dtype is torch.float64
    before = state_digest(network.state_dict())
    network.load_state_dict(network.state_dict())
    assert state_digest(network.state_dict()) == before


def test_many_threads_may_call_a_network(grown_host: Get) -> None:
    grown = grown_host("images")
    network = esper.load(grown.ended)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: outputs(network, grown.inputs), range(40)))
    assert all(torch.equal(one, grown.at_end) for one in found)


def test_loading_leaves_the_random_numbers_of_the_caller_alone(grown_host: Get) -> None:
    grown = grown_host("rows")
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    esper.load(grown.ended, task=grown.task)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_seeds_of_a_slot_inside_another_have_their_names_in_any_order() -> None:
    """`a.0` is a slot, and the first seed of slot `a` has the name that its seeds are kept under."""
    for order in (["body", "body.0"], ["body.0", "body"]):
        network = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4))})
        attach(network, [(slot, 0, Seed(mlp(4), torch.ones(()), residual)) for slot in order])
        assert {"esper_seeds.body.0.alpha", "esper_seeds.body.0.0.alpha"} <= network.state_dict().keys()
        assert network["body"](torch.ones(2, 4)).shape == (2, 4)
        assert len(list(network.state_dict())) == 2 + 2 * 7


class Mixed(TinyHost):
    """Its slot gives half precision, by autocast."""

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x_BC)


@pytest.mark.parametrize("model", [TinyHost, Mixed])
def test_seeds_that_are_given_away_give_the_bits_of_the_live_ones(model: type[nn.Module]) -> None:
    survey = survey_of(tiny_task(model=model), tiny_config())
    trainer = live_trainer(survey)
    for ordinal, pair in enumerate(survey.options):
        course = {"step": 1, "blend": BlendSpec(mode="RESIDUAL", ramp_steps=7)}
        trainer.graft(drawn_plan(survey.specs[0], pair.blueprint_id, ordinal, **course), DRAWN)
    trainer.train_to(3)
    inputs = survey.task.valid[0][0][None].repeat(4, 1)
    live, state = outputs(trainer.host.eval(), inputs), trainer.weights_sha256()
    specs = {spec.path: spec for spec in survey.specs}
    text = network_file("r", 1, trainer.snapshot().topology, specs, survey.blueprints, structure_digest(model()))
    network = trainer.release()
    assert torch.equal(outputs(network, inputs), live)
    assert state_digest(network.state_dict()) == state
    assert len([module for module in network.modules() if isinstance(module, Seed)]) == len(survey.options) > 2
    scope: dict[str, Any] = {"__name__": "network"}
    exec(text, scope)
    rebuilt = scope["rebuild"](model, scope["SEEDS"], whole_state(network), scope["MODULES"])
    assert torch.equal(outputs(rebuilt, inputs), live)


def test_importing_esper_imports_none_of_what_loading_needs() -> None:
    code = (
        "import esper, sys; m = sys.modules; print('esper.export.loading' in m, 'pydantic' in m, esper.load.__name__)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["False", "False", "load"]


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fence", [3.0, 99, -1, True, "7"])
def test_a_fence_of_which_nothing_is_kept_is_refused_with_those_that_are(grown_host: Get, fence: Any) -> None:
    with pytest.raises(ConfigError, check=telling("fence 0", "1", "2", field="fence")):
        esper.load(grown_host("rows").stopped, fence=fence)


def test_a_damaged_checkpoint_is_refused_and_an_earlier_one_is_there_by_its_fence(
    grown_host: Get, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(grown_host("rows").stopped, tmp_path / "run"))
    file = checkpoints_folder(place) / "fence-7-g1.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for fence in (None, 7):
        with pytest.raises(CheckpointCorrupt, check=telling("fence-7-g1.pt")):
            esper.load(place, fence=fence)
    file.unlink()
    with pytest.raises(CheckpointCorrupt, check=telling("fence-7-g1.pt")):
        esper.load(place)
    assert isinstance(esper.load(place, fence=6), nn.Module)


def test_a_checkpoint_whose_record_speaks_of_other_weights_is_refused(
    grown_host: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "state_crc32c", lambda _: 7)
    with pytest.raises(CheckpointCorrupt, check=telling("fence-10-g2.pt", "weights")):
        esper.load(grown_host("rows").ended)


def test_a_place_without_a_run_or_a_checkpoint_is_refused(grown_host: Get, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, check=telling("no run", field="RUN")):
        esper.load(tmp_path)
    shutil.copyfile(run_file(grown_host("rows").stopped), run_file(tmp_path))
    with pytest.raises(RunDirectoryError, check=telling("no checkpoint", field="RUN")):
        esper.load(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_task_that_cannot_be_found_or_has_changed_is_refused(
    grown_host: Get, drained_twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaskError, check=telling("run.json", "Python", field="task", value="")):
        esper.load(drained_twice)
    assert isinstance(esper.load(drained_twice, task=tiny_task()), TinyHost)
    with pytest.raises(TaskError, check=telling("esper.Task", field="task", value="function")):
        esper.load(drained_twice, task=tiny_task)
    monkeypatch.setattr("esper.archive.resuming.file_digest", lambda _: "another")
    with pytest.raises(TaskError, check=telling(field="task", value=re.compile(r"/three_hosts\.py:rows$"))):
        esper.load(grown_host("rows").ended)


def test_a_damaged_journal_is_refused_unless_a_fence_is_named(grown_host: Get, tmp_path: Path) -> None:
    """What cannot be read may be the record of a later checkpoint."""
    place = Path(shutil.copytree(grown_host("rows").stopped, tmp_path / "run"))
    entries, _ = read(journal_file(place, 1))
    last = next(entry for entry in reversed(entries) if entry.kind is RecordKind.CHECKPOINT_COMMITTED)
    data = bytearray(journal_file(place, 1).read_bytes())
    data[last.end - 3] ^= 1
    journal_file(place, 1).write_bytes(data)
    with pytest.raises(StoreCorrupt, check=telling("journal-1.log", "byte")):
        esper.load(place)
    assert isinstance(esper.load(place, fence=6), nn.Module)


class Wider(TinyHost):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)


class Nameless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(8, 8), nn.Linear(8, 4)


class More(TinyHost):
    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Linear(4, 4)


class Rectified(TinyHost):
    """The same tensors, another network."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()


def broken() -> nn.Module:
    raise LookupError("no such backbone")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Wider, r"its head\.weight is \[5, 8\] of torch\.float32, and was \[4, 8\] of torch\.float32"),
        (lambda: TinyHost().double(), r"its body\.\w+ is \[.*\] of torch\.float64, and was"),
        (Nameless, r"it has no module 'body'"),
        (More, r"it has tail\.bias, which the network that grew did not have"),
        (Rectified, r"a module has another class, or a setting such as a stride differs"),
        (broken, r"it raised LookupError: no such backbone \(.*test_loading\.py, line \d+\)"),
        (lambda: 3, r"it must return a torch\.nn\.Module"),
    ],
)
def test_another_network_is_refused_by_what_differs(drained_twice: Path, model: Any, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        esper.load(drained_twice, task=replace(tiny_task(), model=model))


def test_a_run_is_not_gone_on_with_by_another_network_of_the_same_tensors(drained_twice: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(drained_twice, tmp_path / "run"))
    with pytest.raises(TaskError, check=telling(field="task.model", value="given from Python")):
        resume(place, replace(tiny_task(), model=Rectified))


class Taken(TinyHost):
    def __init__(self) -> None:
        super().__init__()
        self.esper_seeds = nn.Linear(1, 1)


def test_a_host_that_has_the_names_of_seeds_is_refused_before_it_is_run() -> None:
    with pytest.raises(TaskError, check=telling("'esper_seeds'", field="task.model", value="Taken")):
        survey_of(tiny_task(model=Taken), tiny_config())
    with pytest.raises(ValueError, match=r"slot 'a\.0\.module' has the path of a part of a seed in slot 'a'"):
        check_names(
            nn.ModuleDict({"a": nn.Sequential(nn.ModuleDict({"module": nn.Linear(1, 1)}))}), ["a", "a.0.module"]
        )
