"""Settings of supervision: the limits of restarts, and the errors that restart the actor that raised them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from esper import errors
from esper.errors import ConfigError
from esper.ground.suggest import existing_names
from esper.leyline.base import Seconds, Settings

Reaction = Literal["raise", "restart"]


class SupervisionConfig(Settings):
    """[supervision]"""

    deaths: int = Field(
        3, ge=0, description="largest number of deaths of one actor within within_s seconds; one more stops the run"
    )
    within_s: Seconds = Field(600.0, description="length in seconds of the sliding window in which deaths are counted")
    without_progress: int = Field(
        3, ge=1, description="the run also stops at this many deaths of one actor in a row without a new fence"
    )


class FailurePolicy(Settings):
    """[failure_policy]. The key is the class of an error that an actor raised, the value "raise" or "restart".

    "raise": the caller gets the error, unchanged. "restart": the actor is ended if it still runs, and started again, as
    often as `[supervision]` allows. A setting for a class of esper does not apply to the subclasses of that class in
    esper. A class of the user has the setting of its nearest base class in esper.

    Raises:
        ConfigError: the class is unknown, or is in `NO_SWITCH`. For an unknown class the error has the nearest name,
            for a class in `NO_SWITCH` the reason.
    """

    ActorLost: Reaction = Field("restart", description="the process of an actor other than the trainer ended or hung")
    TrainerRankLost: Reaction = Field("restart", description="the process of the trainer ended or hung")
    ActorDoubtful: Reaction = Field(
        "raise", description="the connection to an actor broke, and its process may still run"
    )
    CallDeadlineExceeded: Reaction = Field(
        "raise", description="an actor did not answer in time, and its process was ended"
    )
    PolicyDeadlineExceeded: Reaction = Field(
        "raise", description="a decision took longer than policy.deadline_s; after a restart the policy is called again"
    )
    PolicyFailed: Reaction = Field(
        "raise", description="the policy raised an error; its process may be at fault (memory, a file)"
    )
    SeedBuildFailed: Reaction = Field(
        "raise", description="a blueprint raised an error; its process may be at fault (memory)"
    )
    FaultInjected: Reaction = Field(
        "raise", description="a fault raised it on purpose, in place of another error; for drills"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_has_no_switch(cls, given: object) -> object:
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if name in NO_SWITCH:
                raise ConfigError(f"failure_policy.{name}", value, f"it always raises: {NO_SWITCH[name]}")
            if name not in cls.model_fields:
                known = existing_names(name, [*cls.model_fields, *NO_SWITCH])
                raise ConfigError(f"failure_policy.{name}", value, f"no such class; {known}")
        return given

    def restarts(self, error: BaseException) -> bool:
        """Return whether `error` restarts the actor that raised it. False for classes in `NO_SWITCH` and classes
        outside esper."""
        ours = next((cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__), "")
        return ours in type(self).model_fields and getattr(self, ours) == "restart"

    def declared(self) -> dict[str, Reaction]:
        """Return the settings that differ from the default, by class name."""
        default = FailurePolicy()
        return {name: answer for name, answer in self if answer != getattr(default, name)}


NO_SWITCH = {
    "EsperError": "it is the base of all errors; name the class that is meant",
    "ConfigError": "the input is wrong, and stays so",
    "TaskError": "the task is wrong, and stays so",
    "RunDirectoryError": "the directory is in use or cannot be used, and no actor can change that",
    "DependencyViolationError": "a strict refusal: something is missing, and nothing may replace it",
    "NoSeedCandidates": "a strict refusal: there are candidates, and the policy chose none",
    "FieldReportInvalid": "a strict refusal: the report lacks a required field",
    "CommandRejected": "a strict refusal: the command is not authentic, not fresh or not for this run",
    "StageConflict": "a strict refusal: that stage may not follow the present one",
    "EvidenceMissing": "a strict refusal: what was not measured cannot be judged",
    "IllegalTransition": "a bug of esper, which a restart would hide",
    "IsolationViolation": "a seed's gradient reached the host, and would again",
    "AdoptionMismatch": "a fork and the live host computed different bits, which a restart would hide",
    "LossDeviceMismatch": "the task computes on two devices, and does so again",
    "DivergenceUnrecoverable": "a result of the training, which a restart would repeat",
    "StoreWriteFailed": "the disk refused a write, which a restart would hide",
    "StoreCorrupt": "a file is damaged, which no actor can mend",
    "CheckpointCorrupt": "a file is damaged; an earlier file is used without a restart",
    "RestoreImpossible": "no checkpoint is left to start an actor from",
    "RollbackDeadlineExceeded": "everything is restored already; the time limit is too short",
    "ActorError": "it is the base of all errors between processes; name the class that is meant",
    "PlacementUnavailable": "there is no room, and a second request would not make room",
    "StartDeadlineExceeded": "the start was slow, and another start on the same machine is as slow",
    "RestartIntensityExceeded": "it is raised when the limit of restarts is reached",
    "EmergencyStop": "the run was stopped on purpose",
    "EmergencyQueueFull": "a restart would drop the signals that are held",
    "EmergencyUnavailable": "the run is ending, or a restart of the emergency actor took too long",
    "SinkFailed": "the queue keeps the signal and sends it again, without any restart",
    "Drained": "the run was asked to end",
    "ProcessStateChanged": "the code of the user changes a setting of its process, and does so again",
    "TheirCodeRaised": "the user's code raised it, and does so again",
    "StateNotKept": "the code of the task has state that no checkpoint saves, and would have it again",
    "CannotBeWritten": "`esper export` raises it, and runs without actors",
    "SpanUnreadable": "`esper trace` raises it, and runs without actors",
    "DrillImpossible": "`esper drill` raises it, before the run that it would break",
}
"""Classes of errors that cannot be set to "restart", with the reason."""
