"""Finds the slots of the user's model and measures them by forward passes on one batch. The model is not changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import TaskError
from esper.ground.nested import mapped, tensors
from esper.ground.slot_output import part_of
from esper.ground.temporary_rng import temporary_rng
from esper.ground.tensors_kept import tensors_kept
from esper.kasmina.blueprints.precision import autocast_at
from esper.kasmina.host.causality import Seen, causal_slots
from esper.kasmina.host.layouts import layouts_noted
from esper.kasmina.host.padding_masks import given_mask, is_readable, positional_names
from esper.kasmina.host.perturbation import Change, moved, perturbing, unchanged
from esper.kasmina.host.slot_patterns import Matched, match
from esper.leyline.slots import Kind, SlotSpec
from esper.user_code.attributes import different, held_by, path_in_words
from esper.user_code.extra_state import extra_states_kept
from esper.user_code.mends import mend_of
from esper.user_code.their_code import refused_as_theirs

Forward = Callable[[nn.Module, Any], Any]  # Any: the user's model determines the types of inputs and outputs

TOLERANCE = 1e-5
"""Changes of an output up to this size count as rounding. The size is relative to the largest entry of the output. The
rounding of single precision is about 1e-7. The value is 100 times as large."""

NESTED = (
    "nn.TransformerEncoder packs a padded batch into a nested tensor in evaluation mode, and no seed can read that;"
    " build it with enable_nested_tensor=False"
)

WITHOUT_GRADIENTS = object()
"""This object is recorded instead of the output if a module was called in training mode while gradients were off."""

MOST_KEYS = 50
"""Number of random streams that are tried to find a forward that skips no slot."""
ALIKE = 10
"""Number of forwards with different random numbers. If all of them skip the same slots, the skipping is not random."""

_KINDS = {4: Kind.NCHW, 3: Kind.NTC, 2: Kind.NC}
_OTHER = {Kind.NTC: Kind.NCT, Kind.NCT: Kind.NTC}


@dataclass(frozen=True)
class Found:
    """The result of a dry run."""

    specs: tuple[SlotSpec, ...]
    left_out: Mapping[str, str]
    """Path of a module that was matched but cannot be a slot -> the reason."""
    optional: frozenset[str]
    """Paths of the slots that only a wildcard matched. They may be left out if a later check fails."""


def dry_run(
    model: nn.Module, slots: Sequence[str], batch_input: Any, call: Forward, samples: int | None = None
) -> Found:
    """Measure every slot on one batch.

    Each forward runs in the modes of `model` with gradients, and in evaluation mode without gradients. The model's
    parameters, buffers, modes, hooks and attributes, the input and all global random states are restored after each
    forward. The model is not copied, because modules with weight norm cannot be copied.

    Causality (see `causal_slots`) is measured in evaluation mode, because dropout would hide a change of the output.
    Sample independence is measured in both modes, because batch norm mixes samples in
    training mode only.

    Args:
        model: In the modes in which it trains. A module in evaluation mode stays in evaluation mode.
        slots: Paths or patterns; see `slot_patterns.match`.
        batch_input: Input of `call`: a tensor, or tuples, lists or mappings of tensors. The batch comes first, and has
            two samples or more.
        call: Runs one forward, `(model, batch_input) -> output`.
        samples: Number of samples in the batch. For None, or if no tensor of the input has that many rows, the rows
            that most tensors have count as samples.

    Raises:
        TaskError: a slot is not called exactly once per forward in both modes; its output (or the first item of a
            tuple, see `slot_output`) is not a floating tensor of 2, 3 or 4 dimensions with one row per sample; or the
            output cannot be measured (not finite, not repeatable, or not changed by any input). If only a wildcard
            matched the module, it is left out, and the error is raised only if all modules of the wildcard are left
            out.
        TaskError: the user's model raised an error.
    """
    matched = match(model, slots)
    host = _Host(model, matched, batch_input, call, _rows(batch_input, samples)).with_most_calls()
    training, evaluation = host.run_twice(training=True), host.run_twice(training=False)
    kinds = host.kinds(training)
    for path in host.paths:
        with matched.trying(path):
            _check_layout(path, kinds, training[path], evaluation[path], host.batch, samples)
    _leave_out_repeated(matched, training, evaluation)
    turned = _turned(host, kinds)
    for path, kind in turned.items():
        with matched.trying(path):
            _check_layout(path, {path: kind}, training[path], evaluation[path], host.batch, samples)
    specs = _specs(host, {**kinds, **turned}, training, evaluation)
    return Found(specs, matched.left_out, frozenset(matched.paths) - matched.named)


@dataclass(frozen=True)
class _Host:
    """The model, and the arguments for forwards of the model."""

    model: nn.Module
    matched: Matched
    batch_input: Any
    call: Forward
    batch: int
    autocast: dict[str, str] = field(default_factory=dict)
    """Path -> dtype to which the model's autocast casts at that slot. Each forward adds to it."""
    masks: dict[str, str] = field(default_factory=dict)
    """Path -> name of the argument by which the slot's module is given a padding mask. Each forward adds to it."""
    key: int = 0
    """Seed of the random state from which each forward begins."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the slots. If only a wildcard matched a path, it is dropped when a check fails."""
        return self.matched.paths

    def run(self, *, training: bool, change: Change = unchanged) -> dict[str, Tensor]:
        """Return the slots' outputs by path. `change` is applied to a copy of each tensor of the input."""
        seen, _ = self._record(self.key, training, change)
        return self._only_outputs(seen, training=training)

    def evaluated(self, kinds: Mapping[str, Kind], change: Change) -> Seen:
        """Return the outputs of the model and of the slots with positions, in evaluation mode. `change`: see `run`."""
        seen, results = self._record(self.key, False, change)
        outputs = self._only_outputs(seen, training=False)
        times = {path: 1 + time for path in outputs if (time := kinds[path].time) is not None}
        found = (one.detach().clone() for one in results if one.is_floating_point() and not one.is_nested)
        slots = {path: outputs[path].movedim(time, 1) for path, time in times.items()}
        return Seen(slots, tuple(one for one in found if one.numel()))

    def _only_outputs(self, seen: Mapping[str, list[object]], *, training: bool) -> dict[str, Tensor]:
        mode = "training" if training else "evaluation"
        outputs = {}
        for path, recorded in seen.items():
            with self.matched.trying(path):
                outputs[path] = _only_output(path, recorded, mode)
        return outputs

    def with_most_calls(self) -> _Host:
        """Return this host with the random seed (`key`) for which a forward in training mode calls the most slots.

        A model may skip layers at random. The search ends when a forward calls every slot, or after `MOST_KEYS`
        forwards. It also ends if the first `ALIKE` forwards skip the same slots, because this shows that the skipping
        is not random.
        """
        called: list[set[str]] = []
        for key in range(MOST_KEYS):
            called.append({path for path, outputs in self._record(key, True, unchanged)[0].items() if outputs})
            if len(called[-1]) == len(self.paths):
                break
            if len(called) == ALIKE and all(paths == called[0] for paths in called):
                break
        return replace(self, key=max(range(len(called)), key=lambda key: len(called[key])))

    def kinds(self, outputs: Mapping[str, Tensor]) -> dict[str, Kind]:
        """Return the kinds of slots with these outputs. An output of another number of dimensions has no kind.

        One more forward shows the layout of outputs with three dimensions; see `layouts`.
        """
        kinds = {path: _KINDS[outputs[path].dim()] for path in self.paths if outputs[path].dim() in _KINDS}
        if any(kind is Kind.NTC for kind in kinds.values()):
            self._forward(self.key, True, unchanged, layouts_noted(self.model, kinds))
        return kinds

    def _record(self, key: int, training: bool, change: Change) -> tuple[dict[str, list[object]], tuple[Tensor, ...]]:
        """Run one forward. Return the outputs of the slots by path, and the tensors in the model's output."""
        seen: dict[str, list[object]] = {path: [] for path in self.paths}
        watching = recording(self.model, seen, self.autocast, self.masks, gradients=training)
        return seen, self._forward(key, training, change, watching)

    def _forward(
        self, key: int, training: bool, change: Change, watching: AbstractContextManager[None]
    ) -> tuple[Tensor, ...]:
        """Run one forward, and return the tensors in the model's output."""
        given = mapped(lambda tensor: change(tensor.clone()), self.batch_input)
        devices = {tensor.device for tensor in (*self.model.parameters(), *self.model.buffers(), *tensors(given))}
        doing = "" if change is unchanged else "with a part of its input changed, to measure the effect"
        with (
            extra_states_kept(self.model),
            kept_as_it_is(self.model, training=training),
            watching,
            temporary_rng(key, devices),
            torch.set_grad_enabled(training),
            refused_as_theirs(doing),
        ):
            return tuple(tensors(self.call(self.model, given)))

    def run_twice(self, *, training: bool) -> dict[str, Tensor]:
        """Like `run`. Raises: TaskError: the same input and the same random state gave two different outputs."""
        outputs, again = self.run(training=training), self.run(training=training)
        for path in self.paths:
            if outputs[path].shape != again[path].shape or moved(outputs[path], again[path], TOLERANCE).any():
                self._blame_attribute(training)
                with self.matched.trying(path):
                    mend = "draw from the seeded global generators"
                    raise TaskError(f"slot {path}", "two outputs for one input", mend)
        return outputs

    def _blame_attribute(self, training: bool) -> None:
        """Run one more forward. Raises: TaskError: the forward changed a state in the model, and no checkpoint saves
        this state.
        """
        before = held_by(self.model)
        self.run(training=training)
        after = held_by(self.model)
        for path in different(before, after):
            why = "it changes the output for the same input, and no checkpoint saves it"
            raise TaskError("task.model", path_in_words(path), f"{why}: {mend_of('task.model', path, after, before)}")


def _leave_out_repeated(matched: Matched, training: Mapping[str, Tensor], evaluation: Mapping[str, Tensor]) -> None:
    """If several modules have the same output in both modes, leave out all but one.

    Modules named without a wildcard stay. If only wildcards matched the modules, the outermost module stays.
    """
    kept: list[str] = sorted(matched.named & set(matched.paths))
    for path in matched.paths:
        if path in matched.named:
            continue
        same = (other for other in kept if all(_equal(by[path], by[other]) for by in (training, evaluation)))
        if (other := next(same, None)) is not None:
            matched.same_as(path, other)
        else:
            kept.append(path)


@contextmanager
def kept_as_it_is(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Run the body in the model's present modes, or in evaluation mode. Then restore tensors, modes and attributes."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    with tensors_kept(model):
        try:
            if not training:
                model.eval()
            yield
        finally:
            for module, before in attributes.items():
                vars(module).clear()
                vars(module).update(before)


@contextmanager
def recording(
    model: nn.Module,
    seen: Mapping[str, list[object]],
    autocast: dict[str, str],
    masks: dict[str, str],
    *,
    gradients: bool,
) -> Iterator[None]:
    """Run the body with hooks on the modules at the paths in `seen`. The hooks append a copy of every output to `seen`.

    The hook copies the output at once, because a later layer may write into it.

    Args:
        autocast: Path -> dtype. If autocast is on at a slot, an entry for this slot is added.
        masks: Path -> name of an argument. If the module at a path is given a padding mask, an entry is added.
        gradients: Record `WITHOUT_GRADIENTS` for a module that is called while gradients are off.
    """

    def recorder(path: str, module: nn.Module) -> Callable[..., None]:
        names = positional_names(module)

        def record(_module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object], whole: object) -> None:
            output = part_of(whole)
            if isinstance(output, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(output):
                mend = "a seed cannot read it; call the module outside of vmap and grad, or name another module"
                raise TaskError(f"slot {path}", "called within a transform of torch.func, such as vmap", mend)
            if gradients and not torch.is_grad_enabled():
                output = WITHOUT_GRADIENTS
            seen[path].append(output.detach().clone() if isinstance(output, Tensor) else output)
            if isinstance(output, Tensor) and (cast := autocast_at(output)) is not None:
                autocast[path] = cast
            mask = given_mask(names, args, kwargs)
            if isinstance(output, Tensor) and mask is not None and is_readable(*mask, output):
                masks[path] = mask[0]

        return record

    modules = {path: model.get_submodule(path) for path in seen}
    handles = [
        module.register_forward_hook(recorder(path, module), with_kwargs=True) for path, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _equal(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(one, other)


def _only_output(path: str, outputs: list[object], mode: str) -> Tensor:
    """Return a slot's single output. Raises: TaskError: there is not exactly one call, or the output is not a finite
    floating tensor.
    """
    field = f"slot {path}"
    if not outputs:
        mend = "its forward is bypassed (a fused path, or .forward() called directly); name another module"
        raise TaskError(field, f"never called by a forward in {mode} mode", mend)
    if len(outputs) > 1:
        mend = "a slot is called exactly once; name a module around all its uses"
        raise TaskError(field, f"called {len(outputs)} times by a forward in {mode} mode", mend)
    output = outputs[0]
    if output is WITHOUT_GRADIENTS:
        mend = "no seed could learn there: checkpoint with use_reentrant=False, or name a module outside of no_grad"
        raise TaskError(field, f"called without gradients by a forward in {mode} mode", mend)
    if not isinstance(output, Tensor):
        mend = "name a module that returns a tensor, or a tuple that begins with one"
        raise TaskError(field, f"output of type {type(output).__name__}", mend)
    if output.is_nested:
        raise TaskError(field, f"a nested tensor in {mode} mode", NESTED)
    if not output.is_floating_point():
        raise TaskError(field, f"output of {output.dtype}", "name a module that returns floating point")
    if not output.isfinite().all():
        raise TaskError(field, f"output not finite in {mode} mode", "mend the model or name another module")
    return output


def _check_layout(
    path: str, kinds: Mapping[str, Kind], training: Tensor, evaluation: Tensor, batch: int, samples: int | None
) -> None:
    """Refuse a slot whose output has no known layout, or not the same one in both modes.

    Args:
        batch: Number of rows that count as samples; see `_rows`.
        samples: Number of samples in the batch. None: it is not known.

    Raises:
        TaskError: the layout of the output fits no kind of slot, or the layout or dtype differs between the modes.
    """
    field, shape = f"slot {path}", tuple(training.shape)
    if path not in kinds:
        mend = "name a module that returns [B,C,H,W], [B,T,C], [B,C,T] or [B,C]"
        raise TaskError(field, f"output of shape {shape}", mend)
    if shape[0] != batch:
        mend = "name a module with one row per sample, not per node or other part of a sample"
        if samples not in (None, batch):
            mend = (
                f"no input has a row for each of {samples} samples, so the {batch} rows of the inputs count as samples;"
                " name a module with that many rows, or let task.collate add an input with one row per sample"
            )
        raise TaskError(field, f"output of shape {shape} for {batch} samples", mend)
    channel = 1 + kinds[path].channel
    same = training.dim() == evaluation.dim() and shape[channel] == evaluation.shape[channel]
    if not same or training.dtype != evaluation.dtype:
        other = f"{shape} {training.dtype} in training, {tuple(evaluation.shape)} {evaluation.dtype} in evaluation"
        raise TaskError(field, f"output of {other}", "name a module that returns the same in both modes")


def _turned(host: _Host, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """Return the slots whose time is the other one of their two last dimensions, with their new kind.

    In a causal network the data tell the time better than the layers: a slot is causal along the time, and not along
    the channels.
    """

    def causal(kinds_tried: Mapping[str, Kind], *, reaches_later: bool) -> set[str]:
        run, tried = partial(host.evaluated, kinds_tried), host.batch_input
        return causal_slots(run, tried, host.batch, TOLERANCE, same_length=True, reaches_later=reaches_later)

    others = {**kinds, **{path: _OTHER[kind] for path, kind in kinds.items() if kind in _OTHER}}
    unsure = {path for path in host.paths if others[path] is not kinds[path]}
    if unsure:
        unsure -= causal(kinds, reaches_later=False)
    if unsure:
        unsure &= causal(others, reaches_later=True)
    return {path: others[path] for path in unsure}


def _specs(
    host: _Host, kinds: Mapping[str, Kind], training: Mapping[str, Tensor], evaluation: Mapping[str, Tensor]
) -> tuple[SlotSpec, ...]:
    """Return the slots that could be measured.

    Raises:
        TaskError: no input changes the output of a slot, or a pattern has no slot left.
    """
    independent = _independent(host, training, training=True)
    causal = causal_slots(partial(host.evaluated, kinds), host.batch_input, host.batch, TOLERANCE)
    independent_evaluated = _independent(host, evaluation, training=False)
    host.matched.check()
    return tuple(
        SlotSpec(
            path=path,
            kind=kinds[path],
            shape=tuple(output.shape[1:]),
            dtype=str(output.dtype),
            device=str(output.device),
            causal=path in causal,
            samples_independent=path in independent,
            samples_independent_evaluated=path in independent_evaluated,
            autocast=host.autocast.get(path),
            padding=host.masks.get(path) if kinds[path] is Kind.NTC else None,
        )
        for path, output in training.items()
        if path in host.paths
    )


def _rows(batch_input: Any, samples: int | None) -> int:  # Any: see Forward
    """Return the number of rows that count as samples. The order of the tensors in the input has no effect.

    It is `samples` if a tensor has that many rows. Otherwise it is the number of rows that most tensors have, and the
    larger number of two that are equally frequent. An example is a graph network whose inputs have a row per node.

    Raises:
        TaskError: the input has no tensor, or fewer than two samples.
    """
    rows = Counter(len(tensor) for tensor in tensors(batch_input) if tensor.dim())
    if not rows:
        raise TaskError("task.train", "an input without tensors", "let task.collate make tensors of it, batch first")
    found = samples if samples in rows else max(rows, key=lambda count: (rows[count], count))
    if found is None or found < 2:
        mend = "use 2 or more, or run.batch_size: slots are measured by the effect of one sample on another's output"
        raise TaskError("task.batch_size", found, mend)
    return found


def _independent(host: _Host, before: Mapping[str, Tensor], *, training: bool) -> set[str]:
    """Return the slots with independent samples in one mode: a change of one sample changed only the output of this
    sample.

    Three samples (first, middle, last) are changed, one at a time.

    Raises:
        TaskError: no output of a slot changed, so the slot cannot be judged.
    """
    mixed, alive = set(), set()
    for i in sorted({0, host.batch // 2, host.batch - 1}):
        after = host.run(training=training, change=perturbing((slice(i, i + 1),), (host.batch,)))
        others = [other for other in range(host.batch) if other != i]
        for path in host.paths:
            rows = moved(before[path], after[path], TOLERANCE)
            if rows.any():
                alive.add(path)
            if rows[others].any():
                mixed.add(path)
    for path in host.paths:
        if path not in alive:
            with host.matched.trying(path):
                raise _unmoved(path, host)
    return set(host.paths) - mixed


def _unmoved(path: str, host: _Host) -> TaskError:
    """Return the error for a slot whose output did not move. Only inputs with a row per sample were changed."""
    others = sorted({len(tensor) for tensor in tensors(host.batch_input) if tensor.dim()} - {host.batch})
    if not others:
        return TaskError(f"slot {path}", "no input moves its output", "name a module that the input reaches")
    mend = (
        f"inputs of {', '.join(map(str, others))} rows cannot be changed by sample; name a module that the others reach"
    )
    return TaskError(f"slot {path}", f"no input with {host.batch} rows, one per sample, moves its output", mend)
