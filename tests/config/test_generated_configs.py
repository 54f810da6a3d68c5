"""Whatever config is given: one line and exit code 2 with nothing written, or a run that can be resumed.

Configs are drawn, sound and absurd, and each is taken through the command line: run, stop, resume.
"""

from __future__ import annotations

import json
import re
import shutil
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from esper.cli.main import exit_code
from esper.config.joined import RunConfig, flattened
from esper.testing import tiny_config

Esper = Callable[[list[str]], tuple[int, str]]
"""Runs one command line; returns its exit code and what it wrote on standard error."""
ABSURD: tuple[Any, ...] = (
    *(0, -1, 1, 2, 2**31, 2**53, 2**53 - 1, 2**63, 2**64, 10**400, -(10**30)),
    *(0.0, -0.0, 1.5, 5e-324, 1e-300, 1e300, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "inf",
        "nan",
        "true",
        "a\nb",
        "a\0b",
        "\udcff",
        "größe",
        "[/red]",
        "x" * 20_000,
        "../..",
        "/proc/x",
    ),
    *("meta", "cpu:3", "cuda", "xla", "raise", "restart", "none"),
    *(True, False, [], [1], {}, {"a": 1}, [[[[]]]], None),
)
"""A value of each kind that some reader, writer or machine cannot take."""
TEXTS = (
    "run.seed=1\ngrowth.enabled=false",
    *(f"run.seed={'9' * 5000}", f"run.seed=0x{'f' * 5000}", f"run.seed={'[' * 5000}", "run.seed=1979-05-27"),
    *(
        "=",
        "",
        "run.seed",
        "run..seed=1",
        ".=1",
        "run.=1",
        "RUN.seed=1",
        "faults.x=1",
        "run=1",
        'run."seed"=1',
        "run.seed.x=1",
    ),
    *("x" * 20_000 + "=1", f"{'x' * 20_000}.seed=1", "run.dir='a\\u0000b'", 'run.dir="\\ud800"', "growth.margin=1e999"),
)
"""Overrides as they might be typed."""
PLAIN = RunConfig(growth={"preset": "none"})
BASE = {
    "growth.preset": "none",
    **{key: value for key, value in flattened(tiny_config()).items() if value != flattened(PLAIN)[key]},
    "run.epochs": 1,
    "run.round_steps": 8,
}
STOP = '[[faults]]\npoint = "conductor.fence"\nfault = "raise"\nround = {fence}\n'


def fields() -> dict[str, FieldInfo]:
    tables = ((name, type(value)) for name, value in RunConfig() if isinstance(value, BaseModel))
    return {f"{table}.{name}": info for table, model in tables for name, info in model.model_fields.items()}


def sound(info: FieldInfo) -> st.SearchStrategy[Any]:
    """Values within a field's declared bounds, its extremes among them."""
    annotation: Any = info.annotation
    limits = list(info.metadata)
    if get_origin(annotation) in (types.UnionType,):
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    while hasattr(annotation, "__metadata__"):
        inner = [one for one in annotation.__metadata__ if isinstance(one, FieldInfo)]
        limits += [*annotation.__metadata__, *(limit for one in inner for limit in one.metadata)]
        annotation = annotation.__origin__
    low = max((one.ge if isinstance(one, Ge) else one.gt for one in limits if isinstance(one, Ge | Gt)), default=None)
    high = min((one.le if isinstance(one, Le) else one.lt for one in limits if isinstance(one, Le | Lt)), default=None)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        least = 0 if low is None else int(low)
        return st.one_of(st.integers(least, least + 40), st.sampled_from([least, int(high or 2**53 - 1)]))
    if annotation is float:
        return st.floats(low, high, exclude_min=low is not None, exclude_max=high == 1, allow_nan=False)
    if get_origin(annotation) is dict:  # growth.blueprints
        return st.sampled_from([{}, {"body": ["mlp", "norm"]}, {"*": {"exclude": ["norm"]}}, {"\0": ["mlp"]}])
    if get_origin(annotation) is tuple and getattr(get_args(annotation)[0], "__origin__", None) is int:
        return st.sampled_from([[2], [2, 5], [3, 3], [], [20, 60, 120]])  # growth.rungs
    if get_origin(annotation) is tuple:  # emergency.sinks
        return st.sampled_from([[], [{"name": "log", "kind": "file"}], [{"name": "log"}], [{"kind": "webhook"}]])
    if options := [one for one in get_args(annotation) if isinstance(one, str)]:
        return st.sampled_from(options)
    return st.text(max_size=8)


def typed(key: str, value: Any) -> str:
    """An override for `--set`; what TOML cannot say goes as a bare word."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{key}=[{', '.join(typed('', one).removeprefix('=') for one in value)}]"
    if isinstance(value, bool | int | list) or value is None:
        return (
            f"{key}={json.dumps(value)}"
            if abs(value if isinstance(value, int) else 0) < 10**300
            else f"{key}={hex(value)}"
        )
    if isinstance(value, float):
        return f"{key}={value!r}"
    if isinstance(value, dict):
        return f"{key}={{{', '.join(typed(json.dumps(name), one) for name, one in value.items())}}}"
    return f"{key}={json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value}"


@st.composite
def overrides(draw: Callable[[Any], Any]) -> list[str]:
    """One to four words of `--set`: sound values, and in half of all draws one that is not."""
    known = fields()
    found = []
    for key in draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=4, unique=True)):
        found.append(typed(key, draw(sound(known[key]))))
    if draw(st.booleans()):
        odd = st.builds(typed, st.sampled_from(sorted(known)), st.sampled_from(ABSURD))
        found.append(draw(st.one_of(odd, odd, odd, st.sampled_from(TEXTS))))
    return found


@dataclass(frozen=True)
class Life:
    """What became of one config: exit codes of run and resume, and what was said."""

    words: list[str]
    run: int
    said: str
    left: tuple[str, ...]
    """Names in the run directory."""
    resume: int | None = None
    said_of_resume: str = ""


def live(words: list[str], folder: Path, esper: Esper) -> Life:
    """Run a config on `t.py:task` until fence 1, and resume it until fence 2 or its end.

    Args:
        folder: Empty; the working directory, with a file `t.py`.
        esper: Runs one command line; returns its exit code and what it wrote on standard error.
    """
    given = {word.partition("=")[0].strip() for word in words}
    base = [typed(key, value) for key, value in BASE.items() if key not in given]
    place = [] if "run.dir" in given else ["--run-dir", "run"]
    for fence in (1, 2):
        (folder / f"stop-{fence}.toml").write_text(STOP.format(fence=fence))
    sets = [part for word in [*base, *words] for part in ("--set", word)]
    before = set(folder.rglob("*"))
    code, said = esper(["run", "t.py:task", "--in-process", "--faults", "stop-1.toml", *place, *sets])
    made = sorted(folder.rglob("run.json"))
    left = tuple(sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before if path.is_file()))
    if not made:
        return Life(words, code, said, left)
    again, said_again = esper(["resume", str(made[0].parent), "--in-process", "--faults", "stop-2.toml"])
    return Life(words, code, said, left, again, said_again)


# -- the tests ----------------------------------------------------------------------------------------------------


@pytest.fixture
def esper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Esper:
    monkeypatch.chdir(tmp_path)

    def call(words: list[str]) -> tuple[int, str]:
        code = exit_code(words)
        return code, capsys.readouterr().err

    return call


def check(examples: int, folder: Path, esper: Esper) -> Counter[str]:
    """Take configs through `live`; returns how many came to which end."""
    ends: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides())
    def one(words: list[str]) -> None:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (folder / "t.py").write_text("from esper.testing import tiny_task\ntask = tiny_task\n")
        ends[end_of(live(words, folder, esper))] += 1

    one()
    return ends


def end_of(life: Life) -> str:
    """Asserts that a config was refused in one line, or gave a run that was stopped and went on."""
    if life.run == 2:
        assert re.fullmatch(r"esper: [^\n]{1,2500}\n", life.said), life
        assert life.left == (), life
        return "refused"
    assert (life.run, stopped(life.said)) == (3, True), life
    assert life.resume == 0 or (life.resume == 3 and stopped(life.said_of_resume)), life
    return "resumed"


def stopped(said: str) -> bool:
    return "\nerror: FaultInjected\n" in f"\n{said}"


@pytest.mark.slow
def test_a_config_is_refused_in_one_line_or_gives_a_run_that_can_be_resumed(tmp_path: Path, esper: Esper) -> None:
    ends = check(10, tmp_path, esper)
    assert min(ends["refused"], ends["resumed"]) >= 2


@pytest.mark.torture
def test_500_configs_are_refused_in_one_line_or_give_runs_that_can_be_resumed(tmp_path: Path, esper: Esper) -> None:
    ends = check(500, tmp_path, esper)
    print(f"\nconfigs: {dict(ends)}")
    assert min(ends["refused"], ends["resumed"]) >= 100
