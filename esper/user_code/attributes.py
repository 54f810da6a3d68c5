"""Digests of the values in an object, by path.

The digests of two objects, or of one object at two times, can be compared. These values are read: attributes and slots,
containers, tensors, arrays, generators of random numbers, iterators, closures, defaults and attributes of functions,
partial arguments, and the size of a `functools.lru_cache`. These values are not read: open files, locks, loggers,
compiled objects, values of properties, module globals (see `esper.user_code.own_modules`), and values after the first
`MOST`.
"""

from __future__ import annotations

import enum
import functools
import random
import re
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
from torch import Tensor, nn

_ALSO_IN_NUMPY = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool}
"""Dtypes of which numpy reads the bytes without a change of the tensor's type."""
MOST = 20_000
"""Largest number of values that are read from one object. Reading this number takes about 50 ms."""
WHOLE_BYTES = 64 * 2**20
"""Largest size, in bytes, of an array that is read whole. From a larger array, `PIECES` pieces at equal distances are
read.
"""
PIECES, PIECE_BYTES = 256, 64 * 2**10
"""Number of the pieces, and length of a piece in bytes. All pieces together have 16 MiB."""

_SCALARS = {bool, int, float, complex, str, bytes, type(None)}
_CONTAINERS = (list, tuple, deque, set, frozenset)
_NAMES = (enum.Enum, np.generic, torch.dtype, torch.device, torch.Size)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
_WITH_LENGTH = (*_CONTAINERS, dict)
_NOT_SIMPLE = (*_WITH_LENGTH, *_GENERATORS, enum.Enum, functools.partial, Iterator)
_SHARED_VALUES = (*_SCALARS, *_CONTAINERS, dict, Tensor, np.ndarray, functools._lru_cache_wrapper)
_NEVER_OPENED = ("_io", "_thread", "concurrent", "logging", "multiprocessing", "threading", "tqdm", "weakref")
_KEPT_BY_TORCH = ("_parameters", "_buffers", "_modules")
_ESPERS = {"_compiled_call_impl", "_fallbacks_told"}
"""Attributes that esper sets on a module: the compiled forward, and the fallbacks that the module reported."""
_HOOKS_OF_TORCH = {name for name in vars(nn.Module()) if "_hooks" in name}
_LEFT_OUT = _ESPERS.union(_KEPT_BY_TORCH)
_LEFT_OUT_WITHOUT_HOOKS = _LEFT_OUT | _HOOKS_OF_TORCH
"""Attributes of a module that are left out if the module has no hooks."""


class Leaf(NamedTuple):
    """The digest of one value."""

    kind: str
    """Name of the type. `Tensor` for tensors, `generator` for sources of random numbers, `full deque` for a deque that
    has reached its `maxlen`."""
    digest: int
    length: int = -1
    """Number of items of a container. -1 for other values."""

    @property
    def is_random_or_numeric(self) -> bool:
        """True if the value is a tensor, an array or a source of random numbers."""
        return self.kind in ("Tensor", "ndarray", "generator")


_CONSTANTS = {id(one): Leaf(type(one).__name__, hash(one)) for one in (None, False, True)}
"""Id -> digest of the most frequent values of attributes. There is one object of each of these values."""

_EMPTY_SET = Leaf("set", hash(frozenset()), 0)
"""The digest of an empty set. Every torch module has such a set."""

Held = dict[str, Leaf]
"""Path -> digest. The path is a Python expression if possible."""
Opens = Callable[[object], bool]
"""Function that returns whether the attributes of an object are read."""


@dataclass(frozen=True)
class Limits:
    """Limits for reading an object."""

    values: int = MOST
    whole_bytes: int = WHOLE_BYTES
    """Size in bytes of the largest array that is read whole."""


def held_by(
    value: object,
    unread: Mapping[int, Leaf | None] | Collection[int] = (),
    opens: Opens = lambda _: True,
    start: str = "",
    *,
    skip: Collection[str] = (),
    limits: Limits = Limits(),
) -> Held:
    """Return the digests of all values in an object. Each value has its shortest path.

    Args:
        unread: Ids of objects that are not read. If it is a mapping, the value for an id is the leaf that is reported
            for the object, or None.
        opens: Function that returns whether the attributes of an object are read.
        start: Path of the object itself.
        skip: Paths at which nothing is read.
    """
    found: Held = {}
    seen: dict[int, str] = {}
    alive = []  # references to the objects, because Python may reuse the id of a freed object
    marks = unread if isinstance(unread, Mapping) else dict.fromkeys(unread)
    queue: deque[tuple[str, Any]] = deque([(start, value)])
    while queue and len(found) < limits.values:
        path, here = queue.popleft()
        if path in skip:
            continue
        key = id(here)
        if key in marks and here is not value:
            if (mark := marks[key]) is not None:
                found[path] = mark
            continue
        if key in _CONSTANTS:
            found[path] = _CONSTANTS[key]
            continue
        kind: Any = type(here)
        if kind in _SCALARS:
            found[path] = _scalar(kind, here)
            continue
        if kind is set and not here:
            found[path] = _EMPTY_SET
            continue
        simple = _is_simple_module(kind)
        leaf = None if simple else _leaf(here, limits.whole_bytes)
        if leaf is None and key in seen:
            leaf = Leaf("the same as", hash(seen[key]))
        if leaf is not None:
            found[path] = leaf
            continue
        seen[key] = path
        alive.append(here)
        if simple:
            queue.extend(_attributes(here, path) if opens(here) else ())
            continue
        if isinstance(here, _WITH_LENGTH):
            found[path] = Leaf(_kind_of(here), 0, len(here))
        elif isinstance(here, functools._lru_cache_wrapper):
            found[path] = Leaf("lru_cache", 0, here.cache_info().currsize)
        queue.extend((path + name, child) for name, child in _children(here, opens))
    return found


@functools.lru_cache(4096)
def _is_simple_module(kind: type) -> bool:
    """Return whether a class is a class of torch modules, and its objects have no parts except attributes."""
    return issubclass(kind, nn.Module) and not issubclass(kind, _NOT_SIMPLE) and _may_open(kind)


def different(left: Held, right: Held) -> list[str]:
    """Return the paths at which two objects differ, shortest first."""
    paths = left.keys() | right.keys()
    other = [path for path in paths if path not in left or path not in right or left[path] != right[path]]
    return sorted(other, key=lambda path: (len(path), path))


def path_in_words(path: str) -> str:
    """Return a path as it appears in messages."""
    return re.sub(r"^\['([^']*)'\]", r"\1", path.removeprefix(".")) or "itself"


# -- single values -----------------------------------------------------------------------------------------------


def _leaf(value: Any, whole_bytes: int) -> Leaf | None:  # Any: any value of an attribute
    """Return the digest of a value without parts. None: the value has parts."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return _scalar(kind, value)
    if kind in _CONTAINERS and set(map(type, value)) <= _SCALARS:
        return Leaf(_kind_of(value), _flat(value), len(value))
    if isinstance(value, Tensor):
        return Leaf("Tensor", digest_of(value, whole_bytes))
    if isinstance(value, np.ndarray):
        return None if value.dtype == object else Leaf("ndarray", _array(value, whole_bytes))
    if (state := _random_state(value)) is not None:
        return Leaf("generator", state)
    if isinstance(value, _NAMES):
        return Leaf(kind.__name__, hash(repr(value)))
    if kind is dict and {*map(type, value), *map(type, value.values())} <= _SCALARS:
        return Leaf("dict", hash((_flat(value), _flat(value.values()))), len(value))
    return None


def _scalar(kind: type, value: object) -> Leaf:
    return Leaf(kind.__name__, hash(repr(value) if kind in (float, complex) else value))


def _kind_of(container: Collection[Any]) -> str:
    """Return the name of a container's type, or "full deque" for a deque that has reached its `maxlen`."""
    full = isinstance(container, deque) and len(container) == container.maxlen
    return "full deque" if full else type(container).__name__


def _flat(values: Iterable[Any]) -> int:
    """Return a hash that is equal for equal scalars. For a set, the hash does not depend on the order."""
    if isinstance(values, set | frozenset):
        return hash(frozenset(values))
    found = tuple(values)
    return hash(repr(found)) if any(value != value for value in found) else hash(found)  # NaNs have no fixed hash


def digest_of(tensor: Tensor, whole_bytes: int = WHOLE_BYTES) -> int:
    """Return the digest of a tensor's values, dtype and shape.

    Args:
        whole_bytes: Size in bytes of the largest tensor that is read whole.
    """
    shape = hash((tensor.dtype, tuple(tensor.shape), tensor.layout))
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return shape
    plain = tensor.detach() if tensor.is_cpu else tensor.detach().cpu()
    plain = plain.resolve_conj().resolve_neg().contiguous()
    if plain.dtype in _ALSO_IN_NUMPY and plain.nbytes <= whole_bytes and not plain.requires_grad:
        return hash((shape, int(google_crc32c.value(plain.numpy()))))
    plain = plain.reshape(-1)  # `view(uint8)` fails on a tensor without dimensions
    return hash((shape, _bytes(plain.view(torch.uint8).numpy(), whole_bytes)))


def _array(array: np.ndarray[Any, Any], whole_bytes: int) -> int:
    shape = hash((str(array.dtype), array.shape))
    if isinstance(array, np.memmap):
        return shape
    return hash((shape, _bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8), whole_bytes)))


def _bytes(flat: np.ndarray[Any, Any], whole_bytes: int) -> int:
    if len(flat) <= whole_bytes:
        return int(google_crc32c.value(flat))
    crc = 0
    for start in _starts(len(flat), min(PIECES, whole_bytes // PIECE_BYTES)):
        crc = google_crc32c.extend(crc, flat[start : start + PIECE_BYTES])
    return crc


@functools.lru_cache(256)
def _starts(length: int, pieces: int) -> tuple[int, ...]:
    """Return the starts of pieces at equal distances in an array of `length` bytes."""
    return tuple(np.linspace(0, length - PIECE_BYTES, pieces).astype(int).tolist())


def _random_state(value: object) -> int | None:
    if not isinstance(value, _GENERATORS):
        return None
    if isinstance(value, torch.Generator):
        return digest_of(value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return hash(value.getstate())
    if isinstance(value, np.random.Generator):
        return hash(repr(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return hash(repr(value.get_state(legacy=False)))
    if isinstance(value, np.random.BitGenerator):
        return hash(repr(value.state))
    return None


# -- parts -------------------------------------------------------------------------------------------------------


def _children(value: Any, opens: Opens) -> Iterator[tuple[str, object]]:
    """Yield the parts of a value, each with the text that it adds to the path."""
    if isinstance(value, dict):
        for place, (key, item) in enumerate(value.items()):
            yield f"[{key!r}]" if type(key) in _SCALARS else f"[{place}]", item
    elif isinstance(value, _CONTAINERS):
        yield from ((f"[{place}]", item) for place, item in enumerate(value))
    elif isinstance(value, np.ndarray):
        yield from ((f"[{place}]", item) for place, item in enumerate(value.flat))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif (parts := _of_code(value)) is not None:
        yield from parts
        return
    if isinstance(value, type):
        yield from _of_class(value)
    elif not isinstance(value, types.ModuleType) and _may_open(type(value)) and opens(value):
        yield from _attributes(value, "")


def _of_code(value: Any) -> Iterable[tuple[str, object]] | None:
    """Return the parts of a function, method, generator or built-in iterator. None: the value is of another kind."""
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, types.MethodType):
        return (".__self__", value.__self__), (".__func__", value.__func__)
    if isinstance(value, types.GeneratorType) and value.gi_frame is not None:
        return ((".gi_frame", (value.gi_frame.f_lasti, dict(value.gi_frame.f_locals))),)
    if type(value).__module__ in ("builtins", "itertools") and isinstance(value, Iterator):
        return ((f".<state {place}>", item) for place, item in enumerate(_iterator_state(value)))
    return None


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        if cell != types.CellType():  # an empty cell raises on `cell_contents`
            yield f".<closure>.{name}", cell.cell_contents
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    yield from ((f".{name}", item) for name, item in vars(function).items())


def _of_class(kind: type) -> Iterator[tuple[str, object]]:
    """Yield values that all instances of a class share, for example a counter of calls.

    Attributes that Python adds are left out. Methods without closure, defaults and attributes are left out, too.
    """
    for name, item in vars(kind).items():
        method = item.__func__ if isinstance(item, staticmethod | classmethod) else item
        if isinstance(method, types.FunctionType):
            if method.__closure__ or method.__defaults__ or method.__kwdefaults__ or vars(method):
                yield f".{name}", method
        elif isinstance(method, _SHARED_VALUES) and not name.startswith("__"):
            yield f".{name}", method


def _iterator_state(value: Iterator[Any]) -> tuple[object, ...]:
    """Return the state of a built-in iterator, without advancing it. Empty: the iterator has no readable state."""
    if isinstance(value, map | filter | zip | enumerate | reversed) or type(value).__module__ == "itertools":
        state = value.__reduce__()
        return state[1:] if isinstance(state, tuple) else ()
    return (value.__length_hint__(),) if hasattr(value, "__length_hint__") else ()


def _is_a_seeds(hook: object) -> bool:
    """Return whether a hook calls the seeds of a slot. These hooks change at fences, so they are not compared."""
    return isinstance(hook, types.MethodType) and hook.__module__ == "esper.kasmina.host.host_editor"


def _may_open(kind: type) -> bool:
    return not kind.__module__.startswith(_NEVER_OPENED)


def _attributes(value: object, path: str) -> list[tuple[str, object]]:
    """Return the attributes of an object at a path, with their paths."""
    named = vars(value) if hasattr(value, "__dict__") else {}
    found = list[tuple[str, object]]()
    left_out = _ESPERS
    if isinstance(value, nn.Module):
        left_out = _LEFT_OUT if any(map(named.get, _HOOKS_OF_TORCH)) else _LEFT_OUT_WITHOUT_HOOKS
        for group in _KEPT_BY_TORCH:
            if group in named:
                found += [(f"{path}.{name}", item) for name, item in named[group].items()]
    for name, item in named.items():
        if name in left_out:
            continue
        if "_hooks" not in name:
            found.append((f"{path}.{name}", item))
        elif isinstance(item, dict):
            if hooks := [hook for hook in item.values() if not _is_a_seeds(hook)]:
                found.append((f"{path}.{name}", hooks))  # the keys depend on all hooks of the process
        elif item or name not in _HOOKS_OF_TORCH:
            found.append((f"{path}.{name}", item))
    kind: Any = type(value)
    found += [(f"{path}.{name}", getattr(value, name)) for name in _slots_of(kind) if hasattr(value, name)]
    return found


@functools.lru_cache(4096)
def _slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of a class's attributes that are stored in `__slots__`, not in `__dict__`."""
    found = []
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))
