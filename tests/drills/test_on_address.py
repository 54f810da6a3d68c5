"""`esper drill run --on ADDRESS`: a drill on a Ray that is up, which stays up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from actors import ray_private
from actors.joined_ray import JoinedRay
from esper.errors import ConfigError, PlacementUnavailable
from esper.testing import telling

HOST = """
import os, sys, ray
from actors import ray_private
from actors.embedded_ray import EmbeddedRay
with EmbeddedRay(slots=3, deadline_s=300.0) as up:
    print(ray.get_runtime_context().gcs_address, os.environ[ray_private.TOKEN], flush=True)
    sys.stdin.read()
    print(len(ray.nodes()), flush=True)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """A Ray in another process: the process, its address, and the environment of those who connect."""
    words = [sys.executable, "-c", HOST]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        address, token = host.stdout.readline().split()
        yield host, address, {**os.environ, **ray_private.ENVIRONMENT, ray_private.TOKEN: token}
        host.kill()


@pytest.mark.slow
def test_drills_use_a_ray_that_is_up_and_leave_it_up(
    running: tuple[subprocess.Popen[str], str, dict[str, str]],
) -> None:
    host, address, environment = running
    words = [sys.executable, "-m", "esper", "drill", "run", "policy-fails", "driver-killed", "--on", address, "--json"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    fails, killed = json.loads(ended.stdout.splitlines()[-1])["drills"]
    assert (fails["why"], fails["leaks"], fails["same_bits"]) == ("", [], True)
    assert ended.returncode == 1
    assert "run it without --on ADDRESS" in killed["why"]
    out, _ = host.communicate("", timeout=120)
    assert out.split() == ["1"]


def test_an_address_at_which_no_ray_runs_is_refused() -> None:
    with pytest.raises(PlacementUnavailable, check=telling("127.0.0.1:1")):
        JoinedRay("127.0.0.1:1", slots=1)


@pytest.mark.parametrize("address", ["6379", "here:", ":6379", "here:0", "here:70000", "auto"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, check=telling("HOST:PORT")):
        JoinedRay(address, slots=1)
