"""The key of commands from a file: what is refused before a run begins, and that the run directory never shows it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stopping import stop, stop_again

import esper
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import ConfigError
from esper.flow.command_key import command_key
from esper.leyline.commands import Command, sign
from esper.testing import tiny_config, tiny_task

KEY = b"3f" * 32


def write(path: Path, content: bytes = KEY, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def linked(path: Path) -> None:
    path.symlink_to(write(path.with_name("target")))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: write(path).rename(path.with_name("elsewhere")),
        "there is no such file; make a key with: ",
    ),
    "a folder": (lambda path: path.mkdir(mode=0o700), "it is not a regular file"),
    "a pipe": (lambda path: os.mkfifo(path, 0o600), "it is not a regular file"),
    "a symbolic link": (linked, "it is a symbolic link; name the file itself"),
    "read by the group": (lambda path: write(path, mode=0o640), "its mode is 0640, and must be 0600; use chmod 600"),
    "read by all": (lambda path: write(path, mode=0o644), "its mode is 0644, and must be 0600"),
    "run by its user": (lambda path: write(path, mode=0o700), "its mode is 0700, and must be 0600"),
    "empty": (lambda path: write(path, b""), "it is empty; make a key with"),
    "blank": (lambda path: write(path, b" \n"), "it is empty"),
    "short": (lambda path: write(path, b"k" * 31 + b"\n"), "it has 31 bytes, and a key needs at least 32"),
    "one byte": (lambda path: write(path, bytes(64)), "each of its bytes is the same"),
    "long": (lambda path: write(path, b"k" * 4097), "it has more than 4096 bytes, which is too long; make a key with"),
}


@pytest.mark.parametrize(("make", "mend"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_secret_key_is_refused(tmp_path: Path, make: Callable[[Path], object], mend: str) -> None:
    path = tmp_path / "key"
    make(path)
    with pytest.raises(ConfigError) as refused:
        command_key(tiny_config(ray__command_key_file=str(path)))
    assert (refused.value.field, refused.value.value) == ("ray.command_key_file", str(path))
    assert refused.value.mend.startswith(mend)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "key")
    mine = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: mine + 1)
    with pytest.raises(ConfigError, match=f"it belongs to user {mine}, and this process is of user {mine + 1}"):
        command_key(tiny_config(ray__command_key_file=str(path)))


@pytest.mark.parametrize("content", [KEY, KEY + b"\n", b"\n " + KEY + b"\r\n", b"k" * 31 + b"l"])
def test_the_key_is_what_the_file_holds_without_white_space_around_it(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "key", content)
    assert command_key(tiny_config(ray__command_key_file=str(path))) == content.strip()


def test_without_a_file_each_run_has_a_key_of_its_own() -> None:
    keys = {command_key(tiny_config()) for _ in range(8)}
    assert len(keys) == 8
    assert {len(key) for key in keys} == {32}


def test_a_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    key = write(tmp_path / "key", mode=0o644)
    config = tiny_config(run__dir=str(tmp_path / "run"), ray__command_key_file=str(key))
    with pytest.raises(ConfigError, match="its mode is 0644"):
        esper.run(tiny_task(), config)
    assert sorted(tmp_path.iterdir()) == [key]


@pytest.mark.slow
def test_the_run_directory_shows_neither_key_nor_file_and_commands_are_signed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, run_dir = write(tmp_path / "the-key-file", KEY + b"\n"), tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["esper", "run", "--set", f"ray.command_key_file={key}"])
    stop(2, tiny_task(), tiny_config(run__dir=str(run_dir), ray__command_key_file=str(key)))
    stop_again(4, run_dir, tiny_task(), settings={"ray.command_key_file": str(key)})

    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 5
    shown = {str(path): path.read_bytes() for path in files}
    assert [path for path, content in shown.items() if KEY in content or key.name.encode() in content] == []
    entries = read_past(run_dir).entries
    sent = [Command.model_validate_json(json.dumps(e.body)) for e in entries if e.kind is RecordKind.COMMAND]
    assert len({command.generation for command in sent}) == 2
    assert all(command.signature == sign(command, KEY) for command in sent)
