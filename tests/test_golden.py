"""A run directory of an earlier day: this version restores it, or refuses it by the versions that made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from esper import resume
from esper.archive.history import read_past
from esper.archive.journal import Journal, RecordKind
from esper.archive.run_directory import checkpoints_folder, run_file
from esper.errors import RunDirectoryError
from esper.flow.checkpoints import Checkpoints
from esper.ground.installed_versions import versions
from esper.ground.machine import cpu_type
from esper.ground.tensors import state_crc32c

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden-run"
"""A tiny run, drained at fence 6; made by `tools/golden.py`, as is what it goes on to."""
WEIGHTS = (DATA / "golden-run.weights_sha256").read_text().strip()


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "run")
    told = json.loads(run_file(tmp_path / "run").read_text())
    told["task"] = str(DATA / "golden_task.py:tiny_task")
    run_file(tmp_path / "run").write_text(json.dumps(told))
    return tmp_path / "run"


def of_these_versions(path: Path) -> None:
    told = json.loads(run_file(path).read_text())
    told["versions"] = versions()
    run_file(path).write_text(json.dumps(told))


def test_it_is_gone_on_with_or_refused_by_the_versions_that_made_it(golden: Path) -> None:
    if read_past(golden).identity.versions == versions():
        same_cpu, result = read_past(golden).identity.cpu == cpu_type(), resume(golden)
        assert result.resumes == 1
        assert result.weights_sha256 == WEIGHTS or not same_cpu  # another processor's bits are other ones
        return
    with pytest.raises(RunDirectoryError, match=r"made with .*other versions give other bits"):
        resume(golden)


def test_its_checkpoints_hold_the_weights_that_its_journal_committed(golden: Path, tmp_path: Path) -> None:
    past = read_past(golden)
    (tmp_path / "other").mkdir()
    with Journal(tmp_path / "other", 1) as journal:
        for keep in range(1, len(past.commits) + 1):
            commits = past.commits[:keep]
            kept = Checkpoints(
                checkpoints_folder(golden), journal, past.identity.config.checkpoint, commits
            ).load_latest()
            assert kept.fence == commits[-1].fence
            assert state_crc32c(kept.host.tensors) == commits[-1].weights_crc32c


def test_its_state_is_understood_by_every_room_of_today(golden: Path) -> None:
    of_these_versions(golden)
    result = resume(golden)
    assert (result.steps, result.rounds, result.resumes) == (320, 16, 1)
    assert {"FOSSILIZED"} <= {seed.stage for seed in result.seeds}
    assert read_past(golden).entries[-1].kind is RecordKind.RUN_ENDED
