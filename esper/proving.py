"""Whether a run took the course that its config gives: it is run again, undisturbed, and compared with its journal."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from esper.errors import ConfigError, StoreCorrupt
from esper.history import Past, read_past
from esper.journal import Kind
from esper.loop import run
from esper.progress import Progress
from esper.resuming import load_same_task


@dataclass(frozen=True)
class Divergence:
    """The first thing that was otherwise in the run than in its repetition."""

    what: str
    """`loss` of a step or `weights` at a fence."""
    fence: int
    step: int | None
    recorded: float | None
    """The loss, or the checksum of the weights; None: there was none."""
    repeated: float | None


@dataclass(frozen=True)
class Proof:
    """How far a run was compared, and where it went another way."""

    steps: int
    fences: int
    """At which the weights were compared."""
    divergence: Divergence | None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"same": self.divergence is None, **asdict(self)}


def prove(run_dir: Path, progress: Progress) -> Proof:
    """Run the config of `run_dir` again, in this process and undisturbed, and compare as far as the run got.

    Raises:
        RunDirectoryError: no run is there.
        TaskError: its task cannot be found, or is not the one that it was begun with.
        ConfigError: it was given another length on its way; such a run cannot be repeated in one.
    """
    past = read_past(run_dir)
    begun = [entry.body for entry in past.entries if entry.kind is Kind.RUN_STARTED]
    if not begun:
        raise StoreCorrupt(str(run_dir), "the record of its beginning cannot be read: there is nothing to compare with")
    if begun[0]["fence_steps"] != list(past.identity.fence_steps):
        raise ConfigError("RUN", str(run_dir), "it was given another length on its way, and cannot be repeated in one")
    task, reference = load_same_task(past.identity)
    with tempfile.TemporaryDirectory(prefix="esper-prove-") as folder:
        own = past.identity.config.run.model_copy(update={"dir": str(Path(folder) / "run")})
        config = past.identity.config.model_copy(update={"run": own, "faults": ()})
        result = run(task, config, reference=reference, progress=progress)
        return compare(past, read_past(Path(result.run_dir)))


def compare(recorded: Past, repeated: Past) -> Proof:
    """Every step's loss and every fence's weights of a run with those of its repetition, in order."""
    losses, losses_again = _losses(recorded), _losses(repeated)
    weights, weights_again = _weights(recorded), _weights(repeated)
    steps = fences = 0
    for fence in sorted(losses.keys() | weights.keys()):
        for one, other in zip_longest(losses.get(fence, ()), losses_again.get(fence, ())):
            if one != other:
                return Proof(steps, fences, Divergence("loss", fence, steps, one, other))
            steps += 1
        if fence in weights:
            one, other = weights[fence], weights_again.get(fence)
            if one != other:
                return Proof(steps, fences, Divergence("weights", fence, None, one, other))
            fences += 1
    return Proof(steps, fences, None)


def _losses(past: Past) -> dict[int, list[float]]:
    """Of every step, by the fence that its round ended at; fence 0 ended none."""
    return {e.body["fence"]: e.body["losses"] for e in past.entries if e.kind is Kind.ROUND_ENDED}


def _weights(past: Past) -> dict[int, int]:
    """By fence; of every checkpoint that was ever committed, those that are dropped by now included."""
    commits = (entry.body for entry in past.entries if entry.kind is Kind.CHECKPOINT_COMMITTED)
    return {body["fence"]: body["weights_crc32c"] for body in commits}
