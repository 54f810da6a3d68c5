"""Text and table that `esper plan` prints for a forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from esper.cli.tables import cells, table
from esper.ground.suggest import listed
from esper.leyline.slots import Kind
from esper.setup.candidates import NONE
from esper.setup.wording import number
from esper.tolaria.data import EVALUATION_BATCH

FIGURES = ("parameters", "cost / host", "risk")


def candidates(found: Mapping[str, Any]) -> Table:
    """Return a table of all candidates with size, cost, and place in the run. Only the first row of a slot has the name
    of the slot.

    If nothing can germinate, candidates of a slot that have the same place share a row.
    """
    shown, last = table("slot", "blueprint", "parameters", "cost / host", "risk", "in a run", figures=FIGURES), ""
    for rows in _together(found):
        name = rows[0]["slot"]
        slot, last = ("" if name == last else name), name
        shown.add_row(
            *cells(
                slot,
                listed(row["blueprint"] for row in rows),
                _range(rows, "parameters", lambda size: f"{size:,}"),
                _range(rows, "cost_ratio", lambda cost: number(cost, 2)),
                _range(rows, "risk", lambda risk: f"{risk:.2f}"),
                _in_a_run(rows[0]["place"], found),
            )
        )
    return shown


def _together(found: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Return groups of the candidates that share a row of the table."""
    if found["germinates_at_fences"] is not None:
        return [[row] for row in found["candidates"]]
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in found["candidates"]:
        rows.setdefault((row["slot"], row["place"]), []).append(row)
    return list(rows.values())


def _range(rows: Sequence[Mapping[str, Any]], name: str, show: Callable[[Any], str]) -> str:
    """Return the number if all rows have the same, else the smallest and the largest number."""
    figures = [row[name] for row in rows]
    least, largest = show(min(figures)), show(max(figures))
    return least if least == largest else f"{least} to {largest}"


def _in_a_run(place: str, found: Mapping[str, Any]) -> str:
    """Describe the place of a candidate in the run. If nothing can germinate, return the reason."""
    if place == NONE:
        return "none: the run is too short (see below)" if found["why_nothing_grows"] else "none: growth is off"
    return place.replace("growth.", "")


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return lines about the fences at which seeds can germinate, the cost of a tournament, and the wait for it."""
    told = [*preset(found), *padding(found), *companions(found), _germination(found), *_rungs(found)]
    return [*told, _compute(found), *_limit(found), _waits(found)]


def preset(found: Mapping[str, Any]) -> list[str]:
    """Return lines about the values of [growth] that the preset has set, and the values that replace the preset's. The
    heading of a run has the keys that are left out or have no effect.
    """
    told = [f"growth.preset={found['preset']} sets {_settings(found['preset_sets'])}"] if found["preset_sets"] else []
    others = found["preset_overridden"]
    return [*told, *([f"instead of the preset's: {_settings(others)}"] if others else [])]


def out_of_preset(left_out: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return a line about each key of [growth] in `GrowthConfig.preset_left_out`."""
    return [f"growth.{key} leaves out of the preset: {_settings(values)}" for key, values in left_out.items()]


def no_effect(without: Mapping[str, str]) -> list[str]:
    """Return a line about each key of [growth] in `GrowthConfig.without_effect`."""
    return [f"growth.{key} has no effect with {why}" for key, why in without.items()]


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in values.items())


def padding(found: Mapping[str, Any]) -> list[str]:
    """Return a warning about slots whose length differs between batches, because their seeds treat padding as
    content."""
    padded = [slot["path"] for slot in found["slots"] if slot["varies"] and Kind(slot["kind"]).time is not None]
    if not padded:
        return []
    where = f"{', '.join(padded)}: the length differs between batches"
    told = f"{where}; seeds that mix positions (attention, convolutions over time) may see the padding as content"
    masked = [slot["path"] for slot in found["slots"] if slot["path"] in padded and "padding" in slot]
    return [f"{told}, except masked_attention in {', '.join(masked)}" if masked else told]


def companions(found: Mapping[str, Any]) -> list[str]:
    """Return notes if the loss or the network makes the loss of a sample depend on the other samples of its batch, or
    if this could not be determined.

    Args:
        found: At least the values of `esper.setup.forecast.batch_facts`.
    """
    means = f"losses are means over evaluation batches of {EVALUATION_BATCH} samples (docs/figures.md)"
    notes = []
    if found["loss_depends_on_batch"]:
        notes.append(f"the loss of a sample depends on the other samples of its batch: {means}")
    elif found["loss_depends_on_batch"] is None:
        unknown = "whether the loss of a sample depends on the other samples of its batch could not be determined"
        notes.append(f"{unknown}: {found['loss_depends_on_batch_unknown']}; if it does, {means}")
    if found["network_mixes_samples"]:
        by = f"{found['mixed_by']} mixes the samples of a batch, in evaluation too"
        notes.append(f"{by}: {means}, and its output for a sample depends on the other samples of the batch")
    elif found["network_mixes_samples"] is None:
        unknown = "whether the network mixes the samples of a batch in evaluation could not be determined"
        notes.append(f"{unknown}: {found['network_mixes_samples_unknown']}")
    return notes


def _germination(found: Mapping[str, Any]) -> str:
    window, hold = found["germinates_at_fences"], found["first_hold"]
    if window is None:
        why = found["why_nothing_grows"]
        return f"nothing can germinate: {why}" if why else "nothing can germinate: growth is off"
    said = f"germinates at fences {window[0]} to {window[1]}"
    if hold is None:
        return said
    limit = "" if hold["limit"] is None else f" ({hold['measured']:.4g}, limit {hold['limit']:.4g})"
    return f"{said}; at the first of them nothing would be tried: {hold['detail']}{limit}"


def _rungs(found: Mapping[str, Any]) -> list[str]:
    """Return a line about the rungs of the first tournament. Empty: no seed can germinate."""
    told = [
        f"{_between(rung['candidates_least'], rung['candidates_most'])} candidates train {rung['step']} steps (judged"
        f" on {rung['samples']} samples)"
        for rung in found["rungs"]
    ]
    begin = f"first tournament, from the snapshot at step {found['first_snapshot_step']} of the run on"
    return [f"{begin}: {', '.join(told)}, and {found['placebos']} placebos"] if told else []


def _between(least: object, most: object) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def _compute(found: Mapping[str, Any]) -> str:
    ends = (number(found[name], 2) for name in ("tournament_gflops_least", "tournament_gflops_most"))
    return (
        f"modelled: host {number(found['host_gflops'], 2)} GFLOP, twin {number(found['twin_gflops'], 2)} GFLOP, first"
        f" tournament {_between(*ends)} GFLOP and {number(found['tournament_bytes'] / 2**20, 2)}"
        " MiB of weights, gradients and moments" + _of_looks(found["looks_gflops_most"])
    )


def _of_looks(most: float) -> str:
    """Return words for the compute of later looks, in GFLOP. The text is empty if there are none."""
    return f"; if it is refused, its later looks take up to {number(most, 2)} GFLOP (growth.beside)" if most else ""


def _limit(found: Mapping[str, Any]) -> list[str]:
    """Return a line about the limit of the compute of the run. Empty: there is no limit."""
    if (limit := found["max_cost_gflops"]) is None:
        return []
    said = f"growth.max_cost: the whole run takes at most {number(limit, 2)} GFLOP"
    most = found["total_gflops_most"]
    return [f"{said}; with the first tournament alone at most {number(most, 2)}" if most is not None else said]


def _waits(found: Mapping[str, Any]) -> str:
    """Return a line of forecast times, from measurements: the time of a step, and the seconds that the trainer
    waits.
    """
    said = f"measured: {number(1e3 * found['step_s'], 1)} ms a step of the host"
    if found["fence_wait_first_s"] is None:
        return said

    def seconds(name: str) -> str:
        return f"{number(found[name], 1)} s"

    enough, count = found["managers_for_no_wait"], found["managers"]
    least = f"{enough} managers end it" if enough else "no number of managers ends it"
    later = {"again": "for a second one after an accepted seed", "replica": "for a replica"}
    waits = ((f"fence_wait_{name}_s", words) for name, words in later.items())
    more = "".join(f", about {seconds(name)} {words}" for name, words in waits if found[name] is not None)
    return (
        f"{said}; with {count} manager{'s' if count > 1 else ''} the trainer waits {seconds('fence_wait_first_s')} for"
        f" the first tournament{more}; with a manager for each fork it waits"
        f" {seconds('fence_wait_least_s')} for the first tournament ({least} within its rounds); in one process the"
        f" tournament takes {seconds('tournament_s')}"
    )
