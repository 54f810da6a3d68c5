"""The protocol `Sink`, and the function that makes the sinks of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from esper.emergency.file_sink import FileSink
from esper.emergency.settings import FileSinkConfig, SinkConfig
from esper.errors import ConfigError
from esper.leyline.signals import EmergencySignal

DEFAULT_FILE = "signals.jsonl"
"""Name of the file in `RUN/emergency/` for a file sink without a path."""


class Sink(Protocol):
    """Sends signals to people or programs outside of the run. The caller must not make two calls at once.

    Attributes:
        name: Name of the sink as a subscriber of the queue.
    """

    @property
    def name(self) -> str: ...

    async def send(self, signal: EmergencySignal) -> None:
        """Send a signal, and return when the receiver has confirmed it.

        The signal may have been sent before. The receiver recognizes a repeated signal by the `signal_id`. If the call
        is cancelled, the receiver may have the signal.

        Raises:
            SinkFailed: the receiver did not confirm the signal, but may have it.
        """
        ...


def make_sinks(configs: Sequence[SinkConfig], folder: Path, environment: Mapping[str, str]) -> tuple[Sink, ...]:
    """Make the sinks of a config, in its order. Addresses and tokens are read in this call. No connection is made.

    Args:
        folder: `RUN/emergency`. The folder need not exist yet.
        environment: The environment variables. `url_env` and `token_env` may name some of them.

    The file of a sink need not be possible now: a restarted process must keep the signals of a sink that is down.

    Raises:
        ConfigError: the file or variable of a secret is missing or not safe, or a secret is not valid. The error does
            not show the secret.
    """
    return tuple(_make(config, folder, environment) for config in configs)


def check_sinks(configs: Sequence[SinkConfig], environment: Mapping[str, str]) -> None:
    """Check that `make_sinks` can make these sinks, and that their files can be made. Nothing is written.

    Raises:
        ConfigError: as in `make_sinks`, or the file of a sink cannot be made.
    """
    make_sinks(configs, Path("/"), environment)
    for config in configs:
        if isinstance(config, FileSinkConfig) and config.path is not None:
            _check_file(Path(config.path), f"emergency.sinks.{config.name}.path")


def _make(config: SinkConfig, folder: Path, environment: Mapping[str, str]) -> Sink:
    if isinstance(config, FileSinkConfig):
        return FileSink(config.name, Path(config.path or folder / DEFAULT_FILE), config.total_s)
    from esper.emergency.webhook import WebhookSink  # imported here: httpx takes 0.1 s, and few runs have a webhook

    return WebhookSink(config, environment)


def _check_file(path: Path, field: str) -> None:
    """Raises: ConfigError: no file can be made at the path."""
    if not path.parent.is_dir():
        raise ConfigError(field, str(path), "there is no such folder; make it, or give another path")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(field, str(path), "it is not a regular file; give another path")
