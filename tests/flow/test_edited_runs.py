"""Run directories that were edited and sealed again, so that every checksum holds: each is refused, typed."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esper import resume
from esper.archive.history import look_at, read_past
from esper.archive.journal import RecordKind
from esper.archive.run_directory import checkpoints_folder, journal_file, run_file
from esper.config.joined import load_config
from esper.durable.log import FramedLog, scan
from esper.durable.log_format import Frame, image
from esper.durable.streams import write_stream
from esper.errors import ConfigError, EsperError, RestoreImpossible, StoreCorrupt
from esper.testing import telling, tiny_task

Content = dict[str, Any]
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def path(drained_twice: Path, tmp_path: Path) -> Path:
    """A copy of a run that was drained at fences 4 and 6."""
    shutil.copytree(drained_twice, tmp_path / "run")
    return tmp_path / "run"


def resealed(run_dir: Path, edit: Callable[[Content], object]) -> None:
    """Edit the content of every checkpoint, and have the journals say their new lengths and checksums."""
    made = {}
    for file in checkpoints_folder(run_dir).glob("fence-*.pt"):
        content = torch.load(file, weights_only=True)
        edit(content)
        file.unlink()
        made[file.name] = write_stream(file, lambda stream, content=content: torch.save(content, stream))

    def record(body: Content) -> None:
        if (seal := made.get(body["file"])) is not None:
            body |= {"length": seal.length, "crc": seal.crc}

    for generation in (1, 2):
        rewritten(run_dir, generation, RecordKind.CHECKPOINT_COMMITTED, record)


def rewritten(run_dir: Path, generation: int, kind: RecordKind, edit: Callable[[Content], object]) -> None:
    """Edit the bodies of one kind of records, and frame them again."""
    file, frames, end = journal_file(run_dir, generation), [], 30
    for frame in scan(file).frames:
        payload = frame.payload
        if frame.kind == kind:
            body = json.loads(payload)
            edit(body)
            payload = json.dumps(body).encode()
        frames.append(Frame(end, frame.sequence, frame.kind, payload))
        end = frames[-1].end
    grown = {str(generation): end}
    file.write_bytes(image(frames, epoch=generation))
    if generation == 1:
        rewritten(run_dir, 2, RecordKind.SUPERSEDED, lambda body: body.update(lengths=grown))


def test_a_run_sealed_again_without_an_edit_goes_on(path: Path) -> None:
    resealed(path, dict)
    assert resume(path, tiny_task()).rounds == 16


def zeroed(content: Content) -> None:
    for tensor in content["trainer"]["tensors"].values():
        tensor.zero_()


def claiming(content: Content) -> None:
    """A tensor of 8 TB in some bytes."""
    content["trainer"]["weights"] = [torch.zeros(1).expand(2**41)]


@pytest.mark.parametrize("edit", [zeroed, claiming, lambda content: content["rooms"].update(line=DEEP)])
def test_an_edited_checkpoint_is_not_restored(path: Path, edit: Callable[[Content], object]) -> None:
    """What else an edit may be, and that the checkpoint before is used: test_trial_restore.py."""
    resealed(path, edit)
    with pytest.raises(RestoreImpossible, match="no checkpoint loads"):
        resume(path, tiny_task())


# -- what is no file, and what is too large --------------------------------------------------------------------------


THINGS = [
    Path.mkdir,
    os.mkfifo,
    lambda place: place.symlink_to("/dev/zero"),
    lambda place: place.symlink_to(place),
]
"""A folder, a pipe, a link to a device, a link to itself."""


@pytest.mark.parametrize("make", THINGS)
def test_a_checkpoint_that_is_no_file_is_passed_over(path: Path, make: Callable[[Path], None]) -> None:
    newest = max(checkpoints_folder(path).glob("fence-*.pt"), key=lambda file: int(file.name.split("-")[1]))
    newest.unlink()
    make(newest)
    assert resume(path, tiny_task()).rounds == 16


@pytest.mark.parametrize("make", THINGS)
@pytest.mark.parametrize("name", ["run.json", "journal-1.log", "journal-2.log"])
def test_a_part_of_a_run_that_is_no_file_is_refused(path: Path, make: Callable[[Path], None], name: str) -> None:
    (path / name).unlink()
    make(path / name)
    with pytest.raises(EsperError):
        resume(path, tiny_task())


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"versions": ' + DEEP + "}",
        "7",
        pytest.param({"fence_steps": []}, id="no fences"),
        pytest.param({"fence_steps": [0]}, id="one fence"),
        pytest.param({"fence_steps": [0, -20, 320]}, id="fences that fall"),
        pytest.param({"total_steps": -1}, id="negative steps"),
        pytest.param({"generation": 0}, id="no generation"),
    ],
)
def test_a_run_json_that_says_what_cannot_be_is_refused(path: Path, text: str | Content) -> None:
    told = text if isinstance(text, str) else json.dumps(json.loads(run_file(path).read_text()) | text)
    run_file(path).write_text(told)
    with pytest.raises(StoreCorrupt, check=telling("run.json")):
        read_past(path)
    assert look_at(path).damages[0].file == "run.json"


@pytest.mark.slow
def test_a_tail_of_gigabytes_is_not_read_into_memory(path: Path) -> None:
    for file in (run_file(path), journal_file(path, 2)):
        os.truncate(file, 2**31)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert {damage.file for damage in look_at(path).damages} == {"run.json", "journal-2.log"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB: a quarter of a gigabyte


def test_a_record_of_deeply_nested_json_is_damage(path: Path) -> None:
    with FramedLog.open(journal_file(path, 2), epoch=2) as log:
        log.append(RecordKind.HOLD, DEEP.encode())
    assert [damage.file for damage in look_at(path).damages] == ["journal-2.log"]


@pytest.mark.parametrize("edit", [{"from_fence": -1}, {"lengths": {"1": -1}}])
def test_a_record_with_a_negative_number_is_damage(path: Path, edit: Content) -> None:
    rewritten(path, 2, RecordKind.SUPERSEDED, lambda body: body.update(edit))
    assert "journal-2.log" in [damage.file for damage in look_at(path).damages]


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["config", "faults"])
@pytest.mark.parametrize("text", ["a = " + DEEP, "#" * 2**21, None])
def test_a_file_of_settings_that_cannot_be_one_is_refused(tmp_path: Path, option: str, text: str | None) -> None:
    file = tmp_path / "f.toml"
    if text is None:
        file.symlink_to("/dev/zero")
    else:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"recursion|longer than"):
        load_config(file if option == "config" else None, None, file if option == "faults" else None)
