"""The lifecycle: the table is the written one, and no step leaves it."""

from __future__ import annotations

import pytest
from growing import a_record

from esper.errors import IllegalTransition
from esper.kasmina.registry.lifecycle import EDGES, STAGE_AFTER
from esper.leyline.stages import LIVE, Stage

WRITTEN = """
DORMANT -> GERMINATED
GERMINATED -> TRAINING
TRAINING -> BLENDING
BLENDING -> SHADOWING
SHADOWING -> PROBATIONARY
PROBATIONARY -> FOSSILIZED
GERMINATED -> CULLED
TRAINING -> CULLED
BLENDING -> CULLED
SHADOWING -> CULLED
PROBATIONARY -> CULLED
CULLED -> EMBARGOED
EMBARGOED -> RESETTING
RESETTING -> DORMANT
RESETTING -> TERMINATED
"""


def test_the_table_is_the_written_one():
    written = {tuple(line.split(" -> ")) for line in WRITTEN.split("\n") if line}
    assert {(before.name, after.name) for before, nexts in EDGES.items() for after in nexts} == written
    assert set(EDGES) == set(Stage)


def test_a_gate_that_passes_lets_a_seed_go_one_edge_further():
    assert all(after in EDGES[before] for before, after in STAGE_AFTER.items())
    assert set(LIVE) <= set(STAGE_AFTER)


@pytest.mark.parametrize("before", Stage)
def test_a_step_that_is_not_in_the_table_is_our_own_bug_and_changes_nothing(before):
    seed = a_record().model_copy(update={"stage": before})
    for after in Stage:
        if after in EDGES[before]:
            moved, step = seed.moved(after, 2, "walk", "command-2")
            assert (step.before, step.after, step.fence, step.command_id) == (before, after, 2, "command-2")
            assert (moved.stage, moved.since_fence) == (after, 2)
            continue
        with pytest.raises(IllegalTransition) as caught:
            seed.moved(after, 2, "walk", "command-2")
        assert caught.value.args == ("seed-1", before, after)
        assert seed.stage is before
