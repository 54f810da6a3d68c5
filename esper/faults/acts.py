"""Carries out the faults that end, stop, delay or disturb a process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

from esper import errors
from esper.errors import ConfigError, EsperError, FaultInjected
from esper.faults.fault_spec import Fault, FaultSpec
from esper.ground.clock import skew

WAKE = """
import signal, sys, time
time.sleep(float(sys.argv[1]))
try:
    signal.pidfd_send_signal(int(sys.argv[2]), signal.SIGCONT)
except ProcessLookupError:
    pass
"""
"""Program that wakes a stopped process. It has a descriptor of the process, so it never signals another process that
got the same id."""


def act(spec: FaultSpec) -> None:
    """Carry out a fault."""
    if spec.fault is Fault.RAISE:
        raise error_of(spec)
    if spec.fault is Fault.DELAY:
        time.sleep(spec.seconds)
    elif spec.fault is Fault.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif spec.fault is Fault.STOP:
        _stop()
    elif spec.fault is Fault.PAUSE:
        _wake_after(spec.seconds)
        _stop()
    elif spec.fault is Fault.SKEW:
        skew(spec.seconds)
    elif spec.fault is Fault.HANG_C:
        ctypes.PyDLL(None).sleep(1 << 20)  # PyDLL, unlike CDLL, does not release the interpreter's lock
    else:
        assert spec.fault is Fault.HANG, spec.fault
        while True:
            pass


def _stop() -> None:
    # to this thread, because it may continue for a moment after `os.kill`
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _wake_after(seconds: float) -> None:
    """Start a process that wakes this process."""
    handle = os.pidfd_open(os.getpid())
    try:
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WAKE, str(seconds), str(handle)],
            pass_fds=(handle,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        os.close(handle)


def error_of(spec: FaultSpec) -> EsperError:
    """Return the error of a fault that raises. Raises: ConfigError: no such error can be made."""
    if spec.error == FaultInjected.__name__:
        return FaultInjected(spec.point)
    cls = vars(errors).get(spec.error)
    if not (isinstance(cls, type) and issubclass(cls, EsperError)):
        raise ConfigError("faults.error", spec.error, "no such class in esper.errors")
    try:
        return cls(spec.point, "armed on purpose")
    except TypeError as error:
        raise ConfigError("faults.error", spec.error, "it cannot be made from two texts") from error
