"""The command line: every wrong input is one clear line and leaves nothing, every result is one object of JSON."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import typer

from esper import InProcess
from esper.archive.journal import FIRST_GENERATION, read
from esper.archive.run_directory import journal_file
from esper.cli import run_command
from esper.cli.main import exit_code
from esper.config.joined import RunConfig, load_config
from esper.errors import Drained, EmergencyStop, StoreWriteFailed
from esper.flow.next_steps import next_step
from esper.flow.stopping import Drain
from esper.kasmina.settings import GrowthConfig
from esper.testing import tiny_config, tiny_task
from esper.user_code.task_reference import Reference

FILE = """
import torch
from torch import nn
from esper.testing import Bands, TinyHost, tiny_task

def task(): return tiny_task()
def badslot(): return tiny_task(slots=["bod"])
def slotless(): return tiny_task(slots=[])
def frozen(): return tiny_task(model=lambda: TinyHost().requires_grad_(False))
def optimizer_name(): return tiny_task(optimizer="adam")
def few(): return tiny_task(gate=Bands(20, key=1))
def empty(): return tiny_task(train=Bands(0, key=1))
def optimizer(): return tiny_task(optimizer=lambda parameters: 3)
def no_sample_loss(): return tiny_task(loss=lambda output, target: nn.functional.cross_entropy(output, target))
def odd_sample_loss(): return tiny_task(sample_loss=nn.functional.cross_entropy)

one = TinyHost()
def same_model(): return tiny_task(model=lambda: one)
draws = torch.Generator()
class Odd(TinyHost):
    def __init__(self):
        super().__init__()
        nn.init.normal_(self.head.weight, generator=draws)
def other_weights(): return tiny_task(model=Odd)

class Skips(TinyHost):
    def forward(self, x): return self.head(self.body.forward(x))
def never(): return tiny_task(model=Skips)
class Twice(TinyHost):
    def forward(self, x): return self.head(self.body(self.body(x)))
def twice(): return tiny_task(model=Twice)
class Pair(nn.Module):
    def forward(self, x): return {"both": (x, x)}
class InADict(TinyHost):
    def __init__(self):
        super().__init__()
        self.pair = Pair()
    def forward(self, x): return super().forward(self.pair(x)["both"][0])
def no_tensor(): return tiny_task(model=InADict, slots=["pair"])

class Fragile(TinyHost):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
    def forward(self, x):
        self.steps += self.training
        if self.steps > 50:
            raise RuntimeError("the model gave up")
        return super().forward(x)
def fragile(): return tiny_task(model=Fragile)
class Broken(TinyHost):
    def forward(self, x): return self.body(x[:, :3])
def broken(): return tiny_task(model=Broken)

class Interrupting(Bands):
    def __getitem__(self, index):
        import os, pathlib, signal
        if pathlib.Path("here/checkpoints/fence-2-g1.pt").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(index)
def interrupting(): return tiny_task(train=Interrupting(1024, key=1))

class Halting(Bands):
    def __getitem__(self, index):
        import pathlib
        from esper.flow.operator import send
        from esper.leyline.signals import Level
        sent = pathlib.Path("sent")
        if pathlib.Path("here/checkpoints/fence-2-g1.pt").exists() and not sent.exists():
            sent.touch()
            send(pathlib.Path("here"), Level.HALT, "the room is on fire", {}, wait_s=600)
        return super().__getitem__(index)
def halting(): return tiny_task(train=Halting(1024, key=1))
"""

Esper = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "t.py").write_text(FILE)
    (tmp_path / "f.toml").write_text('[[faults]]\npoint = "tolaria.step"\nfault = "raise"\nrole = "tolaria"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def esper(folder: Path, capsys: pytest.CaptureFixture[str]) -> Esper:
    def call(*words: str) -> tuple[int, str, str]:
        here = ["--in-process"] if words[:1] == ("run",) else []  # tests/actors has the other way
        code = exit_code([*words, *here])
        said = capsys.readouterr()
        return code, said.out, said.err

    assert folder.is_dir()
    return call


def growing() -> list[str]:
    """What `tiny_config` changes, as words of a command line."""
    changes = tiny_config().growth
    default, words = GrowthConfig(preset=changes.preset), ["--set", f"growth.preset={changes.preset}"]
    for name in GrowthConfig.model_fields:
        value = getattr(changes, name)
        if value != getattr(default, name):
            words += ["--set", f"growth.{name}={json.dumps(value)}"]
    return words


# -- wrong input: exit 2, one line, nothing left ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere:task"], "there is no module 'nowhere'"),
        (["nowhere.py:task"], "there is no such file"),
        (["t.py"], "use module:attribute"),
        (["t.py:tas"], "the nearest is 'task'"),
        (["t.py:FILE"], "the nearest is"),
        (["t.py:draws"], "it is of type Generator; name a Task"),
        (["t.py:badslot"], "the nearest is 'body'"),
        (["t.py:never"], "never called by a forward in training mode"),
        (["t.py:twice"], "called 2 times by a forward"),
        (["t.py:no_tensor"], "output of type dict"),
        (["t.py:slotless"], "name at least one module"),
        (["t.py:frozen"], "leave requires_grad on"),
        (["t.py:optimizer_name"], "give a function"),
        (["t.py:few"], "give gate= at least 128 samples"),
        (["t.py:empty"], "empty data set"),
        (["t.py:optimizer"], "it must return a torch.optim.Optimizer"),
        (["t.py:no_sample_loss"], "give task.sample_loss, (output, target) -> [B]"),
        (["t.py:odd_sample_loss"], "one loss per sample"),
        (["t.py:same_model"], "two calls returned the same parameter"),
        (["t.py:other_weights"], "head.weight"),
        (["t.py:task", "--epochs", "3"], "--set run.epochs=VALUE"),
        (["t.py:task", "--set", "run.sed=1"], "the nearest is run.seed"),
        (["t.py:task", "--set", "run.device=cudda"], "run.device = 'cudda': torch cannot use it"),
        (["t.py:task", "--set", "run.batch_size=9999"], "an epoch has only 1024 samples"),
        (["t.py:task", "--set", "run.round_steps=9999"], "the whole run has only 320 steps"),
        (["t.py:task", "--set", "growth.judge_samples=5"], "growth.min_samples = 128"),
        (["t.py:task", "--set", "run.device=meta"], "run.device = 'meta': torch cannot use it"),
        (["t.py:task", "--set", "run.epochs=99999999999", "--set", "run.round_steps=1"], "the limit is 1000000"),
        (["t.py:task", "--seed", "2", "--set", "run.seed=1"], "run.seed = 2: given twice, before as 1; give it once"),
        (["t.py:task", "--seed", "x"], "valid integer"),
        (["t.py:task", "--seed", "-1"], "must be 0 or more"),
        (["t.py:task", "--config", "no.toml"], "cannot be read: No such file"),
        (["t.py:task", "--config", "t.py"], "no TOML"),
        (["t.py:task", "--sed", "1"], "No such option: --sed"),
        (["t.py:task", "t.py:task"], "unexpected extra argument"),
        (["t.py:task", "--faults", "f.toml"], "one process and no actors; leave it out"),
        (["t.py:task", "--run-dir", "t.py"], "not a directory; choose another"),
        (["t.py:task", "--run-dir", "."], "not empty; choose an absent or empty directory"),
        (["t.py:task", "--run-dir", "/proc/esper-run"], "cannot be used"),
    ],
)
def test_wrong_input_to_a_run_is_one_clear_line_and_leaves_nothing(
    words: list[str], said: str, esper: Esper, folder: Path
) -> None:
    code, out, err = esper("run", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("esper: ")
    assert err.count("\n") == 1
    assert {entry.name for entry in folder.iterdir()} <= {"t.py", "f.toml", "__pycache__"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "t.py:badslot"], "the nearest is 'body'"),
        (["inspect", "."], "no run is here"),
        (["inspect", "nowhere"], "no run is here"),
        (["log", "dump", "nowhere"], "there is no such file or folder"),
        (["log", "dump", "t.py"], "not a framed log"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_wrong_input_to_the_other_commands_is_one_clear_line_too(words: list[str], said: str, esper: Esper) -> None:
    code, out, err = esper(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_no_command_shows_the_help_and_nothing_after_it(esper: Esper) -> None:
    code, out, err = esper()
    assert code == 2
    assert "Usage: esper" in out + err
    assert "esper: " not in err


def test_a_model_that_cannot_run_at_all_shows_where_and_writes_nothing(esper: Esper, folder: Path) -> None:
    for command in ("plan", "run"):
        code, _, err = esper(command, "t.py:broken")
        assert code == 2
        assert "a forward in training mode" in err
        assert "mat1 and mat2 shapes cannot be multiplied" in err
        assert "t.py, line" in err
        assert err.count("\n") == 1
    assert not (folder / "runs").exists()


# -- results -----------------------------------------------------------------------------------------------------

RUN_FIELDS = {
    *("run_dir", "task", "seed", "threads", "workers", "rounds", "steps", "test_loss", "valid_loss"),
    *("start_test_loss", "twin_test_loss", "params_start", "params_end", "seeds", "trainer_gflops"),
    *("incubator_gflops", "steps_per_s", "fence_wait_s", "restarts", "rollbacks", "fallbacks"),
    *("weights_sha256", "trace_id"),
}


def test_a_run_prints_one_object_last_and_people_read_the_rest_on_standard_error(esper: Esper) -> None:
    code, out, err = esper("run", "t.py:task", "--seed", "4", "--run-dir", "here", "--json", *growing())
    assert code == 0
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found.keys() >= RUN_FIELDS
    assert (found["run_dir"], found["task"], found["seed"], found["workers"]) == ("here", "t.py:task", 4, 1)
    assert found["seeds"]
    for seed in found["seeds"]:
        assert seed.keys() >= {"seed_id", "slot", "blueprint", "stage", "gain", "z"}
    assert "round  1/16" in err
    assert "test loss" in err


def test_without_json_people_read_on_standard_output(esper: Esper, folder: Path) -> None:
    code, out, err = esper("run", "t.py:task", "--no-growth")
    assert (code, err) == (0, "")
    assert "no growth" in out
    assert "test loss" in out
    assert [entry.name for entry in (folder / "runs").iterdir()] == [
        line.split("/")[-1] for line in out.splitlines() if line.startswith("run runs/")
    ]


def test_flags_are_short_for_config_keys_and_beat_the_file(esper: Esper, folder: Path) -> None:
    (folder / "c.toml").write_text("[run]\nseed = 1\nepochs = 1\n[growth]\nenabled = true\n")
    code, out, _ = esper("run", "t.py:task", "--config", "c.toml", "--seed", "2", "--no-growth", "--json")
    assert code == 0
    assert (json.loads(out)["seed"], json.loads(out)["steps"], json.loads(out)["seeds"]) == (2, 32, [])


def test_plan_says_what_a_run_would_try_and_cost_and_writes_nothing(esper: Esper, folder: Path) -> None:
    code, out, _ = esper("plan", "t.py:task", "--json", *growing())
    found = json.loads(out)
    assert code == 0
    assert found["slots"][0]["path"] == "body"
    assert {"kind", "causal", "samples_independent", "shape"} <= found["slots"][0].keys()
    assert {c["blueprint"] for c in found["candidates"]} == {"norm", "low_rank", "mlp", "gated_mlp", "wide_mlp"}
    assert min(found["host_gflops"], found["twin_gflops"], found["tournament_gflops"], found["tournament_bytes"]) > 0
    code, out, _ = esper("plan", "t.py:task")
    assert code == 0
    for word in ("slot body", "low_rank", "z > ", "GFLOP", "MiB", "germinates at fences"):
        assert word in out
    assert {entry.name for entry in folder.iterdir()} <= {"t.py", "f.toml", "__pycache__"}


def test_the_printed_config_is_read_back_as_the_defaults(esper: Esper, folder: Path) -> None:
    code, out, _ = esper("config")
    (folder / "all.toml").write_text(out)
    assert (code, load_config(folder / "all.toml")) == (0, RunConfig())
    code, out, _ = esper("config", "--json")
    assert (code, json.loads(out)) == (0, RunConfig().model_dump(mode="json"))


def test_inspect_tells_the_same_seeds_as_the_result(esper: Esper) -> None:
    _, out, _ = esper("run", "t.py:task", "--run-dir", "here", "--json", *growing())
    result = json.loads(out)
    code, out, _ = esper("inspect", "here", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["state"], found["fence"], found["steps"], found["total_steps"]) == ("finished", 16, 320, 320)
    assert found["level"] is None
    same = ("seed_id", "slot", "blueprint", "stage", "gain", "z")
    blends = [seed.pop("blend") for seed in found["seeds"]]
    assert [{key: seed[key] for key in same} for seed in found["seeds"]] == [
        {key: seed[key] for key in same} for seed in result["seeds"]
    ]
    ended = {"mode": "RESIDUAL", "mean": 1.0, "p95": 1.0, "clamped": None}
    assert [ended if seed["stage"] == "FOSSILIZED" else None for seed in found["seeds"]] == blends
    code, out, _ = esper("inspect", "here")
    assert code == 0
    assert "here: finished, fence 16, step 320/320" in out
    assert out.count("FOSSILIZED") == 2


# -- failures ----------------------------------------------------------------------------------------------------


def test_a_model_that_fails_while_it_trains_is_a_strict_failure_that_says_what_is_kept(esper: Esper) -> None:
    code, out, err = esper("run", "t.py:fragile", "--no-growth", "--run-dir", "here", "--json")
    found = json.loads(out)
    assert (code, out.count("\n")) == (3, 1)
    assert found.keys() == {
        "error",
        "message",
        "cause",
        "trace_id",
        "run_dir",
        "kept",
        "next",
        "notes",
        "last_fence",
        "place",
    }
    assert (found["error"], found["message"]) == ("RuntimeError", "the model gave up")
    raised = r"raised by task.model: a forward in training mode, in step \d+ \((\S+/t.py, line \d+)\)"
    (note,) = found["notes"]
    assert (where := re.fullmatch(raised, note)) is not None
    assert found["place"] == where[1]
    assert (found["run_dir"], found["next"]) == ("here", next_step(RuntimeError(), Path("here"), found["trace_id"]))
    assert found["next"].endswith(f"; to see what happened: esper trace show here {found['trace_id']}")
    shown = esper("trace", "show", "here", found["trace_id"])
    assert "RuntimeError: the model gave up" in shown[1]
    last = read(journal_file(Path("here"), FIRST_GENERATION))[0][-1]
    assert found["trace_id"] == last.body["trace_id"] != ""
    code, told, _ = esper("events", "here", "--level", "CRITICAL")
    assert code == 0
    assert told.splitlines()[-1] == (
        f"the run ended with RuntimeError: the model gave up (after fence {last.body['fence']}): "
        f"esper trace show here {found['trace_id']}"
    )
    assert json.loads(esper("events", "here", "--json")[1])["ended_by"]["trace_id"] == found["trace_id"]
    assert found["last_fence"] == last.body["fence"] > 0
    fences = f"0, {last.body['fence'] - 1}, {last.body['fence']}"
    assert found["kept"] == f"journal, telemetry and checkpoints of fence {fences}"
    assert "raise RuntimeError" in err  # the user's own code: where it failed is what helps
    assert esper("inspect", "here")[1].startswith("here: failed, fence")


def test_an_interrupt_is_one_line_that_says_where_the_journal_is(esper: Esper) -> None:
    code, out, err = esper("run", "t.py:interrupting", "--run-dir", "here", "--no-growth", "--json")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "esper: interrupted; to resume it: esper resume here"
    assert "Traceback" not in err
    assert esper("inspect", "here")[1].startswith("here: interrupted, fence")


def test_a_halt_ends_the_command_with_4_and_a_resume_says_that_it_is_cleared(esper: Esper) -> None:
    code, out, err = esper("run", "t.py:halting", "--run-dir", "here", "--no-growth", "--json")
    told = json.loads(out)
    assert (code, told["error"]) == (4, "EmergencyStop")
    assert "esper resume here" in told["next"]
    assert "the room is on fire" in told["message"]
    assert (told["cause"], "Traceback" in err) == ("", False)
    state = esper("inspect", "here")[1]
    assert state.startswith("here: halted, fence")
    assert "emergency level HALT" in state
    code, out, err = esper("resume", "here", "--in-process")
    assert code == 0, err
    assert "HALT cleared: signal" in out
    assert "(the room is on fire)" in out


def test_ctrl_c_ends_a_real_process_with_130(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "t.py:task", "--in-process", "--run-dir", "here", "--no-growth", "--set", "run.epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from esper.cli.main import main; main()", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seen = ""
    while "round  1/" not in seen:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        seen += line
    assert exit_code(["inspect", str(folder / "here"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "running"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "esper: interrupted; to resume it: esper resume here\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EmergencyStop("the room is on fire", "signal-1", 29), 4),
        (Drained(3), 143),
        (StoreWriteFailed("journal", "no space"), 3),
        (ZeroDivisionError("the user's own"), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_stops_a_run_has_its_own_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(run_command, "run", run)
    with pytest.raises(typer.Exit) as left:
        run_command.execute(InProcess(), tiny_task(), tiny_config(), Reference(), as_json=False)
    assert left.value.exit_code == code


def test_a_start_that_a_signal_ends_names_the_signal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, drain: Drain, **__: object) -> NoReturn:
        with drain.starting(0):
            signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal ends the start")

    monkeypatch.setattr(run_command, "run", run)
    with pytest.raises(typer.Exit) as left:
        run_command.execute(InProcess(), tiny_task(), tiny_config(), Reference(), as_json=False)
    assert left.value.exit_code == 143
    assert "cause: Signalled: SIGTERM\n" in capsys.readouterr().err
