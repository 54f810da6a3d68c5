"""Text output of the command line. No text is parsed as markup. A failure of the output never ends a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from esper.errors import ConfigError, in_a_line
from esper.ground.strict_json import strict_json

SHOWN_CONTROLS = frozenset("\n\t")
"""Control characters that are printed unchanged. All others are escaped, because they can control the terminal."""


def printable(text: str) -> str:
    """Return the text with control characters written as escapes, except line feeds and tabs."""
    if text.isprintable():
        return text
    return "".join(one if one in SHOWN_CONTROLS or not _steers(one) else ascii(one)[1:-1] for one in text)


def _steers(one: str) -> bool:
    return ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0


def say(*lines: object, error: bool = False) -> None:
    """Print lines on standard output, or on standard error."""
    for line in lines:
        print(printable(str(line)), file=sys.stderr if error else sys.stdout)


def complain(text: str, code: int) -> int:
    """Print one line on standard error and return the exit code."""
    say(f"esper: {' '.join(text.split())}", error=True)
    return code


def refuse(error: Exception, text: str, code: int, *, as_json: bool) -> int:
    """Print an error in one line on standard error, and with `as_json` also as an object. Return the exit code."""
    if as_json:
        cause = in_a_line(error.__cause__) if error.__cause__ is not None else ""
        told = {"error": type(error).__name__, "message": text, "cause": cause}
        print_json({**told, "field": error.field, "mend": error.mend} if isinstance(error, ConfigError) else told)
    return complain(text, code)


def print_json(found: dict[str, Any]) -> None:
    """Print one JSON object as the last output. For numbers that are not finite see `esper.ground.strict_json`."""
    print(strict_json(found))


class _Stream:
    """A text stream whose `write` and `flush` never raise.

    Characters that are not in the stream's encoding are written as escapes. After the first failed write all later text
    is dropped.
    """

    def __init__(self, stream: TextIO, name: str, *, goes_on: bool) -> None:
        self._stream, self._name, self._mute, self._goes_on = stream, name, False, goes_on
        self.lost = False
        """True if a write failed. A closed pipe of a reader does not count as a failure."""

    def __getattr__(self, name: str) -> Any:  # Any: an attribute of the stream
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text. After a failure, drop the text."""
        if not self._mute:
            encoding = self._stream.encoding or "utf-8"
            try:
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._silence(error)
        return len(text)

    def flush(self) -> None:
        """Flush. After a failure, do nothing."""
        if not self._mute:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._silence(error)

    def _silence(self, error: Exception) -> None:
        """Drop all later text. If this is standard output, report the failure once on standard error."""
        self._mute = True
        self.lost = not isinstance(error, BrokenPipeError)
        _point_at_nothing(self._stream)
        other = sys.stderr if self._name == "output" else sys.stdout
        if self._name == "output" and isinstance(other, _Stream) and (self.lost or self._goes_on):
            why = "its reader is gone" if isinstance(error, BrokenPipeError) else reason(error)
            print(f"esper: standard output is dropped from now on: {why}; the command continues", file=other)


def reason(error: Exception) -> str:
    """Return the system's words for a failed write, without the error number."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def output_lost() -> bool:
    """Return whether a part of guarded standard output could not be written.

    Output counts as written if its reader has closed the pipe, as `head` does.
    """
    out: object = sys.stdout
    if not isinstance(out, _Stream):
        return False
    out.flush()
    return out.lost


def _point_at_nothing(stream: TextIO) -> None:
    """Redirect a stream's file to /dev/null, so that the flush at the end of the interpreter cannot fail."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # the stream is not a file, or is closed
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, number)
    os.close(nothing)


@contextmanager
def guarded(*, goes_on: bool = True) -> Iterator[None]:
    """Within the block, writing to standard output and standard error never raises.

    Args:
        goes_on: True if the command has other effects than output. In that case, if a reader closes the pipe, a line on
            standard error reports that.
    """
    if isinstance(sys.stdout, _Stream):
        yield
        return
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        out, err = (
            _Stream(before[0] or nothing, "output", goes_on=goes_on),
            _Stream(before[1] or nothing, "error", goes_on=goes_on),
        )
        sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
        try:
            yield
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = before


def hold_standard_descriptors() -> None:
    """Open /dev/null for each standard descriptor that is closed.

    Otherwise the next opened file, for example a journal, would get the free number 1, and `print` would write into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
