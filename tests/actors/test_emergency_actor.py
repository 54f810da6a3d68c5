"""The emergency actor and the conductor's link to it, without Ray: a death costs no signal."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.emergency_actor import ADDRESS, SinkVariables, emergency
from actors.emergency_link import EmergencyLink
from esper.emergency.emergency_service import EmergencyService
from esper.emergency.hosting import HostedEmergency
from esper.emergency.settings import CONDUCTOR, EmergencyConfig
from esper.emergency.word import EmergencyWord, WordState
from esper.errors import ActorLost, EmergencyUnavailable, RestartIntensityExceeded, RunDirectoryError
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH


def signal(signal_id: str, level: Level = Level.NOTICE) -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id=signal_id, run_id="run", generation=1, level=level, origin="test", reason="why", issued_at=EPOCH
    )


@pytest.fixture
def word(tmp_path: Path) -> Any:
    with EmergencyWord.create(tmp_path / "word") as made:
        yield made


def opened(tmp_path: Path, generation: int = 1, **settings: Any) -> EmergencyService:
    config = EmergencyConfig(**{"capacity": 32, **settings})
    where = (tmp_path / "emergency", tmp_path / "word", config, "run", generation, SinkVariables.of(config))
    return emergency(*where, name=lambda: f"emergency-g{generation}")


class Actor:
    """A `Remote` of an emergency actor in this process. `kill` ends its process; `replace` starts the next."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path, self.deaths = tmp_path, 0
        self.process = self.started()
        self.before: Callable[[str], None] = lambda _: None
        """What happens before a call of a method."""

    def started(self) -> HostedEmergency:
        host = HostedEmergency(opened(self.tmp_path))
        host.start()
        return host

    def kill(self) -> None:
        """End the process. What it has told the disk stays."""
        self.process.stop(0.0)

    def replace(self, death: ActorLost) -> None:
        del death
        self.deaths += 1
        self.process = self.started()

    def ask(self, method: str, *arguments: Any) -> Any:
        self.before(method)
        try:
            return getattr(self.process, method)(*arguments)
        except EmergencyUnavailable as gone:
            raise ActorLost("emergency", "killed") from gone


@pytest.fixture
def actor(tmp_path: Path, word: EmergencyWord) -> Any:
    del word
    made = Actor(tmp_path)
    yield made
    made.kill()


def link(actor: Any) -> EmergencyLink:
    return EmergencyLink(actor, 1.0, actor.replace)


def ids(signals: Sequence[EmergencySignal]) -> list[str]:
    return [one.signal_id for one in signals]


def test_the_process_of_the_emergency_actor_starts_without_torch() -> None:
    """Three quarters of the time that any other actor takes to start is the import of torch."""
    code = "import sys, actors.async_shell, actors.emergency_actor; print({'torch', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_dead_actor_is_replaced_and_the_call_repeated(actor: Any, word: EmergencyWord) -> None:
    conductor = link(actor)
    actor.process.publish(signal("a", Level.CONSERVATIVE))
    actor.kill()
    assert ids(conductor.pending(CONDUCTOR)) == ["a"]
    actor.kill()
    conductor.acknowledge(CONDUCTOR, ["a"])
    assert conductor.pending(CONDUCTOR) == ()
    assert actor.deaths == 2
    assert word.read() == WordState(Level.CONSERVATIVE, 1, 1)  # an acknowledgement does not lower it, nor does a death


def test_a_death_that_is_not_answered_by_a_restart_is_raised(actor: Any) -> None:
    exceeded = RestartIntensityExceeded("emergency", "too often")

    def refuse(death: ActorLost) -> None:
        raise exceeded from death

    actor.kill()
    with pytest.raises(RestartIntensityExceeded):
        EmergencyLink(actor, 1.0, refuse).pending(CONDUCTOR)
    actor.replace(ActorLost("emergency", "killed"))


@pytest.mark.parametrize("notices", ["the link", "another thread"])
def test_an_actor_that_replaces_a_closed_one_is_closed_too(actor: Any, notices: str) -> None:
    conductor = link(actor)
    actor.process.publish(signal("a"))
    conductor.close()
    actor.kill()
    if notices == "another thread":
        actor.replace(ActorLost("emergency", "killed"))
    assert ids(conductor.pending(CONDUCTOR)) == ["a"]
    with pytest.raises(EmergencyUnavailable):
        actor.process.publish(signal("late"))


def test_a_second_owner_is_refused(actor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.emergency.emergency_service.ENDING_S", 0.0)
    with pytest.raises(RunDirectoryError):
        opened(tmp_path, generation=2)
    assert (tmp_path / "emergency" / ADDRESS).read_text() == "emergency-g1"  # publishers go on to the owner
    assert actor.process.publish(signal("a")) == 1


def test_secrets_are_the_variables_that_sinks_name_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://example.org/secret")
    monkeypatch.setenv("OTHER", "not named")
    monkeypatch.setenv("PROXY", "http://me:secret@proxy:1")
    sinks = [{"name": "hook", "kind": "webhook", "url_env": "HOOK", "token_env": "MISSING", "proxy_env": "PROXY"}]
    found = SinkVariables.of(EmergencyConfig(sinks=sinks))
    assert found.values == {"HOOK": "https://example.org/secret", "PROXY": "http://me:secret@proxy:1"}
    assert "secret" not in repr(found)


async def test_the_service_opens_before_its_loop_runs_and_publishes_in_it(tmp_path: Path, word: EmergencyWord) -> None:
    service = await asyncio.to_thread(opened, tmp_path, 3)
    await service.start()
    assert await service.publish(signal("a", Level.HALT)) == 1
    assert word.read() == WordState(Level.HALT, 3, 1)
    await service.stop(0.0)
