"""Builds signed commands from decisions. Ids are derived from the run's id, the fence and the step."""

from __future__ import annotations

from dataclasses import dataclass

from esper import faults
from esper.errors import DependencyViolationError
from esper.ground.clock import Clock
from esper.leyline.commands import BlendMode, BlendSpec, Candidate, Command, CommandKind, Operation, sign
from esper.leyline.decisions import Decision
from esper.leyline.ids import Purpose, derive_id
from esper.leyline.stages import Stage
from esper.leyline.state import RoundState, SeedState
from esper.tamiyo.risk import coverage
from esper.telemetry.context import traceparent
from esper.telemetry.events import Severity, reported

ISSUER = "tamiyo"


@dataclass(frozen=True)
class CommandBuilder:
    """Builds and signs the commands of one run."""

    key: bytes
    clock: Clock
    ramp_steps: int

    def germinate(self, state: RoundState, decision: Decision) -> Command:
        """Return the command to germinate the decision's pairs in one tournament.

        Raises:
            DependencyViolationError: the run id is missing.
        """
        _check_run(state, Operation.GERMINATE)
        fence, step = state.fence, state.training.step
        candidates = tuple(
            Candidate(
                slot=pair.slot,
                blueprint_id=pair.blueprint_id,
                seed_id=derive_id(state.run_id, Purpose.SEED, fence=fence, step=step, slot=pair.slot, ordinal=place),
                copies=pair.copies,
            )
            for place, pair in enumerate(decision.pairs)
        )
        mesh = tuple(dict.fromkeys(layer for pair in decision.pairs for layer in pair.mesh))
        return self._build(
            state,
            Operation.GERMINATE,
            candidates=candidates,
            replica_of=decision.replica_of,
            blend=decision.blend,
            confidence_logits=decision.logits if decision.blend is not None and decision.blend.uses_logits else (),
            mesh_host_layers=mesh,
            policy_version=decision.policy_version,
        )

    def advance(
        self, state: RoundState, seed: SeedState, policy_version: str, logits: tuple[float, ...] = ()
    ) -> Command:
        """Return the command to judge a seed's next gate: FOSSILIZE for a seed in probation, else ADVANCE.

        Args:
            logits: The policy's logits for the seed, if its blend uses logits.

        Raises:
            DependencyViolationError: the run id is missing.
        """
        operation = Operation.FOSSILIZE if seed.stage is Stage.PROBATIONARY else Operation.ADVANCE
        # A seed without a recorded blend is from an earlier version of esper. Its only mode was RESIDUAL.
        blend = seed.blend or BlendSpec(mode=BlendMode.RESIDUAL, ramp_steps=self.ramp_steps)
        mesh = seed.required_mesh
        if seed.stage is Stage.TRAINING:  # GERMINATE has the layers of all candidates; only the seed's are used
            own = [p.mesh for p in state.options if (p.slot, p.blueprint_id) == (seed.slot, seed.blueprint_id)]
            mesh = own[0] if own else mesh
        return self._build(
            state,
            operation,
            seed_id=seed.seed_id,
            blend=blend if seed.stage is Stage.TRAINING else None,
            confidence_logits=logits,
            mesh_host_layers=mesh,
            policy_version=policy_version,
        )

    def scale_rates(self, state: RoundState, decision: Decision) -> tuple[Command, ...]:
        """Return a command for each change of a learning rate in a decision, in the decision's order.

        Raises:
            DependencyViolationError: the run id is missing.
        """
        return tuple(
            self._build(
                state,
                Operation.SCALE_RATE,
                kind=CommandKind.OPTIMIZER,
                seed_id=change.seed_id,
                rate_scale=change.scale,
                policy_version=decision.policy_version,
            )
            for change in decision.rates
        )

    def go_back(self, state: RoundState, decision: Decision) -> Command:
        """Return the command to go back to the decision's fence.

        Raises:
            DependencyViolationError: the run id is missing.
        """
        return self._build(
            state,
            Operation.GO_BACK,
            kind=CommandKind.ROLLBACK,
            to_fence=decision.go_back_to,
            policy_version=decision.policy_version,
        )

    def _build(
        self,
        state: RoundState,
        operation: Operation,
        *,
        policy_version: str,
        kind: CommandKind = CommandKind.SEED,
        mesh_host_layers: tuple[str, ...] = (),
        rate_scale: float | None = None,
        to_fence: int | None = None,
        seed_id: str = "",
        candidates: tuple[Candidate, ...] = (),
        replica_of: str | None = None,
        blend: BlendSpec | None = None,
        confidence_logits: tuple[float, ...] = (),
    ) -> Command:
        _check_run(state, operation)

        def named(purpose: Purpose) -> str:
            where = f"{operation}/{seed_id}"
            return derive_id(state.run_id, purpose, fence=state.fence, step=state.training.step, slot=where)

        command = Command(
            command_id=named(Purpose.COMMAND),
            run_id=state.run_id,
            generation=state.generation,
            issued_at=self.clock.now(),
            issued_by=ISSUER,
            kind=kind,
            operation=operation,
            rate_scale=rate_scale,
            to_fence=to_fence,
            seed_id=seed_id,
            candidates=candidates,
            replica_of=replica_of,
            blend=blend,
            confidence_logits=confidence_logits,
            mesh_host_layers=mesh_host_layers,
            feature_coverage=coverage(state),
            policy_version=policy_version,
            nonce=named(Purpose.NONCE),
            traceparent=traceparent(),
        )
        command = faults.message("tamiyo.command", command, round=state.fence)
        return command.model_copy(update={"signature": sign(command, self.key)})


def _check_run(state: RoundState, operation: Operation) -> None:
    if not state.run_id:
        error = DependencyViolationError(f"command {operation}", "run id missing")
        told = {"subject": error.subject, "missing": error.missing}
        raise reported(error, "dependency_violation", Severity.ERROR, **told)
