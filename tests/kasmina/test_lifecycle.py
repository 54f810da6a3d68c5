"""The lifecycle: the table is the written one, and no walk ever leaves it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import IllegalTransition
from esper.kasmina.registry.lifecycle import EDGES, STAGE_AFTER, check_edge
from esper.kasmina.registry.seed_record import SeedRecord
from esper.leyline.stages import IN_HOST, LIVE, Stage

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


def dormant_seed() -> SeedRecord:
    return SeedRecord(
        seed_id="seed-1",
        slot="body",
        blueprint_id="mlp",
        command_id="command-1",
        policy_version="scripted-1",
        replica_of=None,
        required_mesh=("body",),
        parameters=1,
        parameter_bytes=4,
        flops=1,
        germinated_fence=1,
        since_fence=1,
    )


def test_the_table_is_the_written_one():
    written = {tuple(line.split(" -> ")) for line in WRITTEN.split("\n") if line}
    assert {(before.name, after.name) for before, nexts in EDGES.items() for after in nexts} == written
    assert set(EDGES) == set(Stage)


def test_a_gate_that_passes_lets_a_seed_go_one_edge_further():
    assert all(after in EDGES[before] for before, after in STAGE_AFTER.items())
    assert set(LIVE) <= set(STAGE_AFTER)


@given(st.sampled_from(Stage), st.sampled_from(Stage))
def test_an_edge_that_is_not_in_the_table_is_our_own_bug(current, requested):
    if requested in EDGES[current]:
        assert check_edge("seed-1", current, requested) is requested
        return
    with pytest.raises(IllegalTransition) as caught:
        check_edge("seed-1", current, requested)
    assert caught.value.args == ("seed-1", current, requested)


@given(st.lists(st.sampled_from(Stage), max_size=60))
def test_no_walk_reaches_a_stage_but_along_the_table_and_a_refused_step_changes_nothing(wishes):
    seed = dormant_seed()
    visited = [seed.stage]
    for fence, wish in enumerate(wishes, start=2):
        before = seed
        try:
            seed, step = seed.moved(wish, fence, "walk", "command-2")
        except IllegalTransition:
            assert seed is before
            continue
        assert (step.before, step.after, step.fence, step.command_id) == (before.stage, wish, fence, "command-2")
        assert (seed.stage, seed.since_fence) == (wish, fence)
        visited.append(wish)

    for before, after in itertools.pairwise(visited):
        assert after in EDGES[before]
    if Stage.TERMINATED in visited:
        assert visited.index(Stage.TERMINATED) == len(visited) - 1
    for entered in (place for place, stage in enumerate(visited) if stage is Stage.BLENDING):
        assert visited[entered - 3 : entered] == [Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING]
    if Stage.FOSSILIZED in visited:
        end = visited.index(Stage.FOSSILIZED)
        assert tuple(visited[end - 3 : end + 1]) == IN_HOST
