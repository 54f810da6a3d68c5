"""The lifecycle of a seed: the stages that may follow each stage."""

from __future__ import annotations

from esper.errors import IllegalTransition
from esper.leyline.stages import Stage

EDGES: dict[Stage, tuple[Stage, ...]] = {
    Stage.DORMANT: (Stage.GERMINATED,),
    Stage.GERMINATED: (Stage.TRAINING, Stage.CULLED),
    Stage.TRAINING: (Stage.BLENDING, Stage.CULLED),
    Stage.BLENDING: (Stage.SHADOWING, Stage.CULLED),
    Stage.SHADOWING: (Stage.PROBATIONARY, Stage.CULLED),
    Stage.PROBATIONARY: (Stage.FOSSILIZED, Stage.CULLED),
    Stage.FOSSILIZED: (),
    Stage.CULLED: (Stage.EMBARGOED,),
    Stage.EMBARGOED: (Stage.RESETTING,),
    Stage.RESETTING: (Stage.DORMANT, Stage.TERMINATED),
    Stage.TERMINATED: (),
}

STAGE_AFTER: dict[Stage, Stage] = {
    Stage.TRAINING: Stage.BLENDING,
    Stage.BLENDING: Stage.SHADOWING,
    Stage.SHADOWING: Stage.PROBATIONARY,
    Stage.PROBATIONARY: Stage.FOSSILIZED,
}
"""The stage that a seed enters when its gate passes."""


def check_edge(seed_id: str, current: Stage, requested: Stage) -> Stage:
    """Return the requested stage if it may follow the current stage.

    Raises:
        IllegalTransition: the requested stage may not follow. This is a bug of esper, because admission refuses
            commands that would cause it.
    """
    if requested not in EDGES[current]:
        raise IllegalTransition(seed_id, current, requested)
    return requested
