"""Appends until the system takes no more, and says how far it got. Run by itself:

    python -I -S filling.py ROOT FOLDER LIMIT

LIMIT is a file size in bytes that no file may pass, or 0: then FOLDER is made a tmpfs of 64 KiB of our own.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

CLONE_NEWNS, MS_PRIVATE_REC = 0x00020000, (1 << 18) | (1 << 14)
TMPFS_BYTES = 64 * 1024
NO_MOUNT = 77


def own_tmpfs(folder: str) -> None:
    """Mount a small tmpfs that nobody else sees and that goes with this process; exit with NO_MOUNT if it may not."""
    system = ctypes.CDLL(None, use_errno=True)
    options = f"size={TMPFS_BYTES}".encode()
    steps = (
        lambda: system.unshare(CLONE_NEWNS),
        lambda: system.mount(b"none", b"/", None, MS_PRIVATE_REC, None),
        lambda: system.mount(b"none", folder.encode(), b"tmpfs", 0, options),
    )
    if any(step() != 0 for step in steps):
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        sys.exit(NO_MOUNT)


def fill(folder: Path, most: int) -> dict[str, object]:
    """A log, a log in segments (with at `most` so many records) and a file: fill, look, make room, go on."""
    from esper.durable.files import atomic_write
    from esper.durable.log import FramedLog, scan
    from esper.durable.log_format import Frame
    from esper.durable.segments import SegmentedLog, iterate_segments
    from esper.errors import StoreWriteFailed

    payloads, errors, told = [], [], {}
    path = folder / "a.log"
    with FramedLog.open(path) as log:
        while not errors:
            payload = b"%d " % len(payloads) + bytes(700)
            try:
                log.append(1, payload)
                payloads.append(payload)
            except StoreWriteFailed as error:
                errors.append(error.__cause__.strerror)
        told["log kept all"] = [frame.payload for frame in scan(path).frames] == payloads
        log.append(1, b"")  # what was written of the failed record was taken back: a small one has room
        told["log goes on"] = scan(path).frames[-1].payload == b"" and scan(path).torn_tail is None
    path.unlink()
    count = 0
    with SegmentedLog.open(folder, limit_bytes=3000) as segmented:
        while len(errors) < 2 and count < most:
            try:
                segmented.append(1, b"%d " % count + bytes(700))
                count += 1
            except StoreWriteFailed as error:
                errors.append(error.__cause__.strerror)
        held = [int(one.payload.split()[0]) for _, one in iterate_segments(folder) if isinstance(one, Frame)]
        told["segments kept all"] = held == list(range(count))
        told["segments made room"] = len(segmented.expire(count // 2)) > 0
        told["segments go on"] = segmented.append(1, bytes(700)) == count
    for name in sorted(os.listdir(folder)):
        (folder / name).unlink()
    atomic_write(folder / "whole", b"old")
    try:
        atomic_write(folder / "whole", bytes(2 * TMPFS_BYTES))
    except StoreWriteFailed as error:
        errors.append(error.__cause__.strerror)
    told["file is whole"] = (folder / "whole").read_bytes() == b"old" and os.listdir(folder) == ["whole"]
    return {"errors": errors, "acknowledged": len(payloads)} | told


def main(root: str, folder: str, limit_bytes: int) -> None:
    from killing import import_durable

    import_durable(root)
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    else:
        own_tmpfs(folder)
    print(json.dumps(fill(Path(folder), 60 if limit_bytes else 1000)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
