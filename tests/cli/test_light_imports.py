"""What each command and each part of the library loads: a fresh process says what is in its `sys.modules`."""

from __future__ import annotations

import json
import subprocess
import sys

from esper.flow.result import Result

HEAVY = ("torch", "ray", "scipy", "numpy", "httpx")

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
    lines += [["trace", "list", run], ["trace", "show", run, undisturbed.trace_id]]
    script = LOOKING.format(heavy=HEAVY, lines=lines)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


FLOW = """
import importlib, json, pkgutil, sys

for room in ("esper.setup", "esper.archive", "esper.flow", "esper.export"):
    for module in pkgutil.iter_modules(importlib.import_module(room).__path__, f"{room}."):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def test_the_flow_of_a_run_loads_no_terminal_no_command_line_and_no_ray() -> None:
    loaded = set(json.loads(subprocess.check_output([sys.executable, "-c", FLOW], text=True)))
    assert {"esper.flow.line", "esper.export.exporting"} <= loaded
    assert not {"rich", "typer", "ray", "httpx", "actors", "esper.cli"} & loaded
