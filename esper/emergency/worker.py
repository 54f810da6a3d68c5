"""A thread that runs blocking calls for an event loop, one after the other, in the order of the calls."""

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
    """One daemon thread. If a call hangs, the process can end nevertheless; a thread of a pool would delay its end."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()  # Any: depends on call
        self._stopped = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` in the thread, with the caller's context variables, and return its result.

        If the caller is cancelled before the thread runs the function, the function is not called. If the caller is
        cancelled later, the function runs to its end, and its result or exception is discarded. Do not use this method
        after `stop`.
        """
        assert not self._stopped, "the worker was stopped"
        answer: Future[T] = Future()
        self._calls.put((answer, partial(copy_context().run, function, *args)))
        return await asyncio.wrap_future(answer)

    def stop(self) -> None:
        """Let the thread end after all earlier calls. This call does not wait for the end of the thread. A second call
        has no effect.
        """
        self._stopped = True
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            answer, work = call
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(work())
                except BaseException as error:  # the caller gets the exception, as it would get a result
                    answer.set_exception(error)
