"""Starts a run's actors, passes their handles to the line (`esper.flow.line`), and ends all actors.

When a run has ended for any reason, no process, socket, folder or shared-memory file of the run is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from actors.component_handles import kasmina_handle, tamiyo_handle, tolaria_handle
from actors.embedded_ray import EmbeddedRay
from actors.emergency_link import EmergencyGuard, EmergencyLink
from actors.emergency_word import emergency_word
from actors.end_signals import uninterrupted
from actors.joined_ray import JoinedRay
from actors.policy_transport import SentPolicy
from actors.ray_crew import RayCrew
from actors.run_actors import RunActors, actor_roles, manager_names
from actors.task_transport import SentSurvey
from esper import faults
from esper.config.joined import RunConfig
from esper.emergency.conductor_inbox import ConductorInbox
from esper.emergency.settings import CONDUCTOR, EmergencyConfig
from esper.emergency.undelivered import report_undelivered
from esper.flow.crew import Components
from esper.flow.launching import BringUp
from esper.ground.closing import at_the_end
from esper.setup.assembly import RunKey
from esper.setup.survey import Survey

RAY_SHARE = 2
"""Deadline for the start of Ray, as a multiple of the start deadline of actors. Ray needs longer, because it starts
several processes in sequence."""


def fault_points(config: RunConfig) -> dict[str, set[str]]:
    """Return a mapping from the name of each process of a run to the fault points that the process can reach."""
    points = {name: {f"{role}.start"} for name, role in actor_roles(config).items()}
    possible = faults.possible(config.growth.enabled and config.growth.entry == "adopt")
    points[CONDUCTOR] = {point for point in possible if point.startswith("conductor.")}
    points["emergency"] |= {"emergency.pending", "emergency.publish"}
    points["tolaria"] |= {"tolaria.round", "tolaria.step", "tolaria.save"}
    if config.growth.enabled:
        points["tolaria"] |= {"tolaria.apply", "tolaria.adoption_restored"} & possible
        points["tamiyo"] |= {"tamiyo.command", "tamiyo.decide"}
        points["kasmina"] |= {"kasmina.evidence", "kasmina.receive"}
        for name in manager_names(config):
            points[name] |= {"kasmina.step", "kasmina.adoption_snapshot"} & possible
    return points


def bring_up(
    sent: SentSurvey, embedded: EmbeddedRay | JoinedRay | None = None, policy: SentPolicy | None = None
) -> BringUp:
    """Return the function by which `esper.flow.runner.Conductor` starts the components.

    It uses `embedded`, or a new Ray.
    """

    @contextmanager
    def up(survey: Survey, key: RunKey, path: Path) -> Iterator[Components]:
        stack = ExitStack()

        def end() -> None:
            with uninterrupted():
                stack.close()

        with at_the_end(end, "ending the actors"):
            config, slots = survey.config, 1 + survey.config.growth.managers
            deadline_s = RAY_SHARE * config.ray.start_deadline_s
            ours = embedded or stack.enter_context(
                EmbeddedRay(slots=slots, threads=config.run.threads, deadline_s=deadline_s, run_dir=path)
            )
            word = stack.enter_context(emergency_word())
            crew = RayCrew(RunActors(survey, key, sent, path, word.path, policy), ours.check)
            incubator = crew.start()
            link = EmergencyLink(crew.remotes["emergency"], crew.patience_s, crew.replace_alone)
            guard = EmergencyGuard(link)
            stack.callback(incubator.join)
            stack.callback(guard.join)
            stack.callback(crew.end)
            stack.callback(guard.close)
            stack.callback(incubator.close)

            with at_the_end(lambda: deliver_the_rest(link, config.emergency), "delivering emergency signals to sinks"):
                yield Components(
                    trainer=tolaria_handle(crew.remotes["tolaria"]),
                    tamiyo=tamiyo_handle(crew.remotes["tamiyo"], survey.config.policy.deadline_s),
                    kasmina=kasmina_handle(crew.remotes["kasmina"]),
                    incubator=incubator,
                    inbox=ConductorInbox(link),
                    crew=crew,
                )

    return up


def deliver_the_rest(link: EmergencyLink, config: EmergencyConfig) -> None:
    """Wait at most `drain_s` until the sinks have all signals. Report the signals that a sink did not get."""
    if config.sinks:
        report_undelivered(link.stop(config.drain_s))
