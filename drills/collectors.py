"""Collectors of telemetry that are down, and the environment that names one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from esper.archive.inspection import Endpoint
from esper.archive.run_directory import metrics_file
from esper.archive.summary import Summary
from esper.flow.progress import Quiet
from esper.setup.survey import Survey
from esper.telemetry.context import current
from esper.telemetry.exposition import prometheus_name
from esper.telemetry.setup import Telemetry

SETTINGS = {"telemetry.prometheus_port": 0}
"""Config values with which a run shows its metrics on a free port."""
WAIT_S = 10.0


@contextmanager
def collector_down(*, silent: bool) -> Iterator[None]:
    """Send the telemetry of this process's runs to a collector that is down, until the block ends.

    Args:
        silent: True: the collector accepts connections and never answers. False: it refuses connections.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not silent:
            server.close()
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "300",
            "OTEL_BSP_SCHEDULE_DELAY": "20",  # spans are exported during the whole run
        }
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class ReadsLosses(Quiet):
    """Progress of a run in one process that reads at its end how many spans were lost, as Prometheus does.

    The exporter still works then. After the run, `in_all` has the final count.
    """

    def __init__(self) -> None:
        self.lost: int | None = None
        """None: not read."""
        self._path = Path()
        self._telemetry: Telemetry | None = None

    @property
    def in_all(self) -> int | None:
        """Number of lost spans, counted by the telemetry of the run. None: the run did not reach its end."""
        return self._telemetry.counters.total("esper.spans.lost") if self._telemetry is not None else None

    def started(self, survey: Survey, path: Path) -> None:
        """Keep the directory of the run."""
        del survey
        self._path = path

    def ended(self, result: Summary) -> None:
        """Read the count."""
        del result
        self._telemetry = current()
        url = Endpoint.model_validate_json(metrics_file(self._path).read_text()).url
        with urlopen(url, timeout=WAIT_S) as answer:
            page = answer.read().decode()
        name = prometheus_name("esper.spans.lost")
        lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
        self.lost = sum(round(float(value)) for series, _, value in lines if series.partition("{")[0] == name)
