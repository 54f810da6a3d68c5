"""A rollback over processes: every actor goes back to the fence and refuses messages of older generations."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from actors.bring_up import bring_up
from actors.component_handles import Handle
from actors.embedded_ray import EmbeddedRay
from actors.task_transport import SentSurvey
from esper.archive.journal import FIRST_GENERATION, Journal, RecordKind
from esper.archive.run_directory import checkpoints_folder, reports_folder
from esper.errors import DependencyViolationError
from esper.flow.checkpoints import Checkpoints
from esper.flow.going_back import Tier
from esper.flow.identifying import identify
from esper.flow.line import Line
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.stopping import Drain
from esper.ground.clock import SystemClock
from esper.leyline.ids import new_run_id
from esper.setup.assembly import RunKey
from esper.setup.survey import survey_of
from esper.tamiyo.field_reports import FieldReportStore
from esper.testing import tiny_config, tiny_task
from esper.user_code.task_reference import Reference


@pytest.mark.parametrize("managers", [pytest.param(1, marks=pytest.mark.torture), 2])
def test_both_tiers_take_every_actor_back_to_the_bits_of_the_fence(
    embedded: EmbeddedRay, tmp_path: Path, undisturbed: Result, managers: int
) -> None:
    path = tmp_path / "run"
    survey = survey_of(tiny_task(), tiny_config(growth__managers=managers))
    key = RunKey(new_run_id(), FIRST_GENERATION, secrets.token_bytes(32))
    checkpoints_folder(path).mkdir(parents=True)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(path, FIRST_GENERATION))
        identity = identify(survey, key.run_id, FIRST_GENERATION, Reference(), SystemClock().now(), "of the test")
        identity.save(path)
        journal.write(RecordKind.RUN_STARTED, identity)
        store = stack.enter_context(closing(FieldReportStore(reports_folder(path))))
        checkpoints = Checkpoints(checkpoints_folder(path), journal, survey.config.checkpoint)
        stack.enter_context(closing(checkpoints))
        sent = SentSurvey.of(survey, Reference())
        components = stack.enter_context(bring_up(sent, embedded)(survey, key, path))
        line = Line(components, journal, store, checkpoints, survey.fence_steps, True, Quiet(), Drain())
        line.begin()
        for tier in (Tier.FAST, Tier.FULL, Tier.FAST):
            for _ in range(3):
                line.round()
            before = components.trainer.weights_sha256()
            components.trainer.run_round(line.passed + 1, line.fence_steps[line.passed] + 7)
            assert components.trainer.weights_sha256() != before
            line.back.roll_back(tier)
            assert components.trainer.weights_sha256() == before
        assert isinstance(components.trainer, Handle)
        components.trainer.remote.generation = FIRST_GENERATION  # as a caller that was asleep would
        with pytest.raises(DependencyViolationError, match="another generation's"):
            components.trainer.weights_sha256()
        components.trainer.remote.generation = journal.generation
        while line.passed < line.last:
            line.round()
        checkpoints.settle()
        assert components.trainer.weights_sha256() == undisturbed.weights_sha256
        assert components.incubator.twin_report().weights_sha256 == undisturbed.twin_weights_sha256
