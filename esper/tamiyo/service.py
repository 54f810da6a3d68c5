"""Tamiyo's service: eligibility, policy, risk, command, in this order. If the policy fails, an error is raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from esper import faults
from esper.errors import (
    ConfigError,
    DependencyViolationError,
    EsperError,
    NoSeedCandidates,
    PolicyDeadlineExceeded,
    PolicyFailed,
    TheirCodeRaised,
    text_of,
)
from esper.ground.clock import Clock
from esper.leyline.commands import MAX_LOGITS, Command
from esper.leyline.decisions import Decision, Hold, HoldReason, Pair, Verdict
from esper.leyline.ports import Policy
from esper.leyline.reports import FieldReport
from esper.leyline.state import RoundState, SeedState
from esper.tamiyo.command_builder import CommandBuilder
from esper.tamiyo.cost_limit import CostLimit
from esper.tamiyo.decision_checks import malformed, unsound
from esper.tamiyo.eligibility import GrowthWindow, eligible, tournaments_spent
from esper.tamiyo.policy_state import TamiyoState, read_state
from esper.tamiyo.risk import ForkCosts, assess, milder
from esper.tamiyo.settings import RiskConfig
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count, timed
from esper.user_code.process_state import check_process
from esper.user_code.their_code import their_code

Answer = TypeVar("Answer")


class Tamiyo:
    """Decides for one run, and stores the field reports for the policy."""

    def __init__(
        self,
        policy: Policy,
        builder: CommandBuilder,
        window: GrowthWindow,
        limits: RiskConfig,
        *,
        costs: ForkCosts,
        deadline_s: float,
        clock: Clock,
        cost: CostLimit | None = None,
    ) -> None:
        self._policy, self._builder, self._window, self._limits = policy, builder, window, limits
        self._costs, self._deadline_s, self._clock = costs, deadline_s, clock
        self._cost, self._past = cost, list[FieldReport]()

    def state(self) -> str:
        """Return the state as JSON: the policy's version and its field reports."""
        return TamiyoState(policy=self._policy.version, past=tuple(self._past)).model_dump_json()

    def restore(self, state: str, generation: int) -> None:
        """Replace the present state by `state`. `generation` is used only for a check of `state`.

        Raises:
            StoreCorrupt: the text is not a state of Tamiyo, or it is of a later generation; nothing was changed.
            ConfigError: the state is of another policy or version; nothing was changed.
        """
        stored = read_state(state, generation)
        if stored.policy != self._policy.version:
            mend = f"{stored.policy} has decided for this run; resume it with that policy"
            raise ConfigError("policy", self._policy.version, mend)
        self._past = list(stored.past)

    def remember(self, report: FieldReport) -> None:
        """Add a field report to the reports for the policy."""
        self._past.append(report)

    def advance(self, state: RoundState) -> Command | None:
        """Return the command for the first seed whose next gate is due. None: no gate is due.

        The policy is called only if the seed's blend uses logits.

        Raises:
            PolicyDeadlineExceeded, PolicyFailed, ProcessStateChanged: see `decide`.
        """
        due = next((seed for seed in state.seeds if seed.due), None)
        if due is None:
            return None
        logits = self._logits(state, due) if due.blend is not None and due.blend.uses_logits else ()
        return self._builder.advance(state, due, self._policy.version, logits)

    def decide(self, state: RoundState) -> Verdict:
        """Return a command or a hold for this fence, and the policy's decision if the policy was called.

        The policy is called at every fence. If `eligible` returns a hold, the policy gets no pairs. In this case the
        hold is the outcome, unless the policy's decision is to go back. A decision that changes nothing is not recorded
        in this case. The policy's choice of pairs becomes a hold if the ramp is too long for the fences that are left,
        or if a figure is beyond its limit of risk.

        Raises:
            NoSeedCandidates: there are eligible pairs, and the policy chose none of them.
            DependencyViolationError: the policy chose a pair that is not eligible, or its decision is malformed or
                contradicts itself; see `esper.tamiyo.decision_checks`.
            PolicyDeadlineExceeded: the policy took longer than `policy.deadline_s`. The call is not interrupted.
            PolicyFailed: the policy raised an error. That error is the cause of the PolicyFailed.
            ProcessStateChanged: the policy changed a process-wide setting of torch.
        """
        with (
            timed("esper.decision.duration"),
            span("tamiyo decide", role="tamiyo", fence=state.fence, policy=self._policy.name),
        ):
            faults.point("tamiyo.decide", round=state.fence)
            found = eligible(state, self._window)
            pairs = () if isinstance(found, Hold) else found
            decision = self._decision(state, pairs)
            goes_back = decision.go_back_to is not None
            if not goes_back and not decision.hold and (pairs or decision.pairs):
                self._check_pairs(decision, pairs)
            if isinstance(found, Hold) and not goes_back and not decision.rates:
                return Verdict(outcome=found, decision=None)
            count("esper.policy.decisions")
            if goes_back:
                return Verdict(outcome=self._builder.go_back(state, decision), decision=decision)
            rates = self._builder.scale_rates(state, decision)
            if isinstance(found, Hold):
                return Verdict(outcome=found, decision=decision, rates=rates)
            if decision.hold:
                reason = HoldReason.POLICY_CHOICE
                hold = Hold(fence=state.fence, reason=reason, detail=decision.hold)
                return Verdict(outcome=hold, decision=decision, rates=rates)
            kept = milder(decision, self._limits, self._costs)
            spent = tournaments_spent(state, kept) or self._over(state, kept)
            spent = spent or (self._cost.exceeded(state, kept) if self._cost is not None else None)
            limit = spent or assess(state, kept, self._limits, self._costs)
            return Verdict(outcome=limit or self._builder.germinate(state, kept), decision=decision, rates=rates)

    def _over(self, state: RoundState, decision: Decision) -> Hold | None:
        """Return a hold if the policy's ramp is too long for the fences that are left."""
        return self._window.over(state, decision.blend.ramp_steps) if decision.blend is not None else None

    def _decision(self, state: RoundState, pairs: tuple[Pair, ...]) -> Decision:
        def decide() -> Decision:
            with their_code(f"policy {self._policy.name}", "decide"):
                decision = self._policy.decide(state, pairs, tuple(self._past))
            if not isinstance(decision, Decision):
                raise TypeError(f"it returned {type(decision).__name__}, not a Decision")
            return decision

        decision = self._ask(state.fence, "decide", decide)
        problem = malformed(decision) or unsound(decision, state)
        if problem is not None:
            self._refuse(*problem)
        return decision

    def _logits(self, state: RoundState, seed: SeedState) -> tuple[float, ...]:
        def logits() -> tuple[float, ...]:
            with their_code(f"policy {self._policy.name}", "logits"):
                found = self._policy.logits(state, seed, tuple(self._past))
            if not (isinstance(found, tuple) and all(isinstance(value, float) for value in found)):
                raise TypeError(f"it returned {found!r:.200}, not a tuple of floats")
            if len(found) > MAX_LOGITS:
                raise ValueError(f"it returned {len(found)} logits, more than {MAX_LOGITS}")
            return found

        return self._ask(state.fence, "logits", logits)

    def _ask(self, fence: int, method: str, question: Callable[[], Answer]) -> Answer:
        """Return the answer of the policy's method.

        Raises:
            PolicyFailed, PolicyDeadlineExceeded, ProcessStateChanged: see `decide`.
        """
        start = self._clock.monotonic()
        with span("policy", role="tamiyo") as current:
            try:
                answer = question()
                check_process(f"policy {self._policy.name}, {method}")
            except (TheirCodeRaised, ConfigError) as error:  # ConfigError: a field of a message that it made is wrong
                self._tell(error)
                raise PolicyFailed(self._policy.name, fence) from error
            except EsperError as error:
                self._tell(error)
                raise
            except Exception as error:
                self._tell(error)
                raise PolicyFailed(self._policy.name, fence) from error
            elapsed_s = self._clock.monotonic() - start
            if elapsed_s > self._deadline_s:
                count("esper.policy.failures")
                span_id = f"{current.get_span_context().span_id:016x}"
                late = PolicyDeadlineExceeded(elapsed_s, self._deadline_s, span_id)
                figures = {"elapsed_s": elapsed_s, "deadline_s": self._deadline_s}
                raise reported(late, "policy_timeout", Severity.CRITICAL, **figures)
        return answer

    def _tell(self, error: Exception) -> None:
        event = "dependency_violation" if isinstance(error, DependencyViolationError) else "policy_failed"
        reported(error, event, Severity.CRITICAL, error=type(error).__name__, message=text_of(error))
        count("esper.policy.failures")

    def _check_pairs(self, decision: Decision, pairs: tuple[Pair, ...]) -> None:
        stray = [pair for pair in decision.pairs if pair not in pairs]  # pairs are compared by all fields
        if pairs and len(stray) == len(decision.pairs):
            count("esper.policy.failures")
            none = NoSeedCandidates(
                f"policy {self._policy.name}",
                "none of the eligible pairs",
                f"{len(pairs)} are open; choose some of them as `pairs`, or give the reason to choose none as `hold`",
            )
            asked = {"policy": self._policy.name, "eligible": len(pairs)}
            raise reported(none, "policy_no_candidates", Severity.CRITICAL, **asked)
        if stray:
            self._refuse("a pair that is not eligible", f"{stray[0].blueprint_id} at {stray[0].slot}")

    def _refuse(self, missing: str, detail: str) -> NoReturn:
        error = DependencyViolationError(f"policy {self._policy.name}", missing, detail)
        self._tell(error)
        raise error
