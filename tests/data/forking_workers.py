"""Starts each Python worker of a Ray in a fork of one process that has imported torch and esper. It tests nothing.

Ray starts this file in place of its own worker file, with the path of a socket before the arguments. The process at the
socket forks, and the child runs Ray's own worker file. The child imports Ray itself, because Ray's C++ reads the
environment then. A worker that wants other variables of `AT_START` than that process has starts as usual.
"""

import json
import os
import signal
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

AT_START = ("OMP_NUM_THREADS", "PYTHONHASHSEED")
"""Variables that a process reads only at its start."""
IMPORTED = ("esper.flow.in_process", "esper.testing", "scipy.special")
STREAMS = (0, 1, 2)


def own_worker() -> str:
    """Return the path of Ray's own worker file. This does not import Ray."""
    found = find_spec("ray")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent / "_private" / "workers" / "default_worker.py")


def ask(path: str, arguments: list[str]) -> None:
    """Let a worker be forked with the environment, folder and streams of this process, or become the worker."""
    told = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        socket.send_fds(asking, [len(told).to_bytes(4, "big")], STREAMS)
        asking.sendall(told)
        forked = asking.recv(1) == b"y"
    if not forked:
        os.execv(sys.executable, [sys.executable, own_worker(), *arguments])


def serve(path: str) -> None:
    """Fork workers until standard input ends. This returns in each fork, too, which then is a worker."""
    from importlib import import_module
    from select import select

    for name in IMPORTED:
        import_module(name)
    assert "ray" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        print("up", flush=True)
        while select([server, sys.stdin], [], [])[0] == [server]:
            if answer(server):
                server.close()
                become_a_worker()


def answer(server: socket.socket) -> bool:
    """Answer one process that asks. Return whether this is the fork, in which everything is as in that process."""
    with server.accept()[0] as asking:
        size, streams, _, _ = socket.recv_fds(asking, 4, len(STREAMS))
        arguments, environment, folder = json.loads(asking.makefile("rb").read(int.from_bytes(size, "big")))
        same = all(environment.get(name) == os.environ.get(name) for name in AT_START)
        forks = same and os.fork() == 0
        if forks:
            for given, stream in zip(streams, STREAMS, strict=True):
                os.dup2(given, stream)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[1:] = arguments
        else:
            asking.sendall(b"y" if same else b"n")
        for given in streams:
            os.close(given)
    return forks


def become_a_worker() -> None:
    """Run Ray's own worker file in this process, as Ray's core begins one."""
    from runpy import run_path

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    sys.argv[0] = own_worker()
    sys.path[0] = str(Path(own_worker()).parent)
    run_path(own_worker(), run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[1], sys.argv[2:])
