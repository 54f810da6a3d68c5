"""Finds the last span that a conductor wrote before a run was resumed. The first span of the resume is linked to it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

TAIL_BYTES = 1 << 20
"""Bytes at the end of the file that are searched."""
_IDS = re.compile(rb'"traceId":"([0-9a-f]{32})","spanId":"([0-9a-f]{16})"')
_DELIVERY = b'"name":"send esper.emergency"'
"""A delivery to a sink has a trace of its own. In one process its span is in the file of the conductor."""


def last_traceparent(folder: Path) -> str:
    """Return the W3C traceparent of the last span in the newest span file of a conductor. Deliveries of emergency
    signals are left out.

    An incomplete last line is passed over. "": there is no such span, or the file cannot be read. The resume then has
    no link. A resume must not fail because of that, since the run does not depend on its telemetry.
    """
    try:
        found = [(path.lstat(), path) for path in folder.glob("spans-conductor-*.jsonl")]
        sizes = [(state.st_mtime_ns, path) for state, path in found if stat.S_ISREG(state.st_mode) and state.st_size]
        spans = _ids(_tail(max(sizes)[1])) if sizes else []
    except OSError:
        return ""
    return f"00-{spans[-1][0].decode()}-{spans[-1][1].decode()}-01" if spans else ""


def _ids(text: bytes) -> list[tuple[bytes, bytes]]:
    """Return trace id and span id of each span whose line is complete, without deliveries."""
    complete = text.split(b"\n")[:-1]
    found = (_IDS.search(line) for line in complete if _DELIVERY not in line)
    return [(ids[1], ids[2]) for ids in found if ids is not None]


def _tail(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES)
