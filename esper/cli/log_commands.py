"""`esper log`: shows the records of framed logs and the damaged parts. It changes and repairs no file.

Exit codes: 0 undamaged; 1 damaged; 2 no framed log was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.archive.run_directory import refusing
from esper.cli.command_table import COMMANDS
from esper.cli.options import JsonOption
from esper.cli.output import print_json, say
from esper.durable.log import iterate
from esper.durable.log_format import Frame, LoadError
from esper.errors import ConfigError, StoreCorrupt

DAMAGED = 1

app = typer.Typer(help=COMMANDS["log"].help, add_completion=False, no_args_is_help=True, rich_markup_mode=None)

PathArgument = Annotated[Path, typer.Argument(help="a framed log, or a folder: all *.log in it and below")]


@dataclass
class _Counts:
    """Counts of one log, up to the last record that was read."""

    frames: int = 0
    bytes: int = 0
    """Bytes of all payloads together."""
    errors: list[LoadError] = field(default_factory=list)

    def follow(self, found: Iterator[Frame | LoadError]) -> Iterator[Frame | LoadError]:
        for one in found:
            if isinstance(one, LoadError):
                self.errors.append(one)
            else:
                self.frames += 1
                self.bytes += len(one.payload)
            yield one


@app.command()
def dump(path: PathArgument, as_json: JsonOption = False) -> None:
    """Print every record, and every part that cannot be read."""
    files, damaged = [], False
    for log in _logs(path):
        counts, frames = _Counts(), []
        if not as_json and log != path:
            say(f"{log}:")
        for found in counts.follow(_read(log, named=log == path)):
            if isinstance(found, LoadError):
                say(f"{found.offset:>10} {_damage(found)}", error=as_json)
            elif as_json:
                frames.append(_frame(found))
            else:
                say(f"{found.offset:>10} #{found.sequence:<6} kind {found.kind:<3} {_payload(found.payload)}")
        files.append({"path": str(log), "frames": frames, "errors": [_error(error) for error in counts.errors]})
        damaged = damaged or bool(counts.errors)
    _end(path, files, damaged, as_json=as_json)


@app.command()
def verify(path: PathArgument, as_json: JsonOption = False) -> None:
    """Count the records, and name every part that cannot be read."""
    files, damaged = [], False
    for log in _logs(path):
        counts = _Counts()
        for _ in counts.follow(_read(log, named=log == path)):
            pass
        if not as_json:
            places = f", damaged places: {len(counts.errors)}" if counts.errors else ""
            say(f"{log}: records: {counts.frames}, bytes of payload: {counts.bytes}{places}")
            for error in counts.errors:
                say(f"{error.offset:>10} {_damage(error)}")
        told = {"frames": counts.frames, "payload_bytes": counts.bytes}
        files.append({"path": str(log), **told, "errors": [_error(error) for error in counts.errors]})
        damaged = damaged or bool(counts.errors)
    _end(path, files, damaged, as_json=as_json)


def _logs(path: Path) -> list[Path]:
    """Raises: ConfigError: there is no log."""
    with refusing("PATH", path):
        there = path.exists()
    if not there:
        raise ConfigError("PATH", str(path), "there is no such file or folder")
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError("PATH", str(path), "it is neither a file nor a folder")
        return [path]
    with refusing("PATH", path):
        next(path.iterdir(), None)
        found = sorted(one for one in path.rglob("*.log") if one.is_file())
    if not found:
        raise ConfigError("PATH", str(path), "no file in this folder or below ends in .log")
    return found


def _read(log: Path, *, named: bool) -> Iterator[Frame | LoadError]:
    """Read a log. If `path` was found in a folder and is not a framed log, it counts as damage, so that the other logs
    of the folder are still shown.

    Raises:
        ConfigError: the file is not a framed log that this program can read, and the command line named it (`named`).
    """
    try:
        yield from iterate(log)
    except StoreCorrupt as error:
        if named:
            raise ConfigError("PATH", str(log), error.reason) from error
        yield LoadError(0, log.stat().st_size, error.reason)


def _end(path: Path, files: list[dict[str, Any]], damaged: bool, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(path), "damaged": damaged, "files": files})
    if damaged:
        raise typer.Exit(DAMAGED)


def _frame(frame: Frame) -> dict[str, Any]:
    payload = _payload(frame.payload)
    told = {"offset": frame.offset, "sequence": frame.sequence, "kind": frame.kind}
    return {**told, "payload": json.loads(payload) if _is_json(frame.payload) else payload}


def _error(error: LoadError) -> dict[str, Any]:
    return {"offset": error.offset, "length": error.length, "reason": error.reason}


def _damage(error: LoadError) -> str:
    return f"damaged, {error.length} bytes: {error.reason}"


def _payload(payload: bytes) -> str:
    """Return a payload as text. One line of JSON is unchanged. Any other payload becomes hex, so that no byte is
    lost."""
    return json.dumps(json.loads(payload)) if _is_json(payload) else payload.hex()


def _is_json(payload: bytes) -> bool:
    try:
        json.loads(payload.decode())
    except (ValueError, RecursionError):  # the payload is not UTF-8, is not JSON, or is nested too deeply
        return False
    return True
