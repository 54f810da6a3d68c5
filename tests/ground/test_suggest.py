import pytest

from esper.ground.suggest import existing_names


@pytest.mark.parametrize(
    ("wrong", "known", "said"),
    [
        ("mpl", ["lowrank_mlp", "mlp"], "the nearest is mlp"),
        ("HEAD", ["body", "head"], "the nearest is head"),
        ("r.due_rounds", ["growth.candidates", "growth.due_rounds"], "the nearest is growth.due_rounds"),
        ("features.7", ["blocks.7", "blocks.8"], "there are blocks.7 and blocks.8"),
        ("zebra", ["body", "head"], "there are body and head"),
        ("zebra", ["body"], "there is only body"),
        ("zebra", [], "there is none"),
        (
            "zebra",
            [f"layers.{i}" for i in range(50)],
            "there are " + ", ".join(f"layers.{i}" for i in range(8)) + " and 42 more",
        ),
    ],
)
def test_the_nearest_name_is_given_or_what_there_is(wrong: str, known: list[str], said: str) -> None:
    assert existing_names(wrong, known) == said


def test_names_of_users_are_written_as_python_writes_them() -> None:
    assert existing_names("x", ["a\nb", "c"], repr) == r"there are 'a\nb' and 'c'"
    assert existing_names("hed", ["head"], repr) == "the nearest is 'head'"
