"""What each command and each part of the library loads: a fresh process says what is in its `sys.modules`."""

from __future__ import annotations

import json
import subprocess
import sys

from esper.flow.result import Result

HEAVY = ("torch", "ray", "scipy", "numpy")
LOOKING = """
import sys

LOADED = {{}}
def note(after):
    for name in {heavy}:
        if name in sys.modules and name not in LOADED:
            LOADED[name] = after

import esper.config.joined
note("import esper.config.joined")
from esper.cli.main import exit_code
for words in {lines}:
    assert exit_code(words) == 0, words
    note(" ".join(words))
assert not LOADED, LOADED
"""


def test_commands_that_only_look_load_no_torch_no_ray_and_no_scipy(undisturbed: Result) -> None:
    run = undisturbed.run_dir
    lines = [["--help"], ["--version"], ["config"], ["inspect", run], ["checkpoint", "list", run], ["log", "dump", run]]
    script = LOOKING.format(heavy=HEAVY, lines=lines)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


FLOW = (
    "esper.flow.runner",
    "esper.flow.in_process",
    "esper.flow.replay",
    "esper.export.loading",
    "esper.export.exporting",
    "esper.testing",
)


def test_the_flow_of_a_run_loads_no_terminal_no_command_line_and_no_ray() -> None:
    script = f"import json, sys, {', '.join(FLOW)}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", script], text=True))
    assert "torch" in loaded, "the modules were imported"
    assert not {"rich", "typer", "ray"} & set(loaded)
    assert not [name for name in loaded if name == "actors" or name.startswith("actors.")]
