"""The metrics of a whole run, from all its processes, and their endpoint for Prometheus if the config asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.archive.inspection import Endpoint
from esper.archive.run_directory import metrics_file
from esper.durable.files import atomic_write, make_folders
from esper.telemetry.event_tally import EventTally
from esper.telemetry.metric_snapshot import MetricSnapshot


class RunMetrics:
    """Adds up the metrics of the processes of a run. Any thread may call `now`."""

    def __init__(self) -> None:
        self._sources: tuple[Callable[[], MetricSnapshot], ...] = ()
        self._tally: EventTally | None = None
        self.url: str | None = None
        """The address for Prometheus. None: no endpoint was asked for."""

    def add(self, source: Callable[[], MetricSnapshot]) -> None:
        """Add a process, or a group of processes, by the function that returns its metrics."""
        self._sources = (*self._sources, source)

    def tally(self, telemetry: Path) -> None:
        """Count severe events in the log of this folder, too, from now on."""
        self._tally = EventTally(telemetry)

    def now(self) -> MetricSnapshot:
        """Return the present metrics of the run."""
        found = MetricSnapshot()
        for source in self._sources:
            found = found.plus(source())
        return found if self._tally is None else self._tally.raised(found)

    @contextmanager
    def told(self, path: Path) -> Iterator[None]:
        """Store the address in the run directory while the block runs, for `esper inspect`.

        Raises:
            StoreWriteFailed: the file cannot be written.
        """
        file = metrics_file(path)
        if self.url is None:
            file.unlink(missing_ok=True)  # a killed process of this run may have left it
            yield
            return
        make_folders(file.parent)
        atomic_write(file, Endpoint(url=self.url).model_dump_json().encode())
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@contextmanager
def run_metrics(host: str, port: int | None) -> Iterator[RunMetrics]:
    """Serve the metrics of a run until the block ends. `port` None: serve nothing; 0: a free port.

    Raises:
        ConfigError: the port cannot be used. Nothing was started.
    """
    metrics = RunMetrics()
    if port is None:
        yield metrics
        return
    from esper.telemetry.endpoint import MetricsEndpoint  # most runs need no HTTP server

    with MetricsEndpoint(host, port, metrics.now) as endpoint:
        metrics.url = endpoint.url
        yield metrics
