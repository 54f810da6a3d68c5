"""Compiled hosts: they call every seed, count each call as what it was, and are compiled as seldom as can be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.utils.checkpoint
from growing import DRAWN
from torch import Tensor, nn
from training import make_plan, make_survey

from esper import resume, run
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.cli import task_commands
from esper.cli.main import exit_code
from esper.errors import ConfigError, Drained, TaskError
from esper.flow import entry
from esper.flow.progress import Quiet
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry, blueprint
from esper.leyline.slots import Kind
from esper.setup.survey import Survey
from esper.testing import StopAt, TinyHost, tiny_config, tiny_task
from esper.tolaria import compiling
from esper.tolaria.trainer import Trainer, never

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles


@pytest.fixture
def survey() -> Survey:
    return make_survey()


@pytest.fixture
def trainer(survey: Survey) -> Callable[..., Trainer]:
    """A trainer whose host is compiled with a backend, and never by a survey: that takes seconds."""

    def make(backend: str | None = "eager", model: Callable[[], nn.Module] = TinyHost, **changes: Any) -> Trainer:
        config = survey.config.run.model_copy(
            update={"compile": backend is not None, "compile_backend": backend or "eager"}
        )
        changed = replace(
            survey,
            task=replace(survey.task, model=model),
            config=survey.config.model_copy(update={"run": config}),
            **changes,
        )
        return changed.trainer("6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10", 1, "tolaria", never)

    return make


def graphs() -> int:
    """Graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param("aot_eager", marks=pytest.mark.slow),
        pytest.param("inductor", marks=pytest.mark.torture),
    ],
)
def test_a_compiled_host_calls_its_seeds_from_the_step_after_the_graft_to_that_of_the_removal(trainer, survey, backend):
    hosts = {None: trainer(None), backend: trainer(backend)}
    for step, change in ((2, "graft"), (5, "remove"), (7, "")):
        for live in hosts.values():
            live.train_to(step - 1)
            compiled = graphs()
            live.train_to(step)
            assert step == 2 or graphs() == compiled  # only the first step after a change compiles
            if change == "graft":
                live.graft(make_plan(survey, step=2), DRAWN)
            elif change == "remove":
                (seen,) = live.observe(1, {}).seeds
                assert (seen.calls, seen.fallbacks) == (3, ())
                live.remove("seed-1")
        before, after = (torch.cat([p.detach().flatten() for p in live.host.parameters()]) for live in hosts.values())
        torch.testing.assert_close(after, before)
    assert [type(live.release()) for live in hosts.values()] == [TinyHost, TinyHost]
    assert not hasattr(hosts[backend].host, "_orig_mod")
    assert hosts[backend].host._compiled_call_impl is None


def test_a_seed_that_the_compiled_forward_never_calls_ends_the_run(trainer, survey, monkeypatch):
    live = trainer()
    live.train_to(1)
    monkeypatch.setattr(Trainer, "_recompile", lambda _self: None)
    live.graft(make_plan(survey, step=1), DRAWN)
    with pytest.raises(TaskError, match="slot body = 'not called by the forward of 100 training batches"):
        live.train_to(2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_isolation_of_a_seed_in_a_compiled_host_is_audited_in_a_forward_that_is_not(trainer, backend):
    hosts: list[nn.Module] = []

    class Leaks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * hosts[-1].head.weight.mean()

    leaky = BlueprintRegistry()
    blueprint("leaks", kinds=(Kind.NC,), risk=0.1, registry=leaky)(lambda _spec: Leaks(8, 8))
    blueprint("mlp", kinds=(Kind.NC,), risk=0.1, registry=leaky)(BLUEPRINTS.get("mlp").factory)
    for name, reached in (("mlp", ()), ("leaks", ("head.weight",))):
        live = trainer(backend, blueprints=leaky)
        hosts.append(live.host)
        plan = make_plan(replace(make_survey(), blueprints=leaky), name, step=0, isolated=True)
        live.graft(plan, DRAWN)
        assert live.probe_gradients("seed-1", 1).reachable_host_parameters == reached
        live.train_to(2)
        (seen,) = live.observe(1, {}).seeds
        assert (seen.isolation_leaks, seen.calls, seen.fallbacks) == (reached, 3, ())


class Eager(TinyHost):
    """Its slot is called in a function that torch does not compile."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._apart(x))

    @torch.compiler.disable
    def _apart(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_part_of_a_compiled_host_that_runs_eager_is_a_fallback(trainer, survey):
    live = trainer(model=Eager)
    live.graft(make_plan(survey, step=0), DRAWN)
    live.train_to(1)
    assert live.observe(1, {}).seeds[0].fallbacks == ("path eager, asked compiled",)


@pytest.mark.slow
def test_a_slot_that_a_compiled_forward_calls_eager_is_refused_or_left_out():
    compiled = {"run__compile": True, "run__compile_backend": "aot_eager"}
    mend = "torch cannot compile the forward around this slot; name another module, or leave run.compile out"
    with pytest.raises(TaskError, match=re.escape(f"slot body = 'called eager, not compiled': {mend}")):
        make_survey(model=Eager, **compiled)
    found = make_survey(model=Eager, slots=["*"], **compiled)
    assert [spec.path for spec in found.specs] == ["head"]
    assert found.left_out["body"] == "called eager, not compiled"


def test_shapes_without_end_are_refused_and_do_not_make_the_host_run_eager(trainer, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 2)
    live = trainer()
    live._forward(torch.ones(3, 8))
    live._forward(torch.ones(4, 8))
    with pytest.raises(ConfigError, match=r"run\.compile = True: .* more than 2 times, .*: pad the inputs to a few"):
        live._forward(torch.ones(5, 8))


def test_what_torch_cannot_compile_with_is_told_before_anything_else(monkeypatch):
    def without_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C++ compiler.\nPlease install one")

    monkeypatch.setattr(torch, "compile", without_compiler)
    with pytest.raises(
        ConfigError, match=r"run\.compile_backend = 'inductor': .* here: RuntimeError: Failed to find C"
    ):
        make_survey(run__compile=True)


class Recomputing(TinyHost):
    """Its slot is called again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))


@pytest.mark.parametrize("backend", [None, pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_the_recomputation_of_a_checkpoint_counts_as_no_call(trainer, survey, backend):
    live = trainer(backend, model=Recomputing)
    live.graft(make_plan(survey, step=0, isolated=True), DRAWN)
    live.train_to(3)
    (seen,) = live.observe(1, {}).seeds
    assert (seen.calls, seen.fallbacks, seen.isolation_leaks) == (3, (), ())


SMALL = {"run__compile_backend": "aot_eager", "run__epochs": 6, "growth__candidates": 1, "growth__max_tests": 1}


@pytest.mark.parametrize(
    ("changes", "fence"),
    [
        pytest.param(SMALL, 3, marks=pytest.mark.slow, id="aot_eager"),
        pytest.param({"growth__candidates": 2}, 7, marks=pytest.mark.torture, id="inductor"),
    ],
)
def test_a_compiled_run_grows_and_ends_with_the_same_bits_after_a_stop(tmp_path, changes, fence) -> None:
    def config(name: str) -> Any:
        return tiny_config(run__dir=str(tmp_path / name), run__compile=True, **changes)

    whole = run(tiny_task(), config("whole"))
    assert "FOSSILIZED" in [seed.stage for seed in whole.seeds]
    with pytest.raises(Drained):
        run(tiny_task(), config("run"), drain=(watch := StopAt(fence)).drain, progress=watch)
    kinds = [entry.kind for entry in read_past(tmp_path / "run").entries]
    assert RecordKind.PLAN_APPLIED in kinds, "a seed was in the compiled host before the stop"
    assert resume(tmp_path / "run", tiny_task()).weights_sha256 == whole.weights_sha256


def test_a_line_is_shown_before_the_first_compilation(monkeypatch, capsys, tmp_path):
    class Told(Quiet):
        lines: ClassVar[list[str]] = []

        def found(self, what):
            self.lines.append(what)

    def refusing(*_):
        raise ConfigError("run", 1, "stopped here")

    for place in (entry, task_commands):
        monkeypatch.setattr(place, "survey_of", refusing)
    with pytest.raises(ConfigError, match="stopped here"):
        run(tiny_task(), tiny_config(run__compile=True, run__dir=str(tmp_path / "run")), progress=Told())
    assert [line.startswith("compiling the network with inductor") for line in Told.lines] == [True]
    assert exit_code(["plan", "--set", "run.compile=true"]) != 0
    assert "compiling the network with inductor" in capsys.readouterr().err
