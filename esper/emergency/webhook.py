"""The webhook: sends each signal by an HTTP POST request, and confirms it when the server has answered with a 2xx code.

The address and the token are secrets, and so is the address of a proxy with a user name. Exceptions and log lines of
httpx may show these secrets. So no error contains the text of such an exception, and httpx logs nothing while a webhook
sends.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from urllib.parse import quote

import httpx

from esper.emergency.settings import WebhookSinkConfig
from esper.emergency.sink_secrets import read_address, read_proxy, read_token
from esper.emergency.wire import as_json
from esper.errors import SinkFailed, causes
from esper.leyline.signals import EmergencySignal

MOST_ANSWER_BYTES = 65_536
"""At most this number of bytes of an answer are read."""
LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")
"""Every logger of httpx 0.28 and httpcore 1.0."""


class WebhookSink:
    """A `Sink` that posts to one address.

    It opens a new connection for each signal, because the server may have closed an older connection. The header
    `Idempotency-Key` has the id of the signal. Characters that HTTP does not allow are percent-encoded.

    Raises:
        ConfigError: the address or the token cannot be read or used.
    """

    def __init__(self, config: WebhookSinkConfig, environment: Mapping[str, str]) -> None:
        self.name = config.name
        self._config = config
        self._address, token = read_address(config, environment), read_token(config, environment)
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # a small compressed answer may expand to a large one
            "User-Agent": f"esper/{version('esper-runtime')}",
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
        }
        self._tls = httpx.create_ssl_context()
        self._proxy = self._made_proxy(read_proxy(config, environment))
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_not_ours)

    def _made_proxy(self, address: str | None) -> httpx.Proxy | None:
        if address is None:
            return None
        is_secure = address.lower().startswith("https:")  # httpcore refuses a TLS context for a proxy without TLS
        return httpx.Proxy(address, ssl_context=self._tls if is_secure else None)

    async def send(self, signal: EmergencySignal) -> None:
        """See `Sink`. Redirects are not followed, because another server would get the signal and the token."""
        with _unlogged():
            why = await self._failure(signal)
        if why:  # if raised in `except`, its context would be an error of httpx
            raise SinkFailed(self.name, why)

    async def _failure(self, signal: EmergencySignal) -> str:
        """Send a signal. Return why the server did not confirm the signal. Return an empty text if the server confirmed
        it.
        """
        try:
            async with asyncio.timeout(self._config.total_s):
                return _refused(await self._post(signal))
        except TimeoutError:
            return f"no complete answer within {self._config.total_s:g} s"
        except Exception as error:  # no answer of a server may stop a run
            return self._in_words(error)

    async def _post(self, signal: EmergencySignal) -> int:
        """Send a signal, read the answer up to `MOST_ANSWER_BYTES`, and return its status code."""
        headers = {**self._headers, "Idempotency-Key": quote(signal.signal_id, safe="-._~:/@+=,;!*()[]{}|")}
        limits = httpx.Timeout(self._config.read_s, connect=self._config.connect_s)
        async with (
            httpx.AsyncClient(
                trust_env=False, proxy=self._proxy, verify=self._tls, timeout=limits, follow_redirects=False
            ) as client,
            client.stream("POST", self._address, headers=headers, content=as_json(signal)) as answer,
        ):
            read = 0
            async for part in answer.aiter_raw():
                read += len(part)
                if read > MOST_ANSWER_BYTES:
                    break
            return answer.status_code

    def _in_words(self, error: Exception) -> str:
        match error:
            case httpx.ConnectTimeout():
                return f"no connection within {self._config.connect_s:g} s"
            case httpx.TimeoutException():
                return f"nothing was sent or received for {self._config.read_s:g} s"
            case httpx.RemoteProtocolError() | httpx.ReadError():
                return "the server closed the connection before its answer was complete, or its answer is not HTTP"
            case httpx.ProxyError():
                return "the proxy did not open a connection to the server"
        for found in (one for cause in causes(error) for one in (cause, cause.__context__)):
            if isinstance(found, ssl.SSLError):
                return f"no secure connection: {found.reason}"
        return f"the {'server' if self._proxy is None else 'proxy'} cannot be reached ({type(error).__name__})"


def _refused(status: int) -> str:
    """Return why an answer with this status is not a confirmation. Return an empty text if it is a confirmation."""
    if 200 <= status < 300:
        return ""
    return f"the server answered {status}" + (" (redirects are not followed)" if 300 <= status < 400 else "")


_sending: ContextVar[bool] = ContextVar("esper_webhook_sends", default=False)


def _not_ours(record: logging.LogRecord) -> bool:
    """Return false for a record that is logged while a webhook sends. Other users of httpx still log."""
    del record
    return not _sending.get()


@contextmanager
def _unlogged() -> Iterator[None]:
    token = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(token)
