"""Mutants: changes of the source that break the durability protocol. Tests must fail with each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted mistake: in source file `module`, text `old` is replaced by `new`.

    Attributes:
        redundant: Why no test can fail with it: another safeguard has the same effect. Empty for all other mutants.
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
        "files: the temporary is renamed before it is synced",
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
        "files: the old file is removed before the new one has its name",
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
        "files: an existing file is replaced where the name must be new",
        "files",
        "    place = disk.rename if replace else disk.link\n",
        "    place = disk.rename\n",
    ),
    Mutant(
        "files: a short write counts as a whole one",
        "files",
        "        rest, offset = rest[written:], offset + written\n",
        "        break\n",
    ),
    # -- the log: appending
    Mutant(
        "log: an append is not synced",
        "log",
        "            if synced:\n                self._disk.fdatasync(self._descriptor)\n",
        "",
    ),
    Mutant(
        "log: an append is synced before it is written",
        "log",
        "            write_all(self._descriptor, data, self._end, self._disk)\n            syncing = synced\n"
        "            if synced:\n                self._disk.fdatasync(self._descriptor)\n",
        "            self._disk.fdatasync(self._descriptor)\n"
        "            write_all(self._descriptor, data, self._end, self._disk)\n",
    ),
    Mutant(
        "log: every second append is acknowledged unsynced",
        "log",
        "            if synced:\n                self._disk.fdatasync(self._descriptor)\n",
        "            if self._next % 2:\n                self._disk.fdatasync(self._descriptor)\n",
    ),
    Mutant("log: a sync does nothing", "log", "            if self._unsynced:\n", "            if False:\n"),
    Mutant(
        "log: a failed append is not truncated",
        "log",
        "            self._disk.truncate(self._descriptor, self._end)\n            if not syncing:\n",
        "            if not syncing:\n",
    ),
    Mutant(
        "log: the truncation after a failed append is not synced",
        "log",
        "            if not syncing:\n                self._disk.fsync(self._descriptor)\n",
        "",
    ),
    Mutant(
        "log: the truncation after a failed append is synced by fdatasync",
        "log",
        "            if not syncing:\n                self._disk.fsync(self._descriptor)\n",
        "            if not syncing:\n                self._disk.fdatasync(self._descriptor)\n",
    ),
    Mutant(
        "log: a failed sync is ignored",
        "log",
        "        if syncing:\n            self._failure = error\n",
        "",
    ),
    Mutant(
        "log: a failed sync is repeated",
        "log",
        "            if synced:\n                self._disk.fdatasync(self._descriptor)\n",
        "            try:\n                self._disk.fdatasync(self._descriptor)\n            except OSError:\n"
        "                self._disk.fdatasync(self._descriptor)\n",
    ),
    Mutant(
        "log: a failed truncation is ignored",
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
        "log: records of a killed writer are not synced",
        "log",
        "            self._disk.fsync(self._descriptor)\n            self._disk.sync_folder(self.path.parent)\n",
        "            self._disk.sync_folder(self.path.parent)\n",
    ),
    Mutant(
        "log: the name of a killed writer's file is not synced",
        "log",
        "            self._disk.fsync(self._descriptor)\n            self._disk.sync_folder(self.path.parent)\n",
        "            self._disk.fsync(self._descriptor)\n",
    ),
    Mutant("log: numbers are used twice", "log", "found.sequence + 1\n", "found.sequence\n"),
    Mutant(
        "log: the lock is not taken", "log", "            self._disk.lock(self._descriptor)\n", "            pass\n"
    ),
    # -- the log: the format
    Mutant("log: checksums start without a salt", "log_format", "    salt = secrets.randbits(64)\n", "    salt = 0\n"),
    Mutant(
        "log: checksums do not depend on the offset",
        "log_format",
        '    return crc32(struct.pack(">QQ", salt, offset))\n',
        '    return crc32(struct.pack(">QQ", salt, 0))\n',
    ),
    Mutant(
        "log: the checksum of a frame header is not checked",
        "log_format",
        "    if sealed != _CRC.pack(header_crc):\n",
        "    if False:\n",
    ),
    Mutant(
        "log: the checksum of a payload is not checked",
        "log_format",
        "    if trailer != _CRC.pack(crc32(payload, header_crc)):\n",
        "    if False:\n",
    ),
    Mutant(
        "log: the checksum of the file header is not checked",
        "log_format",
        "    if header_crc != _CRC.pack(crc32(fields)):\n",
        "    if False:\n",
    ),
    Mutant(
        "log: any length is accepted",
        "log_format",
        "    if length > PAYLOAD_LIMIT_BYTES:\n        return",
        "    if False:\n        return",
    ),
    Mutant(
        "log: a length beyond the end of the file is accepted", "log_format", "    if end > size:\n", "    if False:\n"
    ),
    Mutant(
        "log: a frame of a later version is read",
        "log_format",
        "    if version != _VERSION:  # not",
        "    if False:  # not",
    ),
    Mutant(
        "log: records after a damaged header are not read",
        "log_format",
        '        return "the checksum of the frame header is wrong", _next_magic(file, offset + 1, size)\n',
        '        return "the checksum of the frame header is wrong", size\n',
    ),
    # -- segments
    Mutant("segments: a closed segment is not synced", "segments", "        ended.sync()\n", ""),
    Mutant("segments: numbers restart at 0 in a new segment", "segments", "first=_first(path), disk", "first=0, disk"),
    Mutant(
        "segments: numbers restart at 0 in a reopened empty segment",
        "segments",
        "first=_first(last), disk",
        "first=0, disk",
    ),
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
        "segments: the last segment expires too",
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
        "segments: the last segment is rewritten too",
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
        "segments: a failed change of segments is ignored",
        "segments",
        "            self._failure = error\n",
        "",
    ),
    Mutant(
        "segments: temporary files of a killed writer are not removed",
        "segments",
        "            _sweep(folder, disk)\n",
        "",
    ),
    # -- streams
    Mutant(
        "streams: an existing file is replaced",
        "streams",
        "produce), disk.link, disk)",
        "produce), disk.rename, disk)",
    ),
    Mutant(
        "streams: an error that the producer catches is ignored",
        "streams",
        "        if self._failure is not None:  # the producer ignored the error\n            raise self._failure\n",
        "",
    ),
    Mutant("streams: the length is not checked", "streams", "    if found != length:\n", "    if False:\n"),
    Mutant(
        "streams: the checksum is not checked",
        "streams",
        "    if read != length or checksum != crc:\n",
        "    if False:\n",
    ),
    Mutant(
        "streams: the number of bytes read is not checked",
        "streams",
        "    if read != length or checksum != crc:\n",
        "    if checksum != crc:\n",
        redundant="a file that shrinks while it is read also fails its checksum, except with a chance of 1 in 2**32",
    ),
    Mutant(
        "streams: any name of an algorithm is accepted",
        "streams",
        "    if algorithm != ALGORITHM:\n",
        "    if False:\n",
    ),
    Mutant(
        "streams: the checksum covers the last part only", "streams", "_extend(self.crc, chunk)", "_extend(0, chunk)"
    ),
    Mutant(
        "streams: the file is returned at its end, not its start",
        "streams",
        '{crc:08x}")\n    file.seek(0)\n',
        '{crc:08x}")\n',
    ),
    Mutant(
        "streams: the file is opened again after the check",
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
        "checkpoints: no COMMIT",
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
        "            trainer.save(self._folder / file, states, incubation)\n",
        "            trainer.save(self._folder / file, states, incubation)\n"
        "            self._journal.write(RecordKind.CHECKPOINT_BEGUN, file=file, fence=fence)\n",
        redundant="a BEGIN only marks the place of its fence among the records",
    ),
    Mutant(
        "checkpoints: one file too few stays",
        "checkpoints",
        "self._committed[: -self.config.keep]",
        "self._committed[: 1 - self.config.keep]",
    ),
    Mutant("checkpoints: one file too many stays", "checkpoints", "[: -self.config.keep]", "[: -self.config.keep - 1]"),
    Mutant("checkpoints: fence 0 is dropped", "checkpoints", "if written.fence != 0]", "if True]"),
    Mutant(
        "checkpoints: a removal is not synced",
        "checkpoints",
        "        if paths:\n            sync_folder(self._folder, disk=self._disk)\n",
        "",
        redundant="a file that reappears is whole, is listed again and is dropped at the next COMMIT",
    ),
    Mutant(
        "checkpoints: the next save does not wait for the COMMIT",
        "checkpoints",
        "        self.settle()\n        began_s",
        "        began_s",
    ),
    Mutant(
        "checkpoints: a restore does not wait for the save in flight",
        "checkpoints",
        "        self.settle()\n        written, content",
        "        written, content",
    ),
    Mutant(
        "checkpoints: those after the restored one stay valid",
        "checkpoints",
        "        self._committed = [one for one in self._committed if one.fence <= written.fence]\n",
        "",
    ),
    Mutant(
        "checkpoints: the restored one is not valid",
        "checkpoints",
        "if one.fence <= written.fence]",
        "if one.fence < written.fence]",
    ),
    Mutant(
        "checkpoints: two generations use the same file name",
        "checkpoints",
        'f"fence-{fence}-g{self._journal.generation}.pt"',
        'f"fence-{fence}-g1.pt"',
    ),
    Mutant(
        "checkpoints: the sweep removes valid files too",
        "checkpoints",
        "if path.name not in kept]",
        'if not path.name.startswith("fence-0-")]',
    ),
    Mutant(
        "checkpoints: the sweep removes nothing",
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
        "saves: a save does not wait for the one before",
        "background_save",
        "        if self._writing is not None:\n            self._writing.result()\n        return self._copy",
        "        return self._copy",
        redundant="`Checkpoints` waits for the save in flight before it begins the next or loads anything",
    ),
    Mutant(
        "restore: the checksum is not checked",
        "checkpoint_file",
        "        with open_verified(path, length, crc, algorithm, disk=disk) as file:\n",
        "        with disk.reader(disk.open(path, 0), owned=True) as file:\n",
    ),
    Mutant(
        "restore: a damaged file is not moved",
        "checkpoint_file",
        "        _move(file, moved_to)\n",
        "        pass\n",
    ),
    Mutant(
        "restore: the intact file is moved to quarantine",
        "checkpoint_file",
        "refused.append(_reject(folder, written, error))",
        "refused.append(_reject(folder, commits[-2], error))",
    ),
    Mutant(
        "restore: a file that the disk cannot read is moved to quarantine",
        "checkpoint_file",
        "            if _trouble(error) in MACHINES:\n                raise\n            refused",
        "            refused",
    ),
    Mutant(
        "restore: a file that the disk cannot read stops it",
        "checkpoint_file",
        "            if _trouble(error) in MACHINES:\n                raise\n            refused",
        "            if _trouble(error) is not None:\n                raise\n            refused",
    ),
    Mutant(
        "restore: the quarantine folder is not synced",
        "checkpoint_file",
        "    sync_folder(moved_to.parent)\n    sync_folder(path.parent)\n",
        "    sync_folder(path.parent)\n",
    ),
    Mutant(
        "restore: the folder that a file was moved from is not synced",
        "checkpoint_file",
        "    sync_folder(moved_to.parent)\n    sync_folder(path.parent)\n",
        "    sync_folder(moved_to.parent)\n",
        redundant="its old name may reappear; then it is rejected and moved again",
    ),
    Mutant(
        "journal: SUPERSEDED has no lengths of older journals",
        "journal",
        "for number, end in self._ends.items()}",
        "for number, end in {}.items()}",
    ),
    Mutant(
        "journal: SUPERSEDED has only the length of the journal before",
        "journal",
        "for number, end in self._ends.items()}",
        "for number, end in self._ends.items() if number == self.generation - 1}",
    ),
    Mutant(
        "journal: a rollback continues in the old journal",
        "journal",
        "        self._log.close()\n        self._ends[self.generation] = self._log.size_bytes\n"
        "        self.generation += 1\n        self._log = FramedLog.open(journal_file("
        "self._run_dir, self.generation), epoch=self.generation)\n",
        "        self.generation += 1\n",
    ),
    Mutant(
        "journal: SUPERSEDED is written to the old journal",
        "journal",
        "        self._log.close()\n        self._ends[self.generation] = self._log.size_bytes\n"
        "        self.generation += 1\n        self._log = FramedLog.open(journal_file("
        "self._run_dir, self.generation), epoch=self.generation)\n        self._supersede(from_fence)\n",
        "        self._supersede(from_fence)\n        self._log.close()\n"
        "        self._ends[self.generation] = self._log.size_bytes\n        self.generation += 1\n"
        "        self._log = FramedLog.open(journal_file(self._run_dir, self.generation), epoch=self.generation)\n",
    ),
    Mutant(
        "history: the largest recorded length of a journal applies, not the smallest",
        "generations",
        "= min(length, valid.get(int(older), length))",
        "= max(length, valid.get(int(older), length))",
    ),
    Mutant("history: recorded lengths are ignored", "generations", "or e.end <= valid[generation]]", "or True]"),
    Mutant(
        "history: the record after the recorded length is valid",
        "generations",
        "e.end <= valid[generation]]",
        "e.offset <= valid[generation]]",
    ),
    Mutant(
        "history: the recorded length is applied to the journal before only",
        "generations",
        "if generation not in valid or",
        "if generation != max(valid, default=0) or",
    ),
    Mutant(
        "history: no record is taken back",
        "generations",
        "    return [*entries[:end], *(entry for entry in entries[end:] if _stays(entry, fence))], lost\n",
        "    return entries, lost\n",
    ),
    Mutant(
        "history: a COMMIT that came late is taken back",
        "generations",
        "    return committed_late or entry.kind",
        "    return entry.kind",
    ),
    Mutant(
        "history: the COMMIT of a later fence stays valid",
        "generations",
        'entry.kind is RecordKind.CHECKPOINT_COMMITTED and entry.body["fence"] <= fence',
        "entry.kind is RecordKind.CHECKPOINT_COMMITTED",
    ),
    Mutant(
        "history: a fence ends at its COMMIT",
        "generations",
        "(RecordKind.CHECKPOINT_BEGUN, RecordKind.CHECKPOINT_COMMITTED)",
        "(RecordKind.CHECKPOINT_COMMITTED, RecordKind.CHECKPOINT_BEGUN)",
    ),
    Mutant(
        "history: if a run begins again, all older records are valid",
        "generations",
        "        return [entry for entry in entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.SIGNAL)], "
        '""\n',
        '        return entries, ""\n',
    ),
    Mutant(
        "history: SUPERSEDED is looked for in the first record only",
        "generations",
        "for place, entry in enumerate(counted) if entry.kind is RecordKind.SUPERSEDED",
        "for place, entry in enumerate(counted[:1]) if entry.kind is RecordKind.SUPERSEDED",
        redundant="no record is written to a new journal before it",
    ),
    Mutant(
        "history: dropped checkpoints are listed",
        "history",
        "for one in commits if one.file in there)",
        "for one in commits)",
    ),
    Mutant(
        "history: the newest checkpoint is not listed if its file is missing",
        "history",
        "| ({one.file for one in due if not newest_lost} - put_aside)",
        "",
    ),
    Mutant(
        "history: of missing files only the newest is listed",
        "history",
        "commits[-1:] if in_doubt else retained(said, valid)",
        "commits[-1:]",
    ),
    Mutant(
        "history: files that retention drops are expected",
        "generations",
        "if one.fence == 0 or place >= 0]",
        "if True]",
    ),
    Mutant(
        "history: the file of fence 0 is not expected",
        "generations",
        "if one.fence == 0 or place >= 0]",
        "if place >= 0]",
    ),
    Mutant(
        "history: dropped files are expected again after later ones were taken back",
        "generations",
        "                due = [one for one in due if back_at is not None and one.fence <= back_at]\n",
        "                every = [CheckpointWritten.model_validate(e.body) for es in said.values() for e in es"
        " if e.kind is RecordKind.CHECKPOINT_COMMITTED]\n"
        "                due = [one for one in every if back_at is not None and one.fence <= back_at][-keep:]\n",
    ),
    Mutant(
        "history: damage within a recorded length counts as an interrupted append",
        "generations",
        "    return replace(damage, torn=False) if lasts else damage\n",
        "    return damage\n",
    ),
    Mutant(
        "history: a resume does not sync the journals",
        "history",
        "        sync_file(file)\n",
        "        pass\n",
    ),
    Mutant(
        "takeover: SUPERSEDED is written before a checkpoint was loaded",
        "takeover",
        "    journal.supersede(fence)\n",
        "    journal.supersede(past.commits[-1].fence if past.commits else None)\n",
    ),
    Mutant(
        "takeover: SUPERSEDED is never written",
        "takeover",
        "    journal.supersede(fence)\n",
        "    pass\n",
    ),
    Mutant(
        "takeover: files that are not valid are not removed",
        "takeover",
        "    if not past.damaged:",
        "    if False:",
    ),
    Mutant(
        "history: a missing journal is not noticed",
        "damage",
        "        if generation > expected:\n",
        "        if False:\n",
    ),
)
