"""What makes a run this run, as it is written down and read back."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from esper.archive.identity import load_identity
from esper.flow.identifying import identify
from esper.setup.survey import Survey, survey_of
from esper.testing import EPOCH, tiny_config, tiny_task
from esper.user_code.task_reference import Reference


def survey() -> Survey:
    return survey_of(tiny_task(), tiny_config())


def test_an_identity_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    identity = identify(survey(), "r", 1, Reference("m:t", Path(__file__)), EPOCH, "Policy, version 1")
    identity.save(tmp_path)
    assert load_identity(tmp_path) == identity
    assert identity.task_file_sha256 == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert identity.argv == tuple(sys.argv)
    assert {"python", "torch"} <= identity.versions.keys()


def test_a_task_built_in_place_has_neither_name_nor_digest() -> None:
    identity = identify(survey(), "r", 1, Reference(), EPOCH, "Policy, version 1")
    assert (identity.task, identity.task_file_sha256) == ("", None)
