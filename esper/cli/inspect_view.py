"""Text and tables that `esper inspect` prints: the state of a run, its losses, and its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from esper.cli.tables import cells, grid, table
from esper.leyline.finish import Finish
from esper.leyline.stages import IN_HOST, Stage
from esper.setup.verdicts import Verdict, in_words
from esper.setup.wording import choice, gain_and_z, growing, number

ON_ITS_WAY = (*IN_HOST, Stage.GERMINATED, Stage.TRAINING)


def place(found: Mapping[str, Any]) -> str:
    """Return state, fence, step, training loss and emergency level of the run, in one line."""
    loss, names = found["train_loss"], ("fence", "steps", "total_steps")
    fence, step, total = ("?" if found[name] is None else found[name] for name in names)
    return (
        f"{found['run_dir']}: {found['state']}, fence {fence}, step {step}/{total}"
        + (f", loss {number(loss)}" if loss is not None else "")
        + (f", rollbacks {found['rollbacks']}" if found["rollbacks"] else "")
        + (f", emergency level {found['level']}" if found["level"] is not None else "")
        + (f", metrics at {found['prometheus']}" if found["prometheus"] is not None else "")
    )


def losses(found: Mapping[str, Any]) -> Table:
    """Return a table of the test losses of a finished run, and the reason if no seed stayed in it. Before the run has
    ended, the table has no rows.
    """
    shown, end, twin = grid(), found["test_loss"], found["twin_test_loss"]
    if end is not None:
        start = found["start_test_loss"]
        shown.add_row(*cells("test loss", f"{number(start)} -> {number(end)}" if start is not None else number(end)))
    if end is not None and twin is not None:
        shown.add_row(*cells("without growing", f"{number(twin)} (the twin); {growing(end, twin)}"))
    if found["finish"] is not None:
        shown.add_row(*cells("network", choice(Finish.model_validate(found["finish"]))))
    if found["why_none_stayed"] is not None:
        shown.add_row(*cells("no growth", found["why_none_stayed"]))
    return shown


def seeds(found: Mapping[str, Any]) -> Table:
    """Return a table of the seeds that G2 judged, that are in the network, or that still train.

    The table leaves out seeds that were culled before G2. The function `beaten` counts these culled seeds.
    """
    shown = table("seed", "slot", "blueprint", "blend", "stage", "gain", "z", figures=("stage", "gain", "z"))
    for seed in found["seeds"]:
        if not _beaten(seed):
            figures = gain_and_z(seed["gain"], seed["z"])
            blend = _blend(seed)
            shown.add_row(*cells(seed["seed_id"][:8], seed["slot"], seed["blueprint"], blend, seed["stage"], *figures))
    return shown


def judged(found: Mapping[str, Any]) -> Table:
    """Return a table of the judgements of G2, each with its figures and their limits."""
    shown = grid()
    for seed in found["seeds"]:
        if seed["g2"] is not None:
            shown.add_row(*cells(seed["seed_id"][:8], f"G2 {in_words(Verdict.model_validate(seed['g2']))}"))
    return shown


def _blend(seed: Mapping[str, Any]) -> str:
    """Return a seed's blend mode, with the mean of alpha in its last round, the factor on its learning rates if a
    policy changed it, and the fence of its adoption if it was adopted. Return an empty text if the seed was in no
    round. If the seed was removed, return why.
    """
    report, factor = seed["blend"], seed["rate_scale"]
    if report is None:
        return ""
    if seed["stage"] not in IN_HOST:
        return f"removed: {', '.join(seed['culled_for'] or ['no report'])}"
    changed = f", rates x {factor:g}" if factor != 1.0 else ""
    adopted = f", adopted at {seed['adopted_at']}" if seed["adopted_at"] is not None else ""
    return f"{report['mode']} {report['mean']:.2f}{changed}{adopted}"


def beaten(found: Mapping[str, Any]) -> str:
    """Return the number of seeds that the table of `seeds` leaves out, by slot. Return an empty text if the table
    leaves out no seed.
    """
    slots = Counter(seed["slot"] for seed in found["seeds"] if _beaten(seed))
    if not slots:
        return ""
    where = ", ".join(f"{slot} {count}" for slot, count in slots.items())
    return f"and {slots.total()} culled in tournaments or before ({where}); --json lists them"


def _beaten(seed: Mapping[str, Any]) -> bool:
    return seed["z"] is None and seed["stage"] not in ON_ITS_WAY
