"""Every error class of esper crosses a process boundary whole and stands in the drawn tree. It holds nothing else."""

from __future__ import annotations

import ast
import inspect
import itertools
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_type_hints

import pytest

from esper import errors
from esper.archive.summary import failure
from esper.errors import ConfigError, EsperError
from esper.testing import telling

ROOT = Path(__file__).resolve().parents[1]
SAMPLES: dict[object, object] = {
    str: "text",
    int: 7,
    float: 0.25,
    bool: True,
    object: {"any": ["value"]},
    Sequence[str]: ("layer.weight", "layer.bias"),
}


def below(base: type[EsperError]) -> Iterator[type[EsperError]]:
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from below(child)


CLASSES = [EsperError, *below(EsperError)]


def example(cls: type[EsperError]) -> EsperError:
    """Build `cls` from its signature: every argument given, each of a different value where the type allows it."""
    if cls is EsperError:
        return EsperError("text", 7)
    hints = get_type_hints(cls.__init__)
    arguments = []
    for position, parameter in enumerate(inspect.signature(cls).parameters.values()):
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, (
            f"{cls.__name__}({parameter}) cannot be rebuilt from args"
        )
        hint = hints[parameter.name]
        assert hint in SAMPLES, f"{cls.__name__}({parameter}): add a sample of {hint} to SAMPLES"
        sample = SAMPLES[hint]
        arguments.append(f"{parameter.name} {position}" if hint is str else sample)
    return cls(*arguments)


def drawn_tree(docstring: str) -> dict[str, str]:
    """Child -> parent, read from lines such as `│   ├── Name   what it means`."""
    ancestors = {0: "EsperError"}
    tree = {}
    for line in docstring.splitlines():
        if branch := re.match(r"    ((?:[│ ]   )*)[├└]── (\w+)", line):
            depth = len(branch[1]) // 4
            tree[branch[2]] = ancestors[depth]
            ancestors[depth + 1] = branch[2]
    return tree


@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_pickling_with_args_fields_notes_and_cause(cls: type[EsperError]) -> None:
    error = example(cls)
    error.add_note("seen at fence 3")
    error.__cause__ = errors.StoreCorrupt("journal", "bad frame")
    error.__cause__.__cause__ = OSError(5, "Input/output error")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert (copy.args, vars(copy), str(copy)) == (error.args, vars(error), str(error))
    assert copy.__notes__ == ["seen at fence 3"]
    assert repr(copy.__cause__) == repr(error.__cause__)
    assert repr(copy.__cause__.__cause__) == repr(error.__cause__.__cause__)


def looped(*errors: Exception) -> Exception:
    """The first, caused by the second and so on, the last by the first again."""
    for error, cause in itertools.pairwise([*errors, errors[0]]):
        error.__cause__ = cause
    return errors[0]


def three_of_a_kind(make: Callable[[str, str], Exception]) -> list[Exception]:
    return [make("store", name) for name in ("one", "two", "three")]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("make", [errors.StoreCorrupt, OSError])
def test_a_loop_of_causes_is_walked_once_and_survives_pickling(
    make: Callable[[str, str], Exception], length: int
) -> None:
    chain = three_of_a_kind(make)[:length]
    error = looped(*chain)
    chain[-1].add_note("told")

    assert list(errors.causes(error)) == chain
    assert errors.all_notes(error) == ("told",)
    copy = pickle.loads(pickle.dumps(error))
    if make is errors.StoreCorrupt:
        assert [str(one) for one in errors.causes(copy)] == [str(one) for one in chain]
        assert list(errors.causes(copy))[-1].__cause__ is copy


def test_no_other_file_walks_along_causes() -> None:
    walks = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in ("esper", "actors", "drills", "tests")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path not in (Path(errors.__file__), Path(__file__))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute)
        if node.value.attr in ("__cause__", "__context__")
        if ast.unparse(node.targets[0]) == ast.unparse(node.value.value)
    ]
    assert walks == []


def test_text_of_an_error_that_cannot_say_what_it_is() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

    assert errors.text_of(Mute()) == "<Mute: its text raised KeyError>"
    assert failure(Mute())["message"] == "<Mute: its text raised KeyError>"


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_names_its_first_argument_has_all_as_fields_and_a_docstring_of_its_own(cls: type[EsperError]) -> None:
    error = example(cls)
    first = error.args[0]
    assert (f"{first:.6g}" if isinstance(first, float) else str(first)) in str(error)
    if cls is not EsperError:
        assert error.args == tuple(vars(error)[name] for name in inspect.signature(cls).parameters)
    assert vars(cls)["__doc__"]


def test_drawn_tree_is_the_real_tree() -> None:
    real = {cls.__name__: base.__name__ for cls in CLASSES[1:] for base in cls.__bases__}
    assert errors.__doc__ is not None
    assert drawn_tree(errors.__doc__) == real


def test_no_other_file_defines_an_error() -> None:
    ours = {cls.__name__ for cls in CLASSES}
    strays = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for room in ("esper", "actors", "drills")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path != Path(errors.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for name in (ast.unparse(base).rpartition(".")[2] for base in node.bases)
        if name in ours or name.endswith(("Error", "Exception"))
    ]
    assert strays == []


# -- how tests look at an error ----------------------------------------------------------------------------------

WRONG = ConfigError("run.seed", -1, "use 0 or more")


@pytest.mark.parametrize("wording", ["use 0 or more", "a seed of 0 or a positive seed is allowed"])
def test_fields_and_names_of_an_error_are_found_in_any_wording(wording: str) -> None:
    assert telling("0", field="run.seed", value=-1)(ConfigError("run.seed", -1, wording))
    assert telling(field=re.compile(r"seed$"))(ConfigError("run.seed", -1, wording))


@pytest.mark.parametrize(
    ("check", "error"),
    [
        (telling(field="run.epochs"), WRONG),
        (telling(value=-2), WRONG),
        (telling(field=re.compile(r"^seed")), WRONG),
        (telling("--seed"), WRONG),
        (telling(field="run.seed"), ConfigError("run.seed", -1, "")),
    ],
    ids=["field", "value", "pattern", "name", "no mend"],
)
def test_an_error_that_tells_another_fact_is_refused(check: Callable[[BaseException], bool], error: Exception) -> None:
    with pytest.raises(AssertionError):
        check(error)
