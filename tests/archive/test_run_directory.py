"""Who may write where: a run directory is claimed once, and what cannot be claimed is left as it was."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esper import resume
from esper.archive.run_directory import RunDirectory
from esper.durable.files import DirectoryLease, sync_file
from esper.durable.log import FramedLog
from esper.emergency.word import EmergencyWord
from esper.errors import RunDirectoryError, StoreWriteFailed, causes
from esper.faults import Fault, Firing, Firings
from esper.telemetry.file_exporter import open_for_append
from esper.testing import EPOCH, telling, tiny_task


def refused(path: Path) -> str:
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.create(path, EPOCH)
    assert [one.__cause__ for one in causes(caught.value)][-1] is None  # no error became its own cause on the way
    return str(caught.value)


def test_an_absent_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a" / "b", EPOCH) as claimed:
        assert claimed.path.is_dir()


def test_an_empty_directory_is_taken_and_one_that_holds_only_an_old_lease(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, EPOCH).close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["lease"]
    RunDirectory.create(tmp_path, EPOCH).close()


def test_by_default_the_directory_is_new_and_named_by_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create(None, EPOCH) as claimed:
        assert claimed.path.parent == tmp_path / "runs"
        assert claimed.path.name.startswith("20260101-000000-")


def test_a_directory_in_use_is_refused_with_its_holder(tmp_path: Path) -> None:
    with DirectoryLease(tmp_path):
        assert "in use by pid" in refused(tmp_path)
    RunDirectory.create(tmp_path, EPOCH).close()


def test_a_filled_directory_is_refused_and_nothing_is_put_into_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not empty; choose an absent or empty directory" in refused(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_directory_that_was_refused_can_be_claimed_once_it_is_empty(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, EPOCH).close()
    (tmp_path / "run.json").touch()
    refused(tmp_path)
    (tmp_path / "run.json").unlink()
    with RunDirectory.create(tmp_path, EPOCH) as claimed:
        assert claimed.path == tmp_path


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "not a directory; choose another" in refused(file)
    assert "not a directory; choose another" in refused(file / "below")


def test_a_place_where_nothing_can_be_made_is_refused() -> None:
    assert "cannot be used" in refused(Path("/proc/esper-run"))


@pytest.mark.parametrize("there", [True, False])
def test_a_lease_that_is_a_link_is_refused_and_its_target_left_as_it_was(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "precious"
    if there:
        target.write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lease").symlink_to(target)
    with pytest.raises(RunDirectoryError, check=telling("symbolic link", field="run.dir")):
        RunDirectory.create(tmp_path / "run", EPOCH)
    with pytest.raises(RunDirectoryError, check=telling(field="run directory")):
        DirectoryLease(tmp_path / "run").acquire()
    assert (target.read_bytes() if there else target.exists()) == (b"mine" if there else False)


@pytest.mark.parametrize(
    "name",
    [
        "lease",
        "run.json",
        "summary.json",
        "journal-1.log",
        "journal-2.log",
        "checkpoints",
        "telemetry",
        "field_reports",
    ],
)
def test_nothing_of_a_run_is_written_through_a_link(drained_twice: Path, tmp_path: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(drained_twice, run_dir)
    if (run_dir / name).is_dir():
        shutil.rmtree(run_dir / name)
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(drained_twice / name)
    before = sorted((path, path.stat().st_mtime_ns) for path in drained_twice.rglob("*"))
    with pytest.raises(RunDirectoryError, check=telling(name, "symbolic link", field="RUN")):
        resume(run_dir, tiny_task())
    assert sorted((path, path.stat().st_mtime_ns) for path in drained_twice.rglob("*")) == before


def test_no_writer_of_ours_opens_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    firing = Firing(fault_index=0, point="tolaria.step", fault=Fault.RAISE, actor="", pid=1, passage=1)
    writers: list[Callable[[Path], object]] = [
        FramedLog.open,
        sync_file,
        open_for_append,
        EmergencyWord.attach,
        lambda path: Firings(path).claim(firing, 1),
    ]
    for write in writers:
        with pytest.raises((OSError, StoreWriteFailed)) as caught:
            write(tmp_path / "link")
        error = caught.value if isinstance(caught.value, OSError) else caught.value.__cause__
        assert isinstance(error, OSError)
        assert error.errno == errno.ELOOP
    assert (tmp_path / "precious").read_bytes() == b"mine"
