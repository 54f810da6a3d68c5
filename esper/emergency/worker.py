"""A thread that runs blocking calls for an event loop, one after the other, in the order in which they were made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """One daemon thread. Unlike a thread of a pool, it does not delay the end of the process if a call hangs."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()  # Any: each call's own
        self._stopped = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` in the thread, with the caller's context variables, and return its result.

        If the caller is cancelled, a call that has begun is completed, and its result or exception is dropped. A call
        that has not begun is left out. The worker must not be stopped.
        """
        assert not self._stopped, "the worker was stopped"
        answer: Future[T] = Future()
        self._calls.put((answer, partial(copy_context().run, function, *args)))
        return await asyncio.wrap_future(answer)

    def stop(self) -> None:
        """End the thread after the calls that were made before. Does not wait. May be called twice."""
        self._stopped = True
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            answer, work = call
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(work())
                except BaseException as error:  # it belongs to the caller, as the result does
                    answer.set_exception(error)
