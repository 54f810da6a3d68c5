"""Each field of a task with values of other types: one TaskError that names the field, before the task is used."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from esper.errors import TaskError
from esper.setup.habits import check_fields
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import Bands, telling, tiny_config, tiny_task

WRONG: tuple[Any, ...] = (None, True, "16", 1.5, b"x", 3, object(), [], {}, [1], {1: 2}, {"a": 1}, Bands, tiny_task)
"""Values of many types; a field may be of some of them."""
RIGHT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "optimizer", "loss"), (type(tiny_task), type)),
    **dict.fromkeys(("scheduler", "sample_loss", "group", "collate", "input_output"), (type(tiny_task), type)),
    **dict.fromkeys(("train", "valid", "test", "pick", "gate"), (list, dict)),
    **dict.fromkeys(("batch_size", "epochs", "epoch_samples", "round_steps"), (int,)),
    "slots": (),
    "metrics": (),
}
"""By field: the exact types of those in WRONG that it may be."""


@pytest.mark.parametrize("field", fields(Task), ids=lambda field: field.name)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(field: Any) -> None:
    wrong = [value for value in WRONG if type(value) not in RIGHT[field.name]]
    wrong = [value for value in wrong if not (value is None and field.default is None)]
    if field.name == "metrics":
        wrong = [value for value in wrong if value != {}]
    assert wrong
    for value in wrong:
        with pytest.raises(TaskError) as caught:
            survey_of(tiny_task(**{field.name: value}), tiny_config())
        assert caught.value.field.startswith(f"task.{field.name}"), value


@pytest.mark.parametrize("field", [field for field in fields(Task) if field.default is None], ids=lambda f: f.name)
def test_a_field_that_may_be_left_out_may_be_none(field: Any) -> None:
    check_fields(tiny_task(**{field.name: None}))


def test_a_length_that_is_a_number_of_numpy_or_torch_is_refused() -> None:
    with pytest.raises(TaskError, check=telling("16", field="task.batch_size")):
        survey_of(tiny_task(batch_size=torch.tensor(16)), tiny_config())


def test_a_slot_that_is_given_twice_is_refused() -> None:
    with pytest.raises(TaskError, check=telling("2", field="task.slots", value="body")):
        check_fields(tiny_task(slots=["body", "body"]))
