"""Ways to get the protocol wrong, each as a change of the source. What kills them is found in test_mutants.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A version of the room with a mistake in it.

    Attributes:
        redundant: Why nothing can kill it, if it is only a second safeguard; else empty.
    """

    name: str
    module: str
    old: str
    new: str
    redundant: str = ""


MUTANTS = (
    # -- whole files
    Mutant("files: the temporary is not synced", "files", "        disk.fsync(descriptor)\n", ""),
    Mutant(
        "files: the temporary is synced before it is written",
        "files",
        "        fill(descriptor)\n        disk.fsync(descriptor)\n",
        "        disk.fsync(descriptor)\n        fill(descriptor)\n",
    ),
    Mutant(
        "files: the temporary is placed before it is synced",
        "files",
        "        _fill_synced(temporary, fill, disk)\n        place(temporary, path)\n",
        "        descriptor = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)\n        fill(descriptor)\n"
        "        place(temporary, path)\n        disk.fsync(descriptor)\n        disk.close(descriptor)\n",
    ),
    Mutant("files: the folder is not synced", "files", "    disk.sync_folder(path.parent)\n", ""),
    Mutant(
        "files: the folder is synced before the rename",
        "files",
        "        place(temporary, path)\n    finally:\n        disk.unlink(temporary)\n"
        "    disk.sync_folder(path.parent)\n",
        "        disk.sync_folder(path.parent)\n        place(temporary, path)\n    finally:\n"
        "        disk.unlink(temporary)\n",
    ),
    Mutant(
        "files: the old file is removed before the new one is placed",
        "files",
        "        place(temporary, path)\n",
        "        if place == disk.rename:\n            disk.unlink(path)\n        place(temporary, path)\n",
    ),
    Mutant(
        "files: written in place",
        "files",
        "    place = disk.rename if replace else disk.link\n    try:\n        publish(path, lambda descriptor:"
        " write_all(descriptor, data, 0, disk), place, disk)\n",
        "    if not replace and disk.exists(path):\n        raise StoreWriteFailed(str(path), '') from"
        " FileExistsError()\n    try:\n        descriptor = disk.open(path, os.O_WRONLY | os.O_CREAT)\n"
        "        disk.truncate(descriptor, 0)\n        write_all(descriptor, data, 0, disk)\n"
        "        disk.fsync(descriptor)\n        disk.close(descriptor)\n        disk.sync_folder(path.parent)\n",
    ),
    Mutant("files: a temporary is left behind", "files", "        disk.unlink(temporary)\n", "        pass\n"),
    Mutant(
        "files: a name that is taken is given away",
        "files",
        "    place = disk.rename if replace else disk.link\n",
        "    place = disk.rename\n",
    ),
    Mutant(
        "files: a short write is taken for a whole one",
        "files",
        "        rest, offset = rest[written:], offset + written\n",
        "        break\n",
    ),
    # -- the log: appending
    Mutant("log: an append is not synced", "log", "            self._disk.fdatasync(self._descriptor)\n", ""),
    Mutant(
        "log: an append is synced before it is written",
        "log",
        "            write_all(self._descriptor, data, self._end, self._disk)\n            syncing = True\n"
        "            self._disk.fdatasync(self._descriptor)\n",
        "            self._disk.fdatasync(self._descriptor)\n"
        "            write_all(self._descriptor, data, self._end, self._disk)\n",
    ),
    Mutant(
        "log: every second append is acknowledged unsynced",
        "log",
        "            self._disk.fdatasync(self._descriptor)\n",
        "            if self._next % 2:\n                self._disk.fdatasync(self._descriptor)\n",
    ),
    Mutant(
        "log: a failed append is not cut off",
        "log",
        "            self._disk.truncate(self._descriptor, self._end)\n            if not syncing:\n",
        "            if not syncing:\n",
    ),
    Mutant(
        "log: the cutting off of a failed append is not synced",
        "log",
        "            if not syncing:\n                self._disk.fsync(self._descriptor)\n",
        "",
    ),
    Mutant(
        "log: the cutting off of a failed append is synced without its length",
        "log",
        "            if not syncing:\n                self._disk.fsync(self._descriptor)\n",
        "            if not syncing:\n                self._disk.fdatasync(self._descriptor)\n",
    ),
    Mutant(
        "log: a failed sync is forgotten",
        "log",
        "        if syncing:\n            self._failure = error\n",
        "",
    ),
    Mutant(
        "log: a failed sync is tried again",
        "log",
        "            self._disk.fdatasync(self._descriptor)\n",
        "            try:\n                self._disk.fdatasync(self._descriptor)\n            except OSError:\n"
        "                self._disk.fdatasync(self._descriptor)\n",
    ),
    Mutant(
        "log: a failure to cut off is forgotten",
        "log",
        "            self._failure = error\n            error.add_note(",
        "            error.add_note(",
    ),
    # -- the log: opening
    Mutant(
        "log: a torn tail is not cut off",
        "log",
        "            if self.torn_tail:\n                self._disk.truncate(self._descriptor, self._end)\n",
        "",
    ),
    Mutant(
        "log: what a dead writer left is not synced",
        "log",
        "            self._disk.fsync(self._descriptor)\n            self._disk.sync_folder(self.path.parent)\n",
        "            self._disk.sync_folder(self.path.parent)\n",
    ),
    Mutant(
        "log: the name that a dead writer left is not synced",
        "log",
        "            self._disk.fsync(self._descriptor)\n            self._disk.sync_folder(self.path.parent)\n",
        "            self._disk.fsync(self._descriptor)\n",
    ),
    Mutant("log: numbers are given twice", "log", "found.sequence + 1\n", "found.sequence\n"),
    Mutant(
        "log: the lock is not taken", "log", "            self._disk.lock(self._descriptor)\n", "            pass\n"
    ),
    # -- the log: the format
    Mutant("log: no salt", "log", "    salt = secrets.randbits(64)\n", "    salt = 0\n"),
    Mutant(
        "log: checksums do not depend on the place",
        "log",
        '    return crc32(struct.pack(">QQ", salt, offset))\n',
        '    return crc32(struct.pack(">QQ", salt, 0))\n',
    ),
    Mutant(
        "log: the header's checksum is not looked at",
        "log",
        "    if sealed != _CRC.pack(header_crc):\n",
        "    if False:\n",
    ),
    Mutant(
        "log: the payload's checksum is not looked at",
        "log",
        "    if trailer != _CRC.pack(crc32(payload, header_crc)):\n",
        "    if False:\n",
    ),
    Mutant(
        "log: the file header's checksum is not looked at",
        "log",
        "    if header_crc != _CRC.pack(crc32(fields)):\n",
        "    if False:\n",
    ),
    Mutant(
        "log: any length is accepted",
        "log",
        "    if length > PAYLOAD_LIMIT_BYTES:\n        return",
        "    if False:\n        return",
    ),
    Mutant("log: a length beyond the end is believed", "log", "    if end > size:\n", "    if False:\n"),
    Mutant("log: a later version's frame is read", "log", "    if version != _VERSION:  # not", "    if False:  # not"),
    Mutant(
        "log: after a damaged header the rest is given up",
        "log",
        '        return "the checksum of the frame header is wrong", _next_magic(file, offset + 1, size)\n',
        '        return "the checksum of the frame header is wrong", size\n',
    ),
    # -- segments
    Mutant("segments: numbers begin anew", "segments", "first=_first(path), disk", "first=0, disk"),
    Mutant("segments: a reopened empty segment begins anew", "segments", "first=_first(last), disk", "first=0, disk"),
    Mutant("segments: the lease is not taken", "segments", "        lease.acquire()\n", ""),
    Mutant(
        "segments: a segment expires by its first record",
        "segments",
        "if _first(following) <= before]",
        "if _first(path) < before]",
    ),
    Mutant(
        "segments: a segment with the first record to keep expires",
        "segments",
        "if _first(following) <= before]",
        "if _first(following) <= before + 1]",
    ),
    Mutant(
        "segments: the last segment expires, too",
        "segments",
        "        _remove(old, self._disk)\n        return old",
        "        old += [one for one in present[-1:] if self.next_sequence <= before]\n"
        "        _remove(old, self._disk)\n        return old",
    ),
    Mutant("segments: a removal is not synced", "segments", "    sync_folder(paths[0].parent, disk=disk)\n", ""),
    Mutant(
        "segments: the old segment is removed before it is rewritten",
        "segments",
        "            atomic_write(path, image(kept, epoch=epoch), disk=self._disk)\n",
        "            _remove([path], self._disk)\n"
        "            atomic_write(path, image(kept, epoch=epoch), disk=self._disk)\n",
    ),
    Mutant(
        "segments: the segment that grows is rewritten, too",
        "segments",
        "            if path == self._active.path:\n                break\n",
        "",
    ),
    Mutant(
        "segments: a damaged segment is rewritten",
        "segments",
        "            if found.errors or found.torn_tail:\n",
        "            if False:\n",
    ),
    Mutant(
        "segments: a failed change of segments is forgotten",
        "segments",
        "            self._failure = error\n",
        "",
    ),
    Mutant("segments: temporary files of the dead stay", "segments", "            _sweep(folder, disk)\n", ""),
    # -- streams
    Mutant(
        "streams: a name that is taken is given away",
        "streams",
        "produce), disk.link, disk)",
        "produce), disk.rename, disk)",
    ),
    Mutant(
        "streams: an error that the producer hides is forgotten",
        "streams",
        "        if self._failure is not None:  # the producer took no notice\n            raise self._failure\n",
        "",
    ),
    Mutant("streams: the length is not looked at", "streams", "    if found != length:\n", "    if False:\n"),
    Mutant(
        "streams: the checksum is not looked at",
        "streams",
        "    if read != length or checksum != crc:\n",
        "    if False:\n",
    ),
    Mutant(
        "streams: the length that was read is not looked at",
        "streams",
        "    if read != length or checksum != crc:\n",
        "    if checksum != crc:\n",
        redundant="a file that shrinks while it is read also fails its checksum, but for one chance in 2**32",
    ),
    Mutant("streams: any algorithm is believed", "streams", "    if algorithm != ALGORITHM:\n", "    if False:\n"),
    Mutant(
        "streams: only the last part is under the checksum", "streams", "_extend(self.crc, chunk)", "_extend(0, chunk)"
    ),
    Mutant("streams: returned at its end", "streams", '{crc:08x}")\n    file.seek(0)\n', '{crc:08x}")\n'),
    Mutant(
        "streams: opened again after the check",
        "streams",
        "    return file\n\n\nclass",
        "    file.close()\n    return _open(path, disk)\n\n\nclass",
    ),
)
