"""What tests of Tolaria share: surveyed tiny tasks, plans as Kasmina makes them, what was said. It tests nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry
from esper.kasmina.incubation.planning import plan_seed
from esper.leyline.commands import BlendSpec, Candidate
from esper.leyline.reports import GraftPlan
from esper.setup.survey import Survey, survey_of
from esper.telemetry import Telemetry, use
from esper.telemetry.events import LOG
from esper.testing import tiny_config, tiny_task

RUN = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"


@pytest.fixture
def run_id() -> str:
    return RUN


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    with Telemetry.start(tmp_path / "telemetry", "tolaria") as telemetry, use(telemetry):
        yield telemetry


@pytest.fixture
def told(telemetry: Telemetry) -> Callable[[], list[str]]:
    """Names of the severe events so far."""

    def read() -> list[str]:
        log = telemetry.directory / LOG
        return [json.loads(line)["name"] for line in log.read_text().splitlines()] if log.exists() else []

    return read


@pytest.fixture
def make_survey() -> Callable[..., Survey]:
    """The tiny task and config, surveyed. A key with "__" is the config's, any other a field of the task."""

    def make(blueprints: BlueprintRegistry = BLUEPRINTS, **changes: Any) -> Survey:
        config = {key: value for key, value in changes.items() if "__" in key}
        task = {key: value for key, value in changes.items() if "__" not in key}
        return survey_of(tiny_task(**task), tiny_config(**config), blueprints)

    return make


@pytest.fixture
def drawn() -> dict[str, bytes]:
    """The weights of the plans that `make_plan` made, by digest."""
    return {}


@pytest.fixture
def make_plan(drawn: dict[str, bytes]) -> Callable[..., GraftPlan]:
    """A sound plan for one seed in the slot "body"; any field may be another."""

    def make(survey: Survey, blueprint: str = "mlp", *, step: int = 20, **changes: Any) -> GraftPlan:
        plan, blob = plan_seed(
            Candidate(slot="body", blueprint_id=blueprint, seed_id="seed-1"),
            survey.specs[0],
            survey.blueprints.get(blueprint),
            run_id=RUN,
            generation=1,
            command_id="command-1",
            run_seed=0,
            fence=1,
            step=step,
            ordinal=0,
            blend=BlendSpec(mode="RESIDUAL", ramp_steps=4),
            warmup_steps=3,
        )
        drawn[plan.weights_digest] = blob
        return plan.model_copy(update=changes)

    return make
