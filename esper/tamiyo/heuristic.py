"""The default policy: first a tournament between the eligible pairs, then replicas of the winner.

Incubation selects a good pair. If `growth.replicas` is above 1, the policy then repeats the winner until a replica
fails, the slot is full, or this number is reached. Then it starts the next tournament. A pair that was tried rests for
some fences before it may enter a tournament again. It gets another try, because it may help a host that has trained
longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.decisions import Decision, Pair
from esper.leyline.evidence import best_first
from esper.leyline.reports import TOO_SMALL, FieldReport
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState, SeedState
from esper.policies import make_decision
from esper.tamiyo.fields import in_turn, spread

RETRY_FENCES, SETTLED_RETRY_FENCES = 3, 12
"""Numbers of fences for which a tried pair rests. The first number applies until the host has an accepted seed, and the
second number afterwards.

Measured with run seeds 1-3 on the text task: if the rest is 3 fences even after a winner and its replicas, no further
seed is accepted, and the incubation costs 1.6 to 1.9 times as much. Without a winner, only another try can grow the
host.
"""


class HeuristicPolicy:
    """Starts a tournament first, then repeats its winner.

    Args:
        candidates: Largest number of pairs in one tournament.
        best_again: Number of pairs in each tournament after the first: the best of the first. None: all pairs that do
            not rest.
        replicas: Largest number of seeds of a winning pair in the host, the winner included.
        ramp_steps: Optimizer steps over which the alpha of a grafted seed rises. A replica gets the winner's blend.
        looks: Number of times that refused seeds of a tournament are judged again (`growth.beside`). If there are such
            looks and they refuse the best seed, too, its pairs are not tried once more by `best_again`.
    """

    name = "heuristic"
    version = "heuristic-1"

    def __init__(
        self, candidates: int, replicas: int, ramp_steps: int, best_again: int | None = None, looks: int = 0
    ) -> None:
        self._candidates, self._replicas, self._best_again, self._looks = candidates, replicas, best_again, looks
        self._blend = BlendSpec(mode=BlendMode.RESIDUAL, ramp_steps=ramp_steps)

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Return a replica of the latest winner.

        If no replica is allowed, return a tournament of the pairs that do not rest.
        """
        winner = self._winner(state)
        if winner is not None:
            again = [p for p in eligible if (p.slot, p.blueprint_id) == (winner.slot, winner.blueprint_id)]
            if again and self._may_repeat(state, winner):
                return make_decision(self, state, pairs=again, blend=winner.blend, replica_of=winner.seed_id)
        if self._best_again is not None and state.seeds:
            return self._again(state, eligible, past, self._best_again)
        rest = RETRY_FENCES if winner is None else SETTLED_RETRY_FENCES
        resting = {(r.slot, r.blueprint_id) for r in past if state.fence < r.window_fences[1] + rest}
        fresh = [pair for pair in eligible if (pair.slot, pair.blueprint_id) not in resting]
        if not fresh:
            return make_decision(self, state, hold="every open pair was tried a short while ago")
        room = min(self._candidates, state.tests_allowed - state.tests_used)
        return make_decision(self, state, pairs=spread(fresh, room), blend=self._blend)

    def _again(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport], count: int) -> Decision:
        """Return a tournament of the best eligible pairs of the first tournament, those of different slots first."""
        if self._looks and _gained_too_little(state, past):
            return make_decision(self, state, hold="the later looks refused the best pairs, too")
        open_pairs = {(pair.slot, pair.blueprint_id): pair for pair in eligible}
        best = in_turn([pair for pair in best_of_first(state, past) if pair in open_pairs])
        chosen = [open_pairs[pair] for pair in best[: min(count, state.tests_allowed - state.tests_used)]]
        if not chosen:
            why = "none of the best pairs of the first tournament is open"
            return make_decision(self, state, hold=why + _without_room(state))
        return make_decision(self, state, pairs=chosen, blend=self._blend)

    def logits(self, state: RoundState, seed: SeedState, past: Sequence[FieldReport]) -> tuple[float, ...]:
        """Return no logits, because no blend of this policy uses logits."""
        del state, seed, past
        return ()

    def _winner(self, state: RoundState) -> SeedState | None:
        """Return the latest seed in the host that won a tournament. Replicas do not count. None: there is no winner."""
        won = [s for s in state.seeds if s.stage in IN_HOST and s.replica_of is None]
        return won[-1] if won else None  # seeds are in the order of their GERMINATE commands

    def _may_repeat(self, state: RoundState, winner: SeedState) -> bool:
        family = [s for s in state.seeds if s.seed_id == winner.seed_id or s.replica_of == winner.seed_id]
        in_host = sum(s.stage in IN_HOST for s in family)
        return in_host < self._replicas and in_host == len(family)  # no replica if one of the family failed


def _gained_too_little(state: RoundState, past: Sequence[FieldReport]) -> bool:
    """Return whether the best seed of the first tournament was refused only because it gained too little."""
    first = {seed.seed_id for seed in state.seeds if seed.command_id == state.seeds[0].command_id}
    reasons = [set(report.reasons) for report in past if report.seed_id in first]
    return any(one and one <= TOO_SMALL for one in reasons)


def _without_room(state: RoundState) -> str:
    """Return words for the pairs of the first tournament that no longer fit the budget. Empty: all of them fit."""
    room = state.parameter_budget - state.added_parameters
    first = {(seed.slot, seed.blueprint_id) for seed in state.seeds if seed.command_id == state.seeds[0].command_id}
    tried = [pair for pair in state.options if (pair.slot, pair.blueprint_id) in first]
    names = [f"{pair.blueprint_id} at {pair.slot}" for pair in tried if pair.parameters > room]
    return f"; over the {room:,} parameters that growth.parameter_budget leaves: {', '.join(names)}" if names else ""


def best_of_first(state: RoundState, past: Sequence[FieldReport]) -> list[tuple[str, str]]:
    """Return the (slot, blueprint) pairs of the first tournament, the best first.

    A pair whose seed was accepted has no report yet, or a successful one, and comes first. Then come the pairs whose
    forks were trained to the end, and then the others, each by the gain on the pick shard. Seeds that failed a gate
    before their fork trained have no gain, and are left out.
    """
    reports = {report.seed_id: report for report in reversed(past)}
    found = []
    for seed in state.seeds:
        if seed.command_id != state.seeds[0].command_id:
            break
        report = reports.get(seed.seed_id)
        accepted = seed.stage in IN_HOST
        if accepted or (report is not None and report.pick_gain is not None):
            gain = report.pick_gain if report is not None and report.pick_gain is not None else 0.0
            dropped = report is not None and "not_enough_steps" in report.reasons
            found.append((not accepted, dropped, best_first(gain), seed.slot, seed.blueprint_id))
    return [(slot, blueprint) for *_, slot, blueprint in sorted(found)]
