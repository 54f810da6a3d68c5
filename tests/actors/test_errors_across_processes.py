"""Every error arrives through a real actor with its class, fields, notes and cause."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest
import ray

from actors.embedded_ray import EmbeddedRay
from actors.ray_errors import unwrapped
from esper import errors
from esper.errors import EsperError

SAMPLES: dict[Any, Any] = {str: "a text", int: 7, float: 0.5, object: ("any", 1)}


def all_classes(base: type[EsperError] = EsperError) -> list[type[EsperError]]:
    return [base, *(cls for child in base.__subclasses__() for cls in all_classes(child))]


def example(cls: type[EsperError]) -> EsperError:
    if cls is EsperError:
        return EsperError("a text")
    hints = get_type_hints(cls.__init__, vars(errors))
    names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    return cls(*(SAMPLES.get(hints[name], ("left", "right")) for name in names))


class Thrower:
    def throw(self, name: str) -> None:
        cls = next(cls for cls in all_classes() if cls.__name__ == name)
        error = example(cls)
        error.add_note("a note")
        raise error from ValueError("the cause")


@pytest.fixture(scope="module")
def thrower(embedded: EmbeddedRay) -> Any:
    del embedded
    actor = ray.remote(Thrower).options(num_cpus=0, max_restarts=0, max_task_retries=0).remote()
    yield actor
    ray.kill(actor)


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: cls.__name__)
def test_error_crosses_a_process_whole(thrower: Any, cls: type[EsperError]) -> None:
    with pytest.raises(EsperError) as wrapped:
        ray.get(thrower.throw.remote(cls.__name__))
    arrived, sent = unwrapped(wrapped.value, "thrower"), example(cls)
    assert type(arrived) is cls
    assert arrived.args == sent.args
    assert {k: v for k, v in vars(arrived).items() if k != "__notes__"} == vars(sent)
    assert arrived.__notes__[0] == "a note"
    assert isinstance(arrived.__cause__, ValueError)
    assert str(arrived.__cause__) == "the cause"
