"""Ordinary PyTorch: what a survey accepts runs, is stopped and resumed with the same bits; the rest is refused."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from esper.errors import ConfigError
from esper.prospect import survey
from esper.testing import tiny_config

HERE = Path(__file__).parent
REFUSED = runpy.run_path(str(HERE / "tasks_refused.py"))["REFUSED"]


pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, at what users write


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_one_line_by_field_value_and_mend(name: str) -> None:
    make, pattern = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        survey(make(), tiny_config(growth__judge_samples=64, growth__min_samples=16))
    said = str(caught.value)
    assert re.search(pattern, said), said
    assert "\n" not in said
