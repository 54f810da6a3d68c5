"""`esper log dump` and `esper log verify`: what they print, what they exit with, and that they change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from esper.cli.log_commands import app
from esper.durable.log import FramedLog, iterate
from esper.durable.log_format import Frame
from esper.durable.segments import SegmentedLog
from esper.errors import ConfigError

Log = Callable[..., tuple[int, str, str]]
FRAME_HEADER_BYTES = 24
RECORDS = [(4, b'{"fence": 0}'), (5, b"\xff\x00"), (4, b'{"fence": 2}')]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    """Runs one `esper log` command. Returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = typer.main.get_command(app).main(list(arguments), standalone_mode=False)
        out, err = capsys.readouterr()
        return code or 0, out, err

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with FramedLog.open(tmp_path / "a.log") as opened:
        opened.append_many(RECORDS)
    return tmp_path / "a.log"


def damage(path: Path, at: bytes) -> tuple[int, bytes]:
    """Flip a bit of the record that holds `at`. Returns the offset of its frame, and the file as it then is."""
    (frame,) = [one for one in iterate(path) if isinstance(one, Frame) and at in one.payload]
    data = bytearray(path.read_bytes())
    data[data.index(at, frame.offset + FRAME_HEADER_BYTES)] ^= 1
    path.write_bytes(data)
    return frame.offset, bytes(data)


def parsed(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out)
    return found


def test_every_record_is_one_line_with_its_place_number_kind_and_payload(log: Log, path: Path) -> None:
    code, out, err = log("dump", str(path))
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=4) for line in out.splitlines()] == [
        ["30", "#0", "kind", "4", '{"fence": 0}'],
        ["70", "#1", "kind", "5", "ff00"],
        ["100", "#2", "kind", "4", '{"fence": 2}'],
    ]


def test_a_dump_as_json_holds_payloads_as_json_or_hex(log: Log, path: Path) -> None:
    code, out, _ = log("dump", str(path), "--json")
    found = parsed(out)
    assert (code, found["damaged"]) == (0, False)
    (file,) = found["files"]
    assert file["path"] == str(path)
    assert [frame["payload"] for frame in file["frames"]] == [{"fence": 0}, "ff00", {"fence": 2}]
    assert [(frame["offset"], frame["sequence"], frame["kind"]) for frame in file["frames"]] == [
        (30, 0, 4),
        (70, 1, 5),
        (100, 2, 4),
    ]


def test_damage_is_printed_in_its_place_and_makes_the_exit_code_1(log: Log, path: Path) -> None:
    offset, data = damage(path, b"\xff\x00")
    code, out, _ = log("dump", str(path))
    lines = out.splitlines()
    assert code == 1
    assert [line.split()[0] for line in lines] == ["30", str(offset), "100"]
    assert lines[1].split(maxsplit=1)[1] == "damaged, 30 bytes: the checksum of the payload is wrong"
    code, out, err = log("dump", str(path), "--json")
    found = parsed(out)
    assert (code, found["damaged"]) == (1, True)
    assert found["files"][0]["errors"] == [
        {"offset": offset, "length": 30, "reason": "the checksum of the payload is wrong"}
    ]
    assert "damaged" in err
    assert path.read_bytes() == data


def test_a_whole_log_is_verified_with_its_counts(log: Log, path: Path) -> None:
    code, out, err = log("verify", str(path))
    assert (code, out, err) == (0, f"{path}: records: 3, bytes of payload: 26\n", "")
    code, out, _ = log("verify", str(path), "--json")
    file = {"path": str(path), "frames": 3, "payload_bytes": 26, "errors": []}
    assert (code, parsed(out)) == (0, {"path": str(path), "damaged": False, "files": [file]})


def test_every_damaged_place_is_named_also_a_torn_tail(log: Log, path: Path) -> None:
    offset, data = damage(path, b"\xff\x00")
    path.write_bytes(data[:-1])
    code, out, _ = log("verify", str(path))
    lines = out.splitlines()
    assert code == 1
    assert lines[0] == f"{path}: records: 1, bytes of payload: 12, damaged places: 1"
    assert lines[1].split(maxsplit=1) == [str(offset), "damaged, 69 bytes: the checksum of the payload is wrong"]
    code, out, _ = log("verify", str(path), "--json")
    assert (code, len(parsed(out)["files"][0]["errors"])) == (1, 1)


def test_a_folder_means_every_log_in_it_and_below(log: Log, tmp_path: Path, path: Path) -> None:
    (tmp_path / "below").mkdir()
    with SegmentedLog.open(tmp_path / "below", limit_bytes=1) as segmented:
        segmented.append(1, b"1")
        segmented.append(1, b"2")
    code, out, _ = log("verify", str(tmp_path))
    assert code == 0
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        str(path),
        *(str(tmp_path / "below" / f"{n:020d}.log") for n in range(2)),
    ]
    _, out, _ = log("dump", str(tmp_path))
    assert [line.strip() for line in out.splitlines() if "kind" not in line] == [
        f"{path}:",
        *(f"{tmp_path / 'below' / f'{n:020d}.log'}:" for n in range(2)),
    ]
    damage(tmp_path / "below" / f"{0:020d}.log", b"1")
    code, out, _ = log("verify", str(tmp_path), "--json")
    assert (code, [bool(file["errors"]) for file in parsed(out)["files"]]) == (1, [False, True, False])


@pytest.mark.usefixtures("path")
def test_a_file_in_a_folder_that_is_no_log_is_named_and_does_not_hide_the_others(log: Log, tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text("no log")
    code, out, _ = log("verify", str(tmp_path), "--json")
    bad, good = parsed(out)["files"]
    assert (code, good["frames"], good["errors"]) == (1, 3, [])
    assert bad["errors"] == [{"offset": 0, "length": 6, "reason": "is not a framed log: the magic is missing"}]


@pytest.mark.parametrize("command", ["dump", "verify"])
def test_what_is_no_framed_log_is_refused_with_the_mend(log: Log, tmp_path: Path, command: str) -> None:
    (tmp_path / "text.log").write_text("no log")
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("absent", "no such file or folder"),
        ("text.log", "not a framed log"),
        ("empty", "ends in .log"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            log(command, str(tmp_path / name))
        assert (caught.value.field, caught.value.value) == ("PATH", str(tmp_path / name))
