"""The file sink: appends each signal to a file as one line of JSON, and confirms it when the line is durable."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from esper.durable.files import DISK
from esper.emergency.wire import as_json
from esper.emergency.worker import Worker
from esper.errors import SinkFailed
from esper.leyline.signals import EmergencySignal
from esper.telemetry.file_exporter import append_line, open_for_append


class FileSink:
    """A `Sink` that writes one file. If a signal is sent twice, the file has two lines with the same `signal_id`.

    Args:
        path: Absolute path of the file. The folder must exist. The file is made if it is missing.
        total_s: Time limit in seconds for one signal, because a network file system may not answer.
    """

    def __init__(self, name: str, path: Path, total_s: float) -> None:
        self.name = name
        self._path, self._total_s = path, total_s
        self._hangs = False

    async def send(self, signal: EmergencySignal) -> None:
        """See `Sink`."""
        if self._hangs:
            raise SinkFailed(self.name, f"an earlier write to {self._path} has not returned")
        worker = Worker(f"esper sink {self.name}")
        try:
            async with asyncio.timeout(self._total_s):
                await worker.call(self._append, as_json(signal))
        except TimeoutError as error:
            raise SinkFailed(self.name, f"{self._path} could not be written in {self._total_s:g} s") from error
        except OSError as error:
            raise SinkFailed(self.name, f"{self._path} cannot be written: {error.strerror or error}") from error
        finally:
            worker.stop()

    def _append(self, line: str) -> None:
        self._hangs = True
        try:
            descriptor = open_for_append(self._path)
            try:
                is_new = os.fstat(descriptor).st_size == 0
                append_line(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                DISK.sync_folder(self._path.parent)
        finally:
            self._hangs = False
