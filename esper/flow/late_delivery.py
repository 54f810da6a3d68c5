"""Sends the emergency signals that the sinks of an ended run have not confirmed. The run itself is not resumed."""

from __future__ import annotations

import os
from pathlib import Path

from esper.archive.identity import Identity
from esper.archive.run_directory import emergency_folder, telemetry_folder
from esper.config.joined import RunConfig
from esper.emergency.emergency_service import EmergencyService
from esper.emergency.hosting import hosted
from esper.emergency.reading import QUEUE, read_queue
from esper.emergency.settings import CONDUCTOR
from esper.emergency.sinks import check_sinks
from esper.emergency.undelivered import report_undelivered, undelivered
from esper.emergency.unread_requests import report_unread
from esper.emergency.word import EmergencyWord
from esper.flow.progress import Progress
from esper.telemetry.context import use
from esper.telemetry.setup import Telemetry


def deliver_the_rest(path: Path, identity: Identity, config: RunConfig, progress: Progress) -> None:
    """Deliver signals for at most `emergency.drain_s` seconds. Then report the signals that sinks have not confirmed.

    If no signal waits for a sink, nothing is written. The requests in the inbox are not carried out, but reported.

    Args:
        path: The run directory, absolute. This process has its lease.

    Raises:
        ConfigError: a sink cannot be made.
        StoreCorrupt: the queue cannot be read.
        StoreWriteFailed: a delivery could not be recorded.
    """
    folder = emergency_folder(path)
    for line in report_unread(folder):
        progress.found(line)
    if not _waits_for_a_sink(folder):
        return
    check_sinks(config.emergency.sinks, os.environ)
    files = telemetry_folder(path) if config.telemetry.enabled else None
    with (
        Telemetry.start(files, "conductor", identity.run_id) as telemetry,
        use(telemetry),
        EmergencyWord.in_memory() as word,
    ):
        service = EmergencyService.open(
            folder,
            word,
            config.emergency,
            run_id=identity.run_id,
            generation=identity.generation,
            environment=os.environ,
        )
        with hosted(service, config.emergency.drain_s, report_undelivered, reads_inbox=False):
            pass
    for line in undelivered(folder, finished=True):
        progress.found(line)


def _waits_for_a_sink(folder: Path) -> bool:
    """Return whether the queue has a delivery to a sink that is not a dead letter."""
    if not (folder / QUEUE).is_dir():
        return False
    return any(
        delivery.dead is None and name != CONDUCTOR
        for held in read_queue(folder / QUEUE).waiting()
        for name, delivery in held.waiting.items()
    )
