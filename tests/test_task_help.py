"""What is said to a reader: every field of a task in `help(Task)`, the versions in `esper --version`."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields

import pytest
import torch

from esper import Task
from esper.cli.main import exit_code
from esper.ground.installed_versions import versions


def said() -> dict[str, str]:
    """What the docstring says of each field, in its order."""
    doc = inspect.getdoc(Task)
    assert doc is not None
    listed = doc.split("Args:\n")[1]
    parts = re.split(r"^ {4}(\w+): ", listed, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_field_of_a_task_is_documented_in_its_order() -> None:
    assert list(said()) == [field.name for field in fields(Task)]


def test_a_field_that_may_be_left_out_says_what_stands_for_it() -> None:
    for field in fields(Task):
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if field.name != "input_output":  # "for a model that is not called as model(input)"
            assert bool(re.search(r"Default: |By default ", said()[field.name])) == optional, field.name
        if isinstance(field.default, int):
            assert f"Default: {field.default};" in said()[field.name]
    (parameter,) = torch.nn.Linear(1, 1, bias=False).parameters()
    assert "AdamW with lr 3e-3" in said()["optimizer"]
    made = next(field for field in fields(Task) if field.name == "optimizer").default([parameter])
    assert (type(made), made.defaults["lr"]) == (torch.optim.AdamW, 3e-3)


def test_the_version_is_one_line_and_no_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--version"]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert out.startswith(f"esper {versions()['esper-runtime']} (python ")
    assert f"torch {versions()['torch']}" in out
