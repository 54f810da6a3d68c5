"""A real HTTP server on this machine whose answer each test writes by hand, so that it can be as wrong as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """`requests`: what arrived, in order. `answer` may be replaced at any time."""

    port: int
    answer: Answer
    requests: list[Request] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request has arrived."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/T0/secret-path"


def says(text: str) -> Answer:
    """Send these bytes, in which a line ends with LF, and close the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text.replace("\n", "\r\n").encode("latin-1"))
        await writer.drain()

    return answer


ACCEPTS = says("HTTP/1.1 204 No Content\n\n")


async def never(writer: asyncio.StreamWriter) -> None:
    """Read the request and say nothing for as long as the client waits."""
    del writer
    await asyncio.Event().wait()


async def without_end(writer: asyncio.StreamWriter) -> None:
    """Send 200 and a body that does not end, as fast as the client reads it."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def by_drops(writer: asyncio.StreamWriter) -> None:
    """Send 200 and a body that does not end, byte by byte: never silent for long."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return Request(head[0], headers, await reader.readexactly(int(headers["Content-Length"])))


@asynccontextmanager
async def serving(answer: Answer = ACCEPTS) -> AsyncIterator[Server]:
    connections = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server.requests.append(await _read(reader))
            server.arrived.set()
            await server.answer(writer)
        except ConnectionError:
            server.requests[-1].line += " (the client left)"
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.ensure_future(serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server = Server(listener.sockets[0].getsockname()[1], answer)
    async with listener:
        yield server
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
