"""The class of actors that call the coroutines of a component's object.

Ray runs all messages to this actor in one event loop, so a coroutine that waits does not delay other messages. The
actor has no concurrency groups, because Ray would run each group in another event loop.
"""

from __future__ import annotations

import asyncio
import os
from contextvars import Context
from typing import Any

from actors.shell import ActorSpec, BaseShell, Envelope, Reply, sendable_errors
from esper.ground.heartbeat import beats
from esper.telemetry.context import use


class AsyncShell(BaseShell):
    """The actor of a component with coroutines. The component's coroutine `start` runs once, before its other
    coroutines.

    The first message calls `start`, because Ray runs the constructor outside of the event loop.
    """

    def __init__(self, spec: ActorSpec) -> None:
        super().__init__(spec)
        self._starting: asyncio.Future[None] | None = None

    async def pid(self) -> int:
        """Return the process id after the start of the component. Raises: Exception: the error of the start."""
        await self._begin()
        return os.getpid()

    async def progress(self) -> Reply:
        """Return the number of finished units of work in this process; see `esper.ground.heartbeat`."""
        return self._reply(beats())

    async def rebind(self, generation: int) -> Reply:
        """Accept messages of a newer generation, and refuse messages of all other generations.

        Raises:
            DependencyViolationError: `generation` is not newer than the present generation.
        """
        return self._rebound(generation)

    async def flush(self) -> Reply:
        """See `Shell.flush`."""
        return self._flushed()

    async def call(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Reply:
        """Call one public method of the component's object.

        Raises:
            DependencyViolationError: the message is of another generation, or the method is not public.
            Exception: the error of the method, unchanged.
        """
        found = self._method(method, envelope)
        await self._begin()
        with self._serving(envelope):
            return self._reply(await found(*arguments))

    async def _begin(self) -> None:
        """Start the component, or wait for its start. The component's tasks are not part of the trace of the caller."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start(), context=Context())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        with use(self._telemetry), sendable_errors(self._spec.role):
            await self._component.start()
