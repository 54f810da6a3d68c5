"""Slots: which modules a pattern names, and what the dry run shows of them, or why it refuses."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

import pytest
import torch
import torch.utils.checkpoint
from growing import Look
from torch import Tensor, nn
from torch.nn.functional import pad

from esper.errors import TaskError
from esper.kasmina.blueprints.ntc import Attention, TimeConv
from esper.kasmina.host.dry_run import dry_run as find
from esper.kasmina.host.perturbation import other_content
from esper.kasmina.host.slot_patterns import match
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import telling

TOKENS = torch.randint(0, 11, (4, 16), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))


def call(model: nn.Module, batch_input: object) -> object:
    return model(batch_input)


def dry_run(model: nn.Module, slots, batch_input: object, run) -> tuple[SlotSpec, ...]:
    return find(model, slots, batch_input, run).specs


def resolve(model: nn.Module, patterns) -> tuple[str, ...]:
    return match(model, patterns).order


def text_model(causal: bool = True) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.drop = Attention(8, causal), nn.Dropout(0.2)
            nn.init.normal_(self.attention.outward.weight)  # a seed's own is zero at birth

        def forward(self, x: Tensor) -> Tensor:
            return x + self.drop(self.attention(x))

    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(11, 8))
    model.add_module("blocks", nn.Sequential(Block(), Block()))
    model.add_module("head", nn.Linear(8, 11))
    return model


def only(module: nn.Module, batch_input: object = ROWS, run=call):
    """The spec of the one slot `0` of a model."""
    (spec,) = dry_run(nn.Sequential(module), ["0"], batch_input, run)
    return spec


# -- which modules -----------------------------------------------------------------------------------------------


def test_patterns_name_modules_once_in_the_order_of_the_model():
    assert resolve(text_model(), ["head", "blocks.1", "blocks.*"]) == ("blocks.0", "blocks.1", "head")


def test_a_star_does_not_reach_into_submodules():
    assert resolve(text_model(), ["[a-z]*"]) == ("embed", "blocks", "head")
    assert resolve(text_model(), ["blocks.?.drop"]) == ("blocks.0.drop", "blocks.1.drop")


def test_a_star_alone_is_every_module_at_any_depth():
    model = text_model()
    assert resolve(model, ["*"]) == tuple(path for path, _ in model.named_modules() if path)


NOISE = iter(range(10**6))


class Mixed(nn.Module):
    """[B, 8] -> [B, 4]. Its modules: two that can be slots, a container of one of them, and one of each other kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.twice, self.never = nn.Identity(), nn.Linear(8, 8)
        self.pair, self.chance = Look(lambda x: {"x": x}), Look(lambda x: x * next(NOISE))
        self.bias = nn.Embedding(4, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pair(self.twice(self.twice(self.body(x))))["x"]
        return self.head(h + 0 * self.chance(h) + self.bias(torch.arange(4)))


LEFT_OUT = {
    "body.1": "its output equals that of body",
    "twice": "called 2 times by a forward in training mode",
    "never": "never called by a forward in training mode",
    "pair": "output of type dict",
    "chance": "two outputs for one input",
    "bias": "no input moves its output",
}


def test_what_a_pattern_matches_and_cannot_be_a_slot_is_left_out_and_said():
    found = find(Mixed(), ["*"], ROWS, call)
    assert [spec.path for spec in found.specs] == ["body", "body.0", "head"]
    assert found.left_out == LEFT_OUT


@pytest.mark.parametrize(("path", "why"), LEFT_OUT.items())
def test_the_same_module_named_outright_is_refused_or_kept(path, why):
    if "its output equals that" in why:
        found = find(Mixed(), ["*", path], ROWS, call)
        assert [spec.path for spec in found.specs] == ["body.0", "body.1", "head"]
        assert found.left_out["body"] == "its output equals that of body.1"
        return
    with pytest.raises(TaskError, check=telling(field=f"slot {path}", value=re.compile(why))):
        find(Mixed(), ["*", path], ROWS, call)


def test_a_pattern_of_which_nothing_is_left_is_refused_with_the_first_reason():
    first = telling("2 modules", "twice: called 2 times", field="task.slots", value="[pt]*")
    with pytest.raises(TaskError, check=first):
        find(Mixed(), ["head", "[pt]*"], ROWS, call)


def test_the_slots_of_a_star_are_measured_as_if_each_was_named():
    found = find(text_model(), ["*"], TOKENS, call)
    named = dry_run(text_model(), [spec.path for spec in found.specs], TOKENS, call)
    assert found.specs == named
    assert found.left_out["blocks.1"] == "its output equals that of blocks"


def test_a_module_known_by_two_paths_is_one_slot():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert resolve(model, ["2"]) == resolve(model, ["*", "2"])[:1] == ("0",)
    with pytest.raises(TaskError, check=telling("one module", field="task.slots", value="0, 2")):
        resolve(model, ["0", "2"])


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.vmap(self.body)(x)
        return found


def test_a_slot_within_vmap_is_refused_by_name():
    with pytest.raises(TaskError, check=telling("vmap", field="slot body")):
        dry_run(Mapped(), ["body"], ROWS, call)


@pytest.mark.parametrize("wrong", ["block.0", "blocks.0x", "blocks.7*.0"])
def test_a_pattern_that_matches_nothing_is_answered_with_the_nearest_module(wrong):
    with pytest.raises(TaskError, check=telling("blocks.0", field="task.slots")):
        resolve(text_model(), ["head", wrong])


@pytest.mark.parametrize(("patterns", "value"), [([""], ""), ("blocks.*", "blocks.*")])
def test_the_whole_model_and_a_bare_string_are_no_slots(patterns, value):
    with pytest.raises(TaskError, check=telling(field="task.slots", value=value)):
        resolve(text_model(), patterns)


def test_a_model_without_submodules_has_no_slots():
    with pytest.raises(TaskError, check=telling(field="task.slots", value="weight")):
        resolve(nn.Linear(8, 8), ["weight"])


# -- what they are -----------------------------------------------------------------------------------------------


def test_a_causal_text_model_has_causal_independent_slots():
    specs = dry_run(text_model(), ["blocks.*", "head"], TOKENS, call)
    assert [spec.path for spec in specs] == ["blocks.0", "blocks.1", "head"]
    assert [spec.shape for spec in specs] == [(16, 8), (16, 8), (16, 11)]
    assert {(spec.kind, spec.dtype, spec.device) for spec in specs} == {(Kind.NTC, "torch.float32", "cpu")}
    assert all(spec.causal and spec.samples_independent for spec in specs)


def test_a_model_that_looks_ahead_has_no_causal_slots():
    specs = dry_run(text_model(causal=False), ["embed", "blocks.*"], TOKENS, call)
    assert [spec.causal for spec in specs] == [True, False, False]


@pytest.mark.parametrize(
    ("see", "causal"),
    [
        (TimeConv(8, 5, causal=True), True),
        (TimeConv(8, 5, causal=False), False),
        (lambda x: pad(x, (0, 0, 0, 1))[:, 1:], False),
        (lambda x: x + 1e-3 * x.flip(1), False),
        (lambda x: torch.cat([x[:, :1] + x[:, 1:2], x[:, 1:]], dim=1), True),  # as a prefix that is read whole
        (lambda x: torch.cat([x[:, :-2], x[:, -2:-1] + x[:, -1:], x[:, -1:]], dim=1), False),
        (lambda x: x[:, :1].expand_as(x), False),
    ],
    ids=[
        "left-padded",
        "same-padded",
        "next token",
        "faintly reversed",
        "first pair alone",
        "last pair alone",
        "time does not matter",
    ],
)
def test_causality_of_sequences_is_what_perturbing_shows(see, causal):
    assert only(Look(see), SEQUENCES).causal is causal


def test_causality_is_not_claimed_where_the_input_has_no_time():
    assert not only(Look(lambda x: x.unflatten(1, (4, 2))), ROWS).causal


def test_causality_is_measured_without_dropout_and_batch_statistics():
    class OverTime(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    spec = only(nn.Sequential(OverTime(8), nn.Dropout(0.9)), SEQUENCES)
    assert spec.causal
    assert not spec.samples_independent


def test_images_and_rows_are_found_by_their_dimensions():
    assert only(nn.Conv2d(3, 7, 3, padding=1), IMAGES).shape == (7, 6, 5)
    assert only(nn.Conv2d(3, 7, 3, padding=1), IMAGES).kind is Kind.NCHW
    assert only(nn.Linear(8, 5)).kind is Kind.NC


@pytest.mark.parametrize(
    ("module", "independent"),
    [
        (nn.Linear(8, 8), True),
        (nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), True),
        (nn.BatchNorm1d(8), False),
        (nn.Softmax(dim=0), False),
        (nn.Sequential(nn.BatchNorm1d(8), Look(lambda x: x * 1e-9)), False),
        (Look(lambda x: x * (1 + random.random())), True),
    ],
    ids=["linear", "dropout", "batch norm", "softmax over the batch", "in tiny units", "Python's random numbers"],
)
def test_samples_are_independent_where_none_moves_another_in_training(module, independent):
    assert only(module).samples_independent is independent


def test_perturbed_samples_stay_in_the_range_that_the_model_knows():
    rate = Look(lambda x: x.log())
    assert only(rate, ROWS.abs() + 1e-3).samples_independent


def test_an_additive_mask_of_infinities_is_perturbed_as_a_mask():
    mask = torch.zeros(4, 8).masked_fill(ROWS > 1, float("-inf"))
    assert only(Look(lambda x: x.exp()), mask).samples_independent


def test_a_boolean_mask_is_never_changed():
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) > 0.3

    def check(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert torch.equal(batch[1], mask)
        return model(batch)

    assert dry_run(nn.Sequential(Read(0)), ["0"], (TOKENS, mask), check)[0].causal


class Pair(NamedTuple):
    tokens: Tensor
    mask: Tensor


class Read(nn.Module):
    """Embeds the tokens of a batch, whatever it is packed in."""

    def __init__(self, key: object) -> None:
        super().__init__()
        self.key, self.embed = key, nn.Embedding(11, 8)

    def forward(self, batch: object) -> Tensor:
        return (
            self.embed(batch[self.key]) * torch.as_tensor(batch[1 if isinstance(self.key, int) else "mask"])[..., None]
        )


@pytest.mark.parametrize(
    ("batch_input", "key"),
    [
        ((TOKENS, torch.ones(4, 16)), 0),
        ([TOKENS, torch.ones(4, 16, dtype=torch.bool)], 0),
        (Pair(TOKENS, torch.ones(4, 16)), 0),
        ({"tokens": TOKENS, "mask": torch.ones(4, 16)}, "tokens"),
    ],
    ids=["tuple", "list", "named tuple", "mapping"],
)
def test_batches_may_be_packed(batch_input, key):
    spec = only(Read(key), batch_input)
    assert (spec.kind, spec.causal, spec.samples_independent) == (Kind.NTC, True, True)


def test_a_later_layer_that_writes_in_place_does_not_spoil_the_measure():
    (spec,) = dry_run(nn.Sequential(nn.Linear(8, 8), Look(lambda x: x.zero_())), ["0"], ROWS, call)
    assert spec.samples_independent


# -- nothing is left behind --------------------------------------------------------------------------------------


def test_the_dry_run_leaves_model_input_and_random_numbers_as_they_were():
    model, rows = nn.Sequential(Look(lambda x: x.mul_(2)), nn.BatchNorm1d(8), nn.Dropout(0.5)), ROWS.clone()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    dry_run(model, ["1", "2"], rows, call)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(rows, ROWS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


# -- what is refused ---------------------------------------------------------------------------------------------


class Uses(nn.Module):
    """Calls its linear layer so many times in training and in evaluation mode."""

    def __init__(self, training: int, evaluation: int) -> None:
        super().__init__()
        self.linear, self.times = nn.Linear(8, 8), {True: training, False: evaluation}

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times[self.training]):
            x = self.linear(x)
        return x


@pytest.mark.parametrize(
    ("training", "evaluation", "why"),
    [
        (1, 0, "never called by a forward in evaluation mode"),
        (1, 3, "called 3 times by a forward in evaluation mode"),
    ],
)
def test_a_slot_is_called_exactly_once_in_both_modes(training, evaluation, why):
    with pytest.raises(TaskError, check=telling(field="slot linear", value=re.compile(why))):
        dry_run(Uses(training, evaluation), ["linear"], ROWS, call)


@pytest.mark.parametrize(
    ("see", "why"),
    [
        (lambda x: ("name", x), "output of type str"),
        (lambda x: x.argmax(-1), "output of torch.int64"),
        (lambda x: x.mean(-1), r"output of shape \(4,\)"),
        (lambda x: x[:, :, None, None, None], r"output of shape \(4, 8, 1, 1, 1\)"),
        (lambda x: x.view(8, 4), r"output of shape \(8, 4\) for 4 samples"),
        (lambda x: x / 0, "output not finite"),
    ],
    ids=["text first", "integers", "one dimension", "five dimensions", "folded batch", "infinite"],
)
def test_an_output_that_no_seed_could_join_is_refused_with_its_slot(see, why):
    with pytest.raises(TaskError, check=telling(field="slot 0", value=re.compile(why))):
        only(Look(see))


def test_a_slot_of_a_tuple_is_measured_by_its_first_item():
    model = nn.Sequential(nn.LSTM(8, 6, batch_first=True), Look(lambda both: both[0].mean(1)))
    (spec,) = dry_run(model, ["0"], torch.randn(4, 5, 8), call)
    assert (spec.kind, spec.shape, spec.causal) == (Kind.NTC, (5, 6), True)


def test_an_output_that_differs_between_the_modes_is_refused():
    class Narrowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x[:, :4]

    with pytest.raises(TaskError, check=telling("(4, 8) torch.float32", "(4, 4) torch.float32", field="slot 0")):
        only(Narrowing())


@pytest.mark.parametrize(
    ("batch_input", "field", "value"),
    [(ROWS[:1], "task.batch_size", 1), ({"rows": 3}, "task.train", "an input without tensors")],
)
def test_a_batch_on_which_nothing_can_be_shown_is_refused(batch_input, field, value):
    with pytest.raises(TaskError, check=telling(field=field, value=value)):
        only(nn.Linear(8, 8), batch_input)


def test_a_model_that_counts_its_calls_is_measured_afresh_each_time():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    assert only(Counting()).samples_independent


class Graphs(nn.Module):
    """`nodes` has a row per node, `pool` a row per graph."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.pool = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, graphs):
        h = self.nodes(graphs["x"])
        owner = torch.arange(3).repeat_interleave(3)
        sums = torch.zeros(3, 3).index_add(0, owner, h)
        return self.pool(sums / graphs["count"][:, None] if "count" in graphs else sums)


NODES = {"x": torch.randn(9, 3), "edges": torch.zeros(2, 7, dtype=torch.long), "owner": torch.ones(9)}
COUNTED = NODES | {"count": torch.tensor([3.0, 4.0, 5.0])}


@pytest.mark.parametrize("turned", [False, True])
def test_the_rows_that_count_as_samples_do_not_depend_on_the_order_of_the_inputs(turned):
    def ordered(inputs):
        return dict(reversed(inputs.items())) if turned else inputs

    (spec,) = find(Graphs(), ["pool"], ordered(COUNTED), call, 3).specs
    assert (spec.shape, spec.kind) == ((3,), Kind.NC)
    with pytest.raises(TaskError, check=telling("one row per sample", "not per node", "(9, 3) for 3 samples")):
        find(Graphs(), ["nodes"], ordered(COUNTED), call, 3)
    (spec,) = find(Graphs(), ["nodes"], ordered(NODES), call, 3).specs
    assert spec.shape == (3,)
    why = ("(3, 3) for 9 samples", "no input has a row for each of 3 samples", "add an input with one row per sample")
    with pytest.raises(TaskError, check=telling(*why)):
        find(Graphs(), ["pool"], ordered(NODES), call, 3)


def test_a_slot_that_only_inputs_without_a_row_per_sample_reach_is_told_so():
    with pytest.raises(TaskError, check=telling("no input with 3 rows", "inputs of 2, 9 rows", field="slot pool")):
        find(Graphs(), ["pool"], NODES | {"label": torch.ones(3)}, call, 3)


class Categories(nn.Module):
    """[B, 2] categories -> [B, 2, 8]: each column has an embedding of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.days, self.towns = nn.Embedding(3, 8), nn.Embedding(50, 8)

    def forward(self, columns_BK: Tensor) -> Tensor:
        return torch.stack([self.days(columns_BK[:, 0]), self.towns(columns_BK[:, 1])], dim=1)


def test_a_category_becomes_another_one_of_its_column():
    columns = torch.tensor([[0, 49], [2, 7], [1, 7], [0, 30]])
    spec = only(Categories(), columns)
    assert (spec.shape, spec.causal, spec.samples_independent) == ((2, 8), True, True)
    assert other_content(columns).tolist() == [[1, 7], [0, 30], [2, 30], [1, 49]]
    assert other_content(columns[:, 0]).tolist() == [1, 0, 2, 1]
    for kind in (torch.uint8, torch.uint16, torch.int32):
        assert other_content(columns.to(kind)).tolist() == other_content(columns).tolist()


@pytest.mark.parametrize("batch", [[[0, 1, 0, 1], [1, 1, 0, 1]], [[0, 1, 0, 1]] * 2, [[1, 0, 0, 0]] * 2])
def test_entries_that_are_equal_in_all_samples_change_too(batch):
    tokens = torch.tensor(batch)
    assert (other_content(tokens) != tokens).all()
    model = nn.Sequential(nn.Embedding(2, 8), Attention(8, causal=True))
    nn.init.normal_(model[1].outward.weight)
    (spec,) = dry_run(model, ["1"], tokens, call)
    assert (spec.causal, spec.samples_independent) == (True, True)


def test_a_constant_column_keeps_within_its_embedding():
    columns = torch.tensor([[2, 49], [2, 7], [2, 30]])
    assert other_content(columns).tolist() == [[1, 7], [1, 30], [1, 49]]
    assert only(Categories(), columns).samples_independent


class Decoder(nn.Module):
    """An encoder of the source, and a causal decoder that reads its result at each position."""

    def __init__(self, start: bool = False) -> None:
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(11, 8), nn.Embedding(11, 8), nn.Linear(8, 11)
        self.encoder, self.decoder = Attention(8, False), Attention(8, True)
        self.start = nn.Parameter(torch.randn(8)) if start else None
        for one in (self.encoder, self.decoder):
            nn.init.normal_(one.outward.weight)  # a seed's own is zero at birth

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        source, target = self.encoder(self.source(batch[0])), self.target(batch[1])
        if self.start is not None:
            target = torch.cat([self.start.expand(len(target), 1, 8), target], dim=1)
        h = self.decoder(target + source.mean(dim=1, keepdim=True))
        return self.head(h if self.start is None else h[:, 1:])


@pytest.mark.parametrize("source", [TOKENS, TOKENS[:, :9]], ids=["equal lengths", "a shorter source"])
@pytest.mark.parametrize("start", [False, True], ids=["no start", "a token before the others"])
def test_a_decoder_is_causal_along_its_targets_though_it_reads_its_whole_source(source: Tensor, start: bool):
    specs = dry_run(Decoder(start), ["encoder", "decoder"], (source, TOKENS.flip(0)), call)
    assert [(spec.path, spec.causal) for spec in specs] == [("encoder", False), ("decoder", True)]
    assert specs[1].shape == (16 + start, 8)


def test_a_slot_of_another_length_is_not_causal_if_the_result_of_the_network_has_no_positions():
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = nn.Conv1d(8, 8, 3, stride=2), nn.Linear(8, 16)  # as many classes as positions

        def forward(self, x_BTC: Tensor) -> Tensor:
            return self.head(self.inner(x_BTC).mean(dim=1))

        def inner(self, x_BTC: Tensor) -> Tensor:
            return self.slot(self.stage(x_BTC.transpose(1, 2)).transpose(1, 2))

    model = Classifier()
    model.slot = nn.Linear(8, 8)
    (spec,) = dry_run(model, ["slot"], SEQUENCES, call)
    assert spec.shape[0] != SEQUENCES.shape[1]
    assert not spec.causal


@pytest.mark.parametrize("channels", [16, 12], ids=["as many channels as words", "other channels"])
def test_a_token_before_the_others_hides_no_causality(channels: int):
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first = nn.Embedding(11, channels), nn.Parameter(torch.randn(1, 1, channels))
            self.body, self.head = nn.GRU(channels, channels, batch_first=True), nn.Linear(channels, 11)

        def forward(self, batch: Tensor) -> Tensor:
            begun = torch.cat([self.first.expand(len(batch), 1, channels), self.embed(batch)], dim=1)
            return self.head(self.body(begun)[0][:, 1:])

    (spec,) = dry_run(Started(), ["body"], TOKENS, call)
    assert (spec.shape, spec.causal) == ((17, channels), True)


def test_a_prefix_that_is_read_whole_hides_no_causality():
    sees = torch.ones(16, 16).tril()
    sees[:6, :6] = 1
    assert only(Look(lambda x: torch.einsum("ts,bsc->btc", sees, x)), SEQUENCES).causal
    assert not only(Look(lambda x: torch.einsum("ts,bsc->btc", sees.T, x)), SEQUENCES).causal


def test_boolean_contents_have_positions_like_numbers():
    class Roll(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.style, self.into = nn.Embedding(4, 8), nn.Linear(8, 8)
            self.body = nn.LSTM(8, 4 if both else 8, batch_first=True, bidirectional=both)

        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.body(self.into(batch[0].float()) + self.style(batch[1])[:, None])[0]

    notes = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0)) > 0
    for both in (False, True):
        (spec,) = dry_run(Roll(both), ["body"], (notes, torch.arange(4)), call)
        assert spec.causal is not both


@pytest.mark.parametrize("shown", ["masked words", "words before positions"])
def test_the_form_of_the_logits_does_not_hide_that_a_network_is_causal(shown: str):
    class Shown(Decoder):
        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            scores = super().forward(batch)
            return scores.transpose(1, 2) if shown != "masked words" else scores.index_fill(2, WORD, float("-inf"))

    (spec,) = dry_run(Shown(start=True), ["decoder"], (TOKENS, TOKENS.flip(0)), call)
    assert spec.causal


WORD = torch.tensor([3])


def test_an_input_of_the_same_length_that_acts_on_its_own_position_makes_no_slot_causal():
    class Marked(nn.Module):
        """Attention over all positions, then marks that are added to their positions."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.encoder, self.after = nn.Embedding(11, 8), Attention(8, False), nn.Linear(8, 8)
            nn.init.normal_(self.encoder.outward.weight)

        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.after(self.encoder(self.embed(batch[0])) + batch[1][..., None])

    specs = dry_run(Marked(), ["encoder", "after"], (TOKENS, torch.randn(4, 16)), call)
    assert [spec.causal for spec in specs] == [False, False]
