"""The one table of a seed's life. It says which step may follow which; it judges nothing."""

from __future__ import annotations

from esper.errors import IllegalTransition
from esper.leyline.stages import Stage

EDGES: dict[Stage, tuple[Stage, ...]] = {
    Stage.DORMANT: (Stage.GERMINATED, Stage.TERMINATED),
    Stage.GERMINATED: (Stage.TRAINING, Stage.CULLED),
    Stage.TRAINING: (Stage.BLENDING, Stage.CULLED),
    Stage.BLENDING: (Stage.SHADOWING, Stage.CULLED),
    Stage.SHADOWING: (Stage.PROBATIONARY, Stage.CULLED),
    Stage.PROBATIONARY: (Stage.FOSSILIZED, Stage.CULLED),
    Stage.FOSSILIZED: (Stage.TERMINATED,),
    Stage.CULLED: (Stage.EMBARGOED,),
    Stage.EMBARGOED: (Stage.RESETTING,),
    Stage.RESETTING: (Stage.DORMANT,),
    Stage.TERMINATED: (),
}

NEXT: dict[Stage, Stage] = {
    Stage.TRAINING: Stage.BLENDING,
    Stage.BLENDING: Stage.SHADOWING,
    Stage.SHADOWING: Stage.PROBATIONARY,
    Stage.PROBATIONARY: Stage.FOSSILIZED,
}
"""Where a gate that passes lets a seed go."""


def check_edge(seed_id: str, current: Stage, requested: Stage) -> Stage:
    """The requested stage, if the table has the edge.

    Raises:
        IllegalTransition: it has not; a bug of ours, since admission refuses such commands earlier.
    """
    if requested not in EDGES[current]:
        raise IllegalTransition(seed_id, current, requested)
    return requested
