"""Repeats a run from its config, without faults, and compares the repetition with the run's journal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from esper.archive.history import Past, check_sound, committed, read_past
from esper.archive.identity import Identity
from esper.archive.journal import RecordKind
from esper.archive.resuming import check_sealed, check_versions, task_for
from esper.archive.summary import Summary
from esper.archive.verification import verdicts
from esper.config.joined import RunConfig
from esper.errors import CheckpointCorrupt, Drained, RunDirectoryError
from esper.flow.entry import check_watchers, repeat
from esper.flow.progress import Progress, Quiet
from esper.flow.stopping import Drain
from esper.flow.tally import Tally
from esper.ground.arguments import path_of
from esper.ground.hash_seed import VARIABLE
from esper.ground.machine import cpu_type
from esper.ground.workplace import from_here
from esper.leyline.decisions import Hold
from esper.leyline.incubation import Answer
from esper.leyline.ports import Policy
from esper.leyline.state import RoundState
from esper.setup.survey import Survey
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.policy_check import check_policy, policy_in_words
from esper.task import Task
from esper.user_code.task_reference import given_task


@dataclass(frozen=True)
class Divergence:
    """The first difference between a run and its repetition."""

    what: str
    """`loss` of a step, `weights` at a fence, or `network` for the network with which the run ends."""
    fence: int
    step: int | None
    recorded: float | None
    """Loss or checksum of the weights in the run. For `network`: mean loss of the network of the run. None: the run has
    no record of it."""
    repeated: float | None
    """The same of the repetition. None: the repetition has no record of it."""


@dataclass(frozen=True)
class Proof:
    """The extent of a comparison, and the first difference."""

    steps: int
    fences: int
    """Number of fences whose weights were compared."""
    total_steps: int
    """Steps of the whole run. A run that stopped is compared up to the last fence that it passed."""
    divergence: Divergence | None
    network: str | None = None
    """`live` or `twin`: the network that the run chose at its end (`growth.finish`), as its repetition did. None: it
    chose none, or it did not reach its end."""

    def as_json(self) -> dict[str, Any]:
        """Return the proof as JSON values."""
        return {"same": self.divergence is None, **asdict(self)}


@from_here()
def prove(
    run_dir: str | os.PathLike[str],
    task: Task | str | None = None,
    *,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Run the config of `run_dir` again, in this process and without faults. Compare it with the run, up to the run's
    last fence.

    The emergency levels of the run are in force again at the same fences, because they follow from its journal.

    ```python
    proof = esper.prove("runs/my-run", policy=MyPolicy())
    assert proof.divergence is None, proof.divergence
    ```

    Args:
        task: The task of the run, or its reference as a text. Needed only if `run.json` has no reference to it.
        policy: A new policy of the class and version that decided for the run. None: the policy of the config. With a
            policy of your own, weights are compared at the fences that have a checkpoint by schedule, because a policy
            sees at which fences the run has checkpoints.
        progress: An `esper.Progress`. By default nothing is shown.

    Returns:
        The number of compared steps and fences, and the first difference. `divergence` is None if there is none.

    Raises:
        ConfigError: an argument has a wrong type.
        RunDirectoryError: the directory has no run, no round was finished, or the run cannot be repeated here. It
            cannot be repeated if other versions are installed, if the type of processor differs, if a resume changed
            its length, or if another policy decided for it. The error is also raised if the results differ and Python
            orders sets of texts differently in this process.
        StoreCorrupt: a journal or a checkpoint is damaged; nothing was compared.
        TaskError: the task cannot be found, or is not the task of the run.
    """
    run_dir = path_of("run_dir", run_dir)
    if policy is not None:
        check_policy(policy)
    check_watchers(progress)
    given = given_task(task)[0] if task is not None else None
    past = read_past(run_dir)
    _check_sound(run_dir, past)
    check_sealed(run_dir, past)
    check_versions(run_dir, past.identity)
    _check_repeatable(run_dir, past, policy)
    finished = _losses(past)
    if not finished:
        raise RunDirectoryError("RUN", str(run_dir), "not one round of it was finished: there is nothing to compare")
    found, _ = task_for(past.identity, given)
    with tempfile.TemporaryDirectory(prefix="esper-prove-") as folder:
        again, until = Path(folder) / "run", _Until(max(finished), progress or Quiet(), past, run_dir)
        config = _undisturbed(past, again, every_fence=policy is None)
        signals = [entry for entry in past.entries if entry.kind is RecordKind.SIGNAL]
        with suppress(Drained):
            repeat(found, config, policy, signals, until, until.drain)
        proof = compare(past, read_past(again), all_weights=policy is None)
    if proof.divergence is not None and past.identity.orders_texts_otherwise:
        raise _no_proof(run_dir, past.identity, f"its repetition here differs at fence {proof.divergence.fence}")
    return proof


def _check_sound(run_dir: Path, past: Past) -> None:
    """Raises: StoreCorrupt: the run directory is damaged. A damaged directory must not be reported as a different
    result.
    """
    check_sound(run_dir, past)
    for found in verdicts(run_dir, past.commits):
        if not found["ok"]:
            raise CheckpointCorrupt(found["file"], found["reason"])


def _check_repeatable(run_dir: Path, past: Past, policy: Policy | None) -> None:
    """Raises: RunDirectoryError: the run depended on something that its config and this machine cannot repeat."""
    starts = [entry.body for entry in past.entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)]
    why = ""
    if any(body["fence_steps"] != list(past.identity.fence_steps) for body in starts):
        why = "a resume changed its length, and esper proves only runs of one length"
    elif other := sorted({body["cpu"] for body in starts} - {cpu_type()}):
        why = f"it ran on {', '.join(other)}, which may give other bits than this processor ({cpu_type()})"
    elif past.identity.policy not in (None, policy_in_words(policy)):
        why = _other_policy(past.identity.policy, policy)
    elif other := sorted({made for made in _policies(past) if made != (policy or HeuristicPolicy).version}):
        why = _other_policy(f"version {', '.join(other)}", policy)
    if why:
        raise RunDirectoryError("RUN", str(run_dir), why)


def _other_policy(made: str, policy: Policy | None) -> str:
    """Return the reason why decisions of a policy cannot be repeated, and the mend."""
    other = f"{made}, made its decisions, and not {policy_in_words(policy)}"
    return f"another policy, {other}; give that policy, from Python: esper.prove(run_dir, policy=...)"


def _no_proof(run_dir: Path, began: Identity, found: str) -> RunDirectoryError:
    """Return the error for a repetition with other results, if this process iterates over sets of texts in another
    order than the process of the run.
    """
    seed = began.hash_seed
    mend = f"start this command with {VARIABLE}={seed}" if seed is not None else f"no {VARIABLE} was set when it began"
    why = f"{found}, and a set of texts has another order than when it began ({mend}): sort it where the order matters"
    return RunDirectoryError("RUN", str(run_dir), why)


def _policies(past: Past) -> Iterator[str]:
    """Yield the version of the policy that made each decision."""
    for entry in past.entries:
        if entry.kind is RecordKind.DECISION:
            yield entry.body["policy_version"]


def _undisturbed(past: Past, place: Path, *, every_fence: bool) -> RunConfig:
    """Return the run's config without faults and with another directory.

    Args:
        every_fence: Make a checkpoint at every fence, because a stop of the run may have made a checkpoint at any
            fence.
    """
    config = past.identity.config
    own = {
        "run": config.run.model_copy(update={"dir": str(place)}),
        "faults": (),
    }
    if every_fence:
        own["checkpoint"] = config.checkpoint.model_copy(update={"every_rounds": 1})
    return config.model_copy(update=own)


@dataclass
class _Until:
    """Forwards everything to `shown`, and requests a stop at the fence `last`."""

    last: int
    shown: Progress
    past: Past
    run_dir: Path
    drain: Drain = field(default_factory=Drain)

    def started(self, survey: Survey, path: Path) -> None:
        """Raises: RunDirectoryError: the survey's steps give other weights, and sets of texts have another order."""
        began = self.past.identity
        other = survey.rehearsed_crc32c != began.rehearsed_crc32c
        if other and began.orders_texts_otherwise:
            raise _no_proof(self.run_dir, began, "after the same first steps its weights differ here")
        self.shown.started(survey, path)

    def found(self, what: str) -> None:
        self.shown.found(what)

    def working(self, what: str) -> None:
        self.shown.working(what)

    def fence(self, state: RoundState, tally: Tally) -> None:
        self.shown.fence(state, tally)
        if state.fence == self.last and state.rollbacks >= self.past.rollbacks:  # not before it went back as often
            self.drain.ask()

    def hold(self, hold: Hold) -> None:
        self.shown.hold(hold)

    def answer(self, answer: Answer) -> None:
        self.shown.answer(answer)

    def ended(self, result: Summary) -> None:
        self.shown.ended(result)


def compare(recorded: Past, repeated: Past, *, all_weights: bool = True) -> Proof:
    """Compare a run with its repetition: the loss of every step and the weights of every checkpoint, in order.

    Args:
        all_weights: The repetition has a checkpoint at every fence. False: weights are compared at the fences at which
            both have one.
    """
    losses, losses_again = _losses(recorded), _losses(repeated)
    weights, weights_again = _weights(recorded), _weights(repeated)
    total, steps, fences = recorded.identity.total_steps, 0, 0
    for fence in sorted(losses.keys() | weights.keys()):
        for one, other in zip_longest(losses.get(fence, ()), losses_again.get(fence, ())):
            if one != other:
                return Proof(steps, fences, total, Divergence("loss", fence, steps, one, other))
            steps += 1
        if fence in weights and (all_weights or fence in weights_again):
            one, other = weights[fence], weights_again.get(fence)
            if one != other:
                return Proof(steps, fences, total, Divergence("weights", fence, None, one, other))
            fences += 1
    chosen, again = _chosen(recorded), _chosen(repeated)
    if chosen is not None and chosen != again:  # a run that ended at its last fence before its choice has none
        one, other = (_loss_of(found) for found in (chosen, again))
        return Proof(steps, fences, total, Divergence("network", max(losses), None, one, other))
    return Proof(steps, fences, total, None, chosen["network"] if chosen is not None else None)


def _chosen(past: Past) -> dict[str, Any] | None:
    """Return the body of the record in which a run chose its network at its end. None: it has no such record."""
    found = [entry.body for entry in past.entries if entry.kind is RecordKind.FINISHED]
    return found[-1] if found else None


def _loss_of(chosen: dict[str, Any] | None) -> float | None:
    return None if chosen is None else chosen[chosen["network"]]["mean"]


def _losses(past: Past) -> dict[int, list[float]]:
    """Return the losses of every round's steps, by the fence at its end. Fence 0 has no losses, because no step was
    taken before it.
    """
    return {e.body["fence"]: e.body["losses"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED}


def _weights(past: Past) -> dict[int, int]:
    """Return the checksum of the weights of every checkpoint that was ever committed, by fence."""
    return {written.fence: written.weights_crc32c for written in committed(past.entries)}
