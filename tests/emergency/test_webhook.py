"""A webhook against a real server that accepts, refuses, hangs, lies, breaks off; and what is seen of its secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import traceback
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from servers import Answer, by_drops, never, says, serving, without_end

from esper.emergency.settings import WebhookSinkConfig
from esper.emergency.webhook import LOGGERS, WebhookSink
from esper.errors import ConfigError, SinkFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, telling

TOKEN = "t0ken-of-the-hook"
PASSWORD = "pass-of-the-proxy"


def signal(signal_id: str = "one") -> EmergencySignal:
    return EmergencySignal(
        signal_id=signal_id, run_id="run", generation=1, level=Level.HALT, origin="test", reason="why", issued_at=EPOCH
    )


def hook(address: str, **given: Any) -> WebhookSink:
    config = WebhookSinkConfig(name="hook", kind="webhook", url_env="ADDRESS", token_env="TOKEN", **given)
    return WebhookSink(config, {"ADDRESS": address, "TOKEN": TOKEN})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


async def why(sink: WebhookSink) -> str:
    with pytest.raises(SinkFailed) as failed:
        await sink.send(signal())
    assert (failed.value.sink, failed.value.__cause__, failed.value.__context__) == ("hook", None, None)
    return failed.value.why


async def test_a_signal_is_posted_once_as_json_with_its_id_and_the_token() -> None:
    async with serving() as server:
        await hook(server.address).send(signal("one"))
    (request,) = server.requests
    assert request.line == "POST /T0/secret-path HTTP/1.1"
    assert request.headers["Idempotency-Key"] == "one"
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    body = json.loads(request.body)
    assert (body["signal_id"], body["level"], body["reason"]) == ("one", "HALT", "why")


async def test_the_proxy_of_the_environment_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy, serving() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        await hook(server.address).send(signal())
    assert (len(server.requests), proxy.requests) == (1, [])


@pytest.mark.parametrize("given", [{"proxy": "{}"}, {"proxy_env": "PROXY"}])
async def test_the_proxy_of_the_sink_gets_the_request_and_a_proxy_that_fails_is_named(given: dict[str, str]) -> None:
    async with serving() as proxy:
        plain, secret = f"http://127.0.0.1:{proxy.port}", f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}"
        keys = {key: value.format(plain) for key, value in given.items()}
        config = WebhookSinkConfig(name="hook", kind="webhook", url_env="ADDRESS", **keys)
        told = {"ADDRESS": "http://hooks.invalid/T0", "PROXY": secret}
        await WebhookSink(config, told).send(signal())
        (request,) = proxy.requests
        assert request.line == "POST http://hooks.invalid/T0 HTTP/1.1"
        assert ("Proxy-Authorization" in request.headers) is ("proxy_env" in given)
        proxy.answer = says("HTTP/1.1 407 No\nContent-Length: 0\n\n")
        assert "answered 407" in await why(WebhookSink(config, told))
    assert "the proxy cannot be reached" in await why(WebhookSink(config, told))


async def test_a_tunnel_that_the_proxy_refuses_is_a_failure_that_shows_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    asked = list[bytes]()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 " + PASSWORD.encode() + b"\r\n\r\n")
        writer.close()

    config = WebhookSinkConfig(name="hook", kind="webhook", url_env="ADDRESS", proxy_env="PROXY", token_env="TOKEN")
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        proxy = f"http://me:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        told = {"ADDRESS": "https://hooks.invalid/secret-path", "PROXY": proxy, "TOKEN": TOKEN}
        with pytest.raises(SinkFailed, check=telling("the proxy did not open a connection")) as failed:
            await WebhookSink(config, told).send(signal())
    shown = "".join(traceback.format_exception(failed.value)) + caplog.text
    assert [one for one in (PASSWORD, "secret-path", TOKEN) if one in shown] == []
    assert asked[0].startswith(b"CONNECT hooks.invalid:443 HTTP/1.1")
    assert TOKEN.encode() not in asked[0]  # the token is only inside of the tunnel
    assert b"secret-path" not in asked[0]


async def test_an_id_that_no_header_can_hold_is_encoded() -> None:
    async with serving() as server:
        await hook(server.address).send(signal("ü\r\nX-Mine: 1 %0"))
    (request,) = server.requests
    assert request.headers["Idempotency-Key"] == "%C3%BC%0D%0AX-Mine:%201%20%250"
    assert "X-Mine" not in request.headers


OK = "HTTP/1.1 200 OK\n"
REFUSALS: dict[str, tuple[Answer, str]] = {
    "500": (says("HTTP/1.1 500 Oh\nContent-Length: 0\n\n"), "answered 500"),
    "404": (says("HTTP/1.1 404 No\nContent-Length: 0\n\n"), "answered 404"),
    "closes before it answers": (says(""), "closed the connection"),
    "closes within the headers": (says(f"{OK}Content-Le"), "closed the connection"),
    "closes within the body": (says(f"{OK}Content-Length: 100\n\nhalf"), "closed the connection"),
    "closes within a chunk": (says(f"{OK}Transfer-Encoding: chunked\n\n64\nhalf"), "closed the connection"),
    "another protocol": (says("SSH-2.0-OpenSSH_9.6\n"), "not HTTP"),
    "a status that is none": (says("HTTP/1.1 9999 OK\n\n"), "not HTTP"),
    "headers without end": (says(OK + "X: y\n" * 100_000), "not HTTP"),
}


@pytest.mark.parametrize(("answer", "said"), REFUSALS.values(), ids=REFUSALS)
async def test_an_answer_that_confirms_nothing_is_a_failure(answer: Answer, said: str) -> None:
    async with serving(answer) as server:
        assert said in await why(hook(server.address))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with serving() as other:
        async with serving(says(f"HTTP/1.1 {status} Go\nLocation: {other.address}\n\n")) as server:
            assert f"answered {status}" in await why(hook(server.address))
        assert (len(server.requests), other.requests) == (1, [])


async def test_a_server_that_hangs_fails_after_each_of_the_time_limits() -> None:
    async with serving(never) as server:
        assert "nothing was sent or received for 0.05 s" in await why(hook(server.address, read_s=0.05))
        assert "no complete answer within 0.05 s" in await why(hook(server.address, total_s=0.05))


async def test_a_server_that_never_falls_silent_fails_after_the_total_time_limit() -> None:
    async with serving(by_drops) as server:
        assert "no complete answer within 0.1 s" in await why(hook(server.address, total_s=0.1))


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    async with serving(without_end) as server:
        await hook(server.address).send(signal())
        assert len(server.requests) == 1


async def test_a_server_that_is_not_there_is_a_failure_and_so_is_one_that_does_not_accept() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert "no connection within 0.05 s" in await why(hook(f"http://127.0.0.1:{port}/", connect_s=0.05))
        for one in waiting:
            one.close()
    assert "cannot be reached" in await why(hook(f"http://127.0.0.1:{port}/"))


async def test_a_server_without_tls_is_no_secure_server() -> None:
    def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "no secure connection: WRONG_VERSION_NUMBER" in await why(hook(f"https://127.0.0.1:{port}/"))


async def test_a_send_that_is_cancelled_ends() -> None:
    async with serving(never) as server:
        sending = asyncio.ensure_future(hook(server.address).send(signal()))
        await server.arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


# -- secrets -----------------------------------------------------------------------------------------------------


async def test_no_error_and_no_log_shows_the_address_or_the_token(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = ""
    for answer, _ in (REFUSALS | {"ok": (says("HTTP/1.1 200 OK\n\n"), "")}).values():
        async with serving(answer) as server:
            sink = hook(server.address)
            try:
                await sink.send(signal())
            except SinkFailed as error:
                shown += "".join(traceback.format_exception(error)) + repr(vars(error))
            shown += repr(sink)
    nowhere = hook("http://nowhere.invalid/secret-path")  # up here, or the traceback would show this line of code
    with pytest.raises(SinkFailed) as unreachable:
        await nowhere.send(signal())
    shown += "".join(traceback.format_exception(unreachable.value)) + caplog.text + "".join(capfd.readouterr())
    assert "SinkFailed" in shown
    assert not {one for one in ("secret-path", TOKEN, "nowhere.invalid") if one in shown}


def test_every_logger_of_httpx_is_silent_while_a_webhook_sends() -> None:
    """A logger that writes nothing today, such as that of proxies, may write an address in the next version."""
    packages = [resources.files(name) for name in ("httpx", "httpcore")]
    sources = [file.read_text() for package in packages for file in Path(str(package)).rglob("*.py")]
    assert {name for source in sources for name in re.findall(r'getLogger\("(.+)"\)', source)} == set(LOGGERS)


async def test_others_may_log_what_they_send_with_httpx(caplog: pytest.LogCaptureFixture) -> None:
    import httpx

    caplog.set_level(logging.INFO)
    async with serving() as server:
        await hook(server.address).send(signal())
        async with httpx.AsyncClient() as client:
            await client.get(f"http://127.0.0.1:{server.port}/mine", headers={"Content-Length": "0"})
    assert "/mine" in caplog.text
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("ftp://host/hush", "https://"),
        ("host/hush", "https://"),
        ("https:///hush", "https://"),
        ("https://[hush", "https://"),
        ("https://host:99999/hush", "https://"),
        ("https://host/hush\nX: y", "https://"),
        ("https://hüst/hush", "https://"),
        ("https://host:0/hush", "port"),
        ("https://me:hush@host/", "token_file"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_not_shown(address: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "address"
    path.touch(mode=0o600)
    path.write_text(address)
    config = WebhookSinkConfig(name="hook", kind="webhook", url_file=str(path))
    with pytest.raises(ConfigError, check=telling(named, field="emergency.sinks.hook.url_file", value=str(path))) as no:
        WebhookSink(config, {})
    assert "hush" not in "".join(traceback.format_exception(no.value))


@pytest.mark.parametrize("token", ["two words", "two\nlines", "schlüssel"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    config = WebhookSinkConfig(name="hook", kind="webhook", url_env="ADDRESS", token_env="TOKEN")
    with pytest.raises(ConfigError, check=telling(field="emergency.sinks.hook.token_env", value="TOKEN")) as refused:
        WebhookSink(config, {"ADDRESS": "https://host/", "TOKEN": token})
    assert token not in str(refused.value)


@pytest.mark.parametrize("environment", [{}, {"ADDRESS": " "}])
def test_a_variable_that_is_not_set_is_refused(environment: dict[str, str]) -> None:
    config = WebhookSinkConfig(name="hook", kind="webhook", url_env="ADDRESS")
    with pytest.raises(ConfigError, check=telling("set this", field="emergency.sinks.hook.url_env", value="ADDRESS")):
        WebhookSink(config, environment)
