"""What the user's code raises is told as hers, whatever it is: it ends no process, and no word of it is believed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esper import errors
from esper.cli.main import exit_code
from esper.config.joined import load_config
from esper.errors import ActorLost, ConfigError, Drained, EmergencyStop, EsperError, TaskError, TheirCodeRaised
from esper.testing import telling
from esper.user_code.their_code import any_of_their_code, marked, refused_as_theirs, their_code


class Mine(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int = 3


class WithNotes(Exception):
    __notes__ = 5


TAKEN_OTHERWISE = (
    SystemExit(0),
    SystemExit("bye"),
    GeneratorExit(),
    Mine("of her own"),
    BaseExceptionGroup("many", [Mine("one"), ValueError("two")]),
    StopIteration(3),
    StopAsyncIteration(),
    Drained(3),
    EmergencyStop("because", "s", 1),
    ConfigError("run.seed", 3, "be nice"),
    TaskError("task.model", 3, "be nice"),
    ActorLost("tolaria", "it is gone"),
    Frozen(),
    WithNotes(),
)


def throw(error: BaseException) -> None:
    raise error


@contextmanager
def through_a_generator() -> Iterator[None]:
    yield


def called_within(error: BaseException) -> None:
    with through_a_generator(), their_code("task.loss", "the loss"):
        throw(error)


def called_by_run(error: BaseException) -> None:
    their_code("task.loss", "the loss").run(throw, error)


@pytest.mark.parametrize("call", [called_within, called_by_run])
@pytest.mark.parametrize("error", TAKEN_OTHERWISE, ids=lambda error: type(error).__name__)
def test_what_would_be_taken_otherwise_is_a_typed_error_with_the_original_as_its_cause(
    error: BaseException, call: Callable[[BaseException], None]
) -> None:
    with pytest.raises(TheirCodeRaised) as caught:
        call(error)
    assert caught.value.__cause__ is error
    assert (caught.value.field, caught.value.call) == ("task.loss", "the loss")
    assert f"it raised {type(error).__name__}" in str(caught.value)
    assert "test_their_code.py, line" in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("plain"), Mute(), ExceptionGroup("many", [Drained(3)])])
def test_any_other_exception_passes_as_it_is_with_a_note(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, their_code("task.loss", "the loss"):
        throw(error)
    assert caught.value is error
    note = marked(error)
    assert note is not None
    assert note.call == "the loss"


def test_a_real_ctrl_c_stays_what_it_is() -> None:
    with pytest.raises(KeyboardInterrupt), any_of_their_code, their_code("task.loss", "the loss"):
        raise KeyboardInterrupt


def test_an_error_that_esper_itself_raised_below_the_users_code_is_believed() -> None:
    with pytest.raises(ConfigError) as caught, their_code("task.loss", "the loss"):
        load_config(Path("/nowhere.toml"))
    assert marked(caught.value) is None


def test_what_no_call_surrounds_is_found_by_the_traceback_and_the_innermost_call_counts() -> None:
    with pytest.raises(TheirCodeRaised, check=telling("test_what_no_call_", field="task")), any_of_their_code:
        throw(SystemExit(0))
    inner = their_code("task.loss", "the loss")
    with pytest.raises(TheirCodeRaised, check=telling(field="task.loss", call="the loss")), any_of_their_code, inner:
        throw(SystemExit(0))


@pytest.mark.parametrize("error", [Mute(), *TAKEN_OTHERWISE], ids=lambda error: type(error).__name__)
def test_before_a_run_all_of_it_is_an_error_of_the_task_in_one_line(error: BaseException) -> None:
    with pytest.raises(TaskError) as caught, refused_as_theirs("on a copy"), their_code("task.loss", "the loss"):
        throw(error)
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("task.loss = 'the loss, on a copy': it raised ")
    assert "\n" not in str(caught.value)


# -- from the command line ------------------------------------------------------------------------------------------

TASK = """
import sys, torch
from esper.errors import Drained
from esper.testing import Bands, TinyHost, tiny_task

class Unmeasurable(Bands):
    def __len__(self):
        sys.exit(0)

class Leaving(TinyHost):
    def forward(self, x):
        sys.exit(0)

class Drains(TinyHost):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
    def forward(self, x):
        self.steps += self.training
        if self.steps > 100:
            raise Drained(1)
        return super().forward(x)

def unmeasurable(): return tiny_task(train=Unmeasurable(64, key=1))
def leaving(): return tiny_task(model=Leaving)
def late(): return tiny_task(model=Drains)
"""


@pytest.mark.parametrize(
    ("name", "said"), [("unmeasurable", "task = 'Unmeasurable.__len__'"), ("leaving", "task.model = 'a forward")]
)
def test_sys_exit_in_a_dry_run_is_wrong_input(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.py").write_text(TASK)
    code = exit_code(["plan", f"{tmp_path}/t.py:{name}"])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert "it raised SystemExit: 0 (" in err


def test_an_error_of_ours_that_the_users_code_raises_while_it_trains_is_a_failure_of_hers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.py").write_text(TASK)
    code = exit_code(
        ["run", f"{tmp_path}/t.py:late", "--no-growth", "--in-process", "--run-dir", f"{tmp_path}/run", "--json"]
    )
    streams = capsys.readouterr()
    told: dict[str, Any] = json.loads(streams.out.splitlines()[-1])
    assert (code, told["error"], told["cause"]) == (3, "TheirCodeRaised", "Drained: drained at fence 1")
    assert told["message"].startswith("task.model, a forward in training mode: it raised Drained: drained at fence 1 (")
    assert "Traceback" not in streams.err


# -- texts ----------------------------------------------------------------------------------------------------------


class Wordless:
    def __repr__(self) -> str:
        raise GeneratorExit


@pytest.mark.parametrize(
    "make",
    [
        lambda: errors.SeedBuildFailed("b", "s", "forward"),
        lambda: errors.PolicyFailed("p", 3),
        lambda: errors.StoreWriteFailed("file", "write"),
        lambda: errors.ConfigError("task.loss", Wordless(), "mend"),
    ],
)
def test_an_error_of_ours_has_a_text_whatever_it_holds(make: Callable[[], EsperError]) -> None:
    class Unspeakable(Exception):
        __repr__ = Wordless.__repr__

    error = make()
    error.__cause__ = Unspeakable()
    assert "its text raised GeneratorExit" in str(error)


@pytest.mark.parametrize("call", [called_within, called_by_run])
def test_any_other_exception_stays_and_has_the_call_as_a_note(call: Callable[[BaseException], None]) -> None:
    error, interrupt = ValueError("hers"), KeyboardInterrupt()
    with pytest.raises(ValueError, match="hers"):
        call(error)
    with pytest.raises(KeyboardInterrupt):
        call(interrupt)

    note = marked(error)
    assert note is not None
    assert (note.field, note.call) == ("task.loss", "the loss")
    assert marked(interrupt) is None


def test_a_call_returns_what_the_function_returned() -> None:
    assert their_code("task.loss", "the loss").run(divmod, 7, 2) == (3, 1)
