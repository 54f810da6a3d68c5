"""Who may write where: a run directory is claimed once, and what cannot be claimed is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.durable.files import DirectoryLease
from esper.errors import RunDirectoryError, causes
from esper.run_directory import RunDirectory
from esper.testing import EPOCH


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
        assert claimed.path.parent == Path("runs")
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
