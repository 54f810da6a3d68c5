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
    Mutant(
        "files: the temporary is not synced",
        "files",
        "        fill(descriptor)\n        disk.fsync(descriptor)\n",
        "        fill(descriptor)\n",
    ),
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
    Mutant(
        "files: the folder is not synced",
        "files",
        "    disk.sync_folder(path.parent)\n\n\ndef _fill",
        "\n\ndef _fill",
    ),
    Mutant(
        "files: the folder is synced before the rename",
        "files",
        "        place(temporary, path)\n    disk.sync_folder(path.parent)\n",
        "        disk.sync_folder(path.parent)\n        place(temporary, path)\n",
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
    Mutant(
        "files: a temporary is left behind",
        "files",
        "    with at_the_end(lambda: disk.unlink(temporary), ",
        "    with at_the_end(lambda: None, ",
    ),
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

# -- what keeps a run: checkpoints, journals, generations

RUN_MUTANTS = (
    Mutant(
        "checkpoints: the oldest is dropped before the COMMIT",
        "checkpoints",
        "            self._journal.write(RecordKind.CHECKPOINT_COMMITTED, written)\n"
        "            self._committed.append(written)\n            self._drop_old()\n",
        "            self._committed.append(written)\n            self._drop_old()\n"
        "            self._journal.write(RecordKind.CHECKPOINT_COMMITTED, written)\n",
    ),
    Mutant(
        "checkpoints: a fence is not committed",
        "checkpoints",
        "            self._journal.write(RecordKind.CHECKPOINT_COMMITTED, written)\n",
        "            if written.fence != 1:\n"
        "                self._journal.write(RecordKind.CHECKPOINT_COMMITTED, written)\n",
    ),
    Mutant(
        "checkpoints: no BEGIN",
        "checkpoints",
        "            self._journal.write(RecordKind.CHECKPOINT_BEGUN, file=file, fence=fence)\n",
        "",
    ),
    Mutant(
        "checkpoints: BEGIN comes after the save",
        "checkpoints",
        "            self._journal.write(RecordKind.CHECKPOINT_BEGUN, file=file, fence=fence)\n"
        "            trainer.save(self._folder / file, rooms, nursery)\n",
        "            trainer.save(self._folder / file, rooms, nursery)\n"
        "            self._journal.write(RecordKind.CHECKPOINT_BEGUN, file=file, fence=fence)\n",
        redundant="it marks where the fence lies among the records, and nothing is looked for that was only begun",
    ),
    Mutant(
        "checkpoints: one less is kept",
        "checkpoints",
        "self._committed[: -self.config.keep]",
        "self._committed[: 1 - self.config.keep]",
    ),
    Mutant("checkpoints: one more is kept", "checkpoints", "[: -self.config.keep]", "[: -self.config.keep - 1]"),
    Mutant("checkpoints: fence 0 is dropped", "checkpoints", "if written.fence != 0]", "if True]"),
    Mutant(
        "checkpoints: a removal is not synced",
        "checkpoints",
        "        if paths:\n            sync_folder(self._folder, disk=self._disk)\n",
        "",
        redundant="a file that comes back is whole, is told again and is dropped at the next COMMIT",
    ),
    Mutant(
        "checkpoints: the next save does not wait for the COMMIT",
        "checkpoints",
        '        self.settle()\n        file = f"',
        '        file = f"',
    ),
    Mutant(
        "checkpoints: a restore does not wait for the save in flight",
        "checkpoints",
        "        self.settle()\n        written, content",
        "        written, content",
    ),
    Mutant(
        "checkpoints: those after the one that was restored are still counted",
        "checkpoints",
        "        self._committed = [one for one in self._committed if one.fence <= written.fence]\n",
        "",
    ),
    Mutant(
        "checkpoints: the one that was restored is not counted",
        "checkpoints",
        "if one.fence <= written.fence]",
        "if one.fence < written.fence]",
    ),
    Mutant(
        "checkpoints: two generations give one name",
        "checkpoints",
        'f"fence-{fence}-g{self._journal.generation}.pt"',
        'f"fence-{fence}-g1.pt"',
    ),
    Mutant(
        "checkpoints: what was kept is swept away, too",
        "checkpoints",
        "if path.name not in kept]",
        'if not path.name.startswith("fence-0-")]',
    ),
    Mutant(
        "checkpoints: nothing is swept away",
        "checkpoints",
        "if path.name not in kept]",
        "if False]",
    ),
    Mutant(
        "saves: committed before it is durable",
        "checkpoint_file",
        "stream), disk=disk)",
        'stream), disk=type("Lazy", (Disk,), {"fsync": lambda *_: None})())',
    ),
    Mutant(
        "saves: committed before its name is durable",
        "checkpoint_file",
        "stream), disk=disk)",
        'stream), disk=type("Lazy", (Disk,), {"sync_folder": lambda *_: None})())',
    ),
    Mutant(
        "saves: the next does not wait for the one before",
        "background_save",
        "        if self._writing is not None:\n            self._writing.result()\n        return self._arena",
        "        return self._arena",
        redundant="`Checkpoints` settles the save in flight before it has the next begun, or anything loaded",
    ),
    Mutant(
        "restore: the checksum is not looked at",
        "checkpoint_file",
        "        with open_verified(path, length, crc, algorithm, disk=disk) as file:\n",
        "        with disk.reader(disk.open(path, 0), owned=True) as file:\n",
    ),
    Mutant(
        "restore: the damaged one stays where it is",
        "checkpoint_file",
        "        _quarantine(folder / written.file)\n",
        "        pass\n",
    ),
    Mutant(
        "restore: the good one is put aside",
        "checkpoint_file",
        "refused.append(_reject(folder, written, error))",
        "refused.append(_reject(folder, commits[-2], error))",
    ),
    Mutant(
        "restore: what the system could not read is put aside",
        "checkpoint_file",
        "            if _trouble(error) in MACHINES:\n                raise\n            refused",
        "            refused",
    ),
    Mutant(
        "restore: what the disk cannot read stops it",
        "checkpoint_file",
        "            if _trouble(error) in MACHINES:\n                raise\n            refused",
        "            if _trouble(error) is not None:\n                raise\n            refused",
    ),
    Mutant(
        "restore: quarantine is not synced",
        "checkpoint_file",
        "    sync_folder(folder)\n    sync_folder(path.parent)\n",
        "    sync_folder(path.parent)\n",
    ),
    Mutant(
        "restore: that it was put aside is not synced",
        "checkpoint_file",
        "    sync_folder(folder)\n    sync_folder(path.parent)\n",
        "    sync_folder(folder)\n",
        redundant="its old name may come back; then it is refused and put aside once more",
    ),
    Mutant(
        "journal: the lengths of the older ones are not told",
        "journal",
        "for number, end in self._ends.items()}",
        "for number, end in {}.items()}",
    ),
    Mutant(
        "journal: only the length of the one before is told",
        "journal",
        "for number, end in self._ends.items()}",
        "for number, end in self._ends.items() if number == self.generation - 1}",
    ),
    Mutant(
        "journal: who is taken back goes on in the old one",
        "journal",
        "        self._log.close()\n        self._ends[self.generation] = self._log.size_bytes\n"
        "        self.generation += 1\n        self._log = FramedLog.open(journal_file("
        "self._run_dir, self.generation), epoch=self.generation)\n",
        "        self.generation += 1\n",
    ),
    Mutant(
        "journal: what is taken over is said in the old one",
        "journal",
        "        self._log.close()\n        self._ends[self.generation] = self._log.size_bytes\n"
        "        self.generation += 1\n        self._log = FramedLog.open(journal_file("
        "self._run_dir, self.generation), epoch=self.generation)\n        self._supersede(from_fence)\n",
        "        self._supersede(from_fence)\n        self._log.close()\n"
        "        self._ends[self.generation] = self._log.size_bytes\n        self.generation += 1\n"
        "        self._log = FramedLog.open(journal_file(self._run_dir, self.generation), epoch=self.generation)\n",
    ),
    Mutant(
        "history: the last to take over says what counts",
        "history",
        "= min(length, valid.get(int(older), length))",
        "= max(length, valid.get(int(older), length))",
    ),
    Mutant("history: lengths are not looked at", "history", "or e.end <= valid[generation]]", "or True]"),
    Mutant(
        "history: the record behind the end counts",
        "history",
        "e.end <= valid[generation]]",
        "e.offset <= valid[generation]]",
    ),
    Mutant(
        "history: only the one before is cut to its length",
        "history",
        "if generation not in valid or",
        "if generation != max(valid, default=0) or",
    ),
    Mutant(
        "history: nothing is taken back",
        "history",
        "    return [*entries[:end], *(entry for entry in entries[end:] if _stays(entry, fence))], lost\n",
        "    return entries, lost\n",
    ),
    Mutant(
        "history: a COMMIT that came late is taken back",
        "history",
        "    return committed_late or entry.kind",
        "    return entry.kind",
    ),
    Mutant(
        "history: the COMMIT of a later fence stays",
        "history",
        'entry.kind is RecordKind.CHECKPOINT_COMMITTED and entry.body["fence"] <= fence',
        "entry.kind is RecordKind.CHECKPOINT_COMMITTED",
    ),
    Mutant(
        "history: a fence ends at its COMMIT",
        "history",
        "(RecordKind.CHECKPOINT_BEGUN, RecordKind.CHECKPOINT_COMMITTED)",
        "(RecordKind.CHECKPOINT_COMMITTED, RecordKind.CHECKPOINT_BEGUN)",
    ),
    Mutant(
        "history: where it goes on from nothing, all counts",
        "history",
        "        return [entry for entry in entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.SIGNAL)], "
        '""\n',
        '        return entries, ""\n',
    ),
    Mutant(
        "history: what is taken over is said in the first record only",
        "history",
        "for place, entry in enumerate(counted) if entry.kind is RecordKind.SUPERSEDED",
        "for place, entry in enumerate(counted[:1]) if entry.kind is RecordKind.SUPERSEDED",
        redundant="a journal writes it in one piece with its making, or not at all",
    ),
    Mutant(
        "history: what was dropped is told",
        "history",
        "for one in commits if one.file in there)",
        "for one in commits)",
    ),
    Mutant(
        "history: the newest is not told if it is missing",
        "history",
        "| ({one.file for one in due if not newest_lost} - put_aside)",
        "",
    ),
    Mutant(
        "history: of what is missing only the newest is told",
        "history",
        "commits[-1:] if in_doubt else _due(said, valid)",
        "commits[-1:]",
    ),
    Mutant(
        "history: what retention drops should be there",
        "history",
        "if one.fence == 0 or place >= 0]",
        "if True]",
    ),
    Mutant(
        "history: fence 0 need not be there",
        "history",
        "if one.fence == 0 or place >= 0]",
        "if place >= 0]",
    ),
    Mutant(
        "history: what was dropped should be there again after later ones were taken back",
        "history",
        "                due = [one for one in due if back_at is not None and one.fence <= back_at]\n",
        "                every = committed(entry for entries in said.values() for entry in entries)\n"
        "                due = [one for one in every if back_at is not None and one.fence <= back_at][-keep:]\n",
    ),
    Mutant(
        "history: rot at the end of a journal that was succeeded passes for a torn end",
        "history",
        "    return replace(damage, torn=False) if lasts else damage\n",
        "    return damage\n",
    ),
    Mutant(
        "history: who goes on does not make durable what it goes on from",
        "history",
        "        sync_file(file)\n",
        "        pass\n",
    ),
    Mutant(
        "takeover: it is said from where before it is known what loads",
        "takeover",
        "    journal.supersede(fence)\n",
        "    journal.supersede(past.commits[-1].fence if past.commits else None)\n",
    ),
    Mutant(
        "takeover: it is never said",
        "takeover",
        "    journal.supersede(fence)\n",
        "    pass\n",
    ),
    Mutant(
        "takeover: nothing is swept away",
        "takeover",
        "    if not past.damaged:",
        "    if False:",
    ),
    Mutant(
        "history: a journal that is missing is not missed",
        "history",
        "        if generation > expected:\n",
        "        if False:\n",
    ),
)
