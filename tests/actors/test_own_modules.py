"""What a user's script imports, actors import too, whatever lies in the folder that it is started in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.path.append("library")
import beside, esper, of_hers
from esper.testing import TinyHost, tiny_config, tiny_task

class Host(TinyHost):
    def forward(self, x):
        return beside.scaled(super().forward(x))

if __name__ == "__main__":
    task = tiny_task(model=Host, epochs=of_hers.EPOCHS, metrics={"share": of_hers.share})
    together = esper.run(task, tiny_config(run__dir="together"), on=esper.OnRay())
    alone = esper.run(task, tiny_config(run__dir="alone"))
    assert together.weights_sha256 == alone.weights_sha256
    assert together.test_metrics == alone.test_metrics != {}
"""


@pytest.mark.slow
@pytest.mark.integration
def test_a_script_that_changed_its_import_path_runs_on_actors_beside_packages_of_our_names(tmp_path: Path) -> None:
    files = {
        "scripts/train.py": SCRIPT,
        "scripts/beside.py": "def scaled(x): return 1.5 * x\n",
        "library/of_hers.py": "EPOCHS = 2\ndef share(output, target): return (output.argmax(1) == target).float()\n",
        **{f"{name}/__init__.py": f"raise SystemExit('{name} of hers')\n" for name in ("actors", "esper", "drills")},
        "random.py": "raise SystemExit('random of hers')\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ended = subprocess.run(
        [sys.executable, "scripts/train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
