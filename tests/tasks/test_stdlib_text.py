"""The built-in text task on the library of the Python that runs the tests, and its reader on small folders."""

from __future__ import annotations

import math
import re
import sysconfig
from pathlib import Path

import pytest
import torch

from esper.errors import TaskError
from esper.task import Task
from esper.tasks import stdlib_text
from esper.tasks.stdlib_text import (
    OTHER,
    STRIDE,
    VOCABULARY,
    CharTransformer,
    Corpus,
    Windows,
    encode,
    read_corpus,
    shard_of,
    split,
)
from esper.testing import telling

SHARDS = ("train", "pick", "gate", "valid", "test")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus(Path(sysconfig.get_path("stdlib")))


@pytest.fixture(scope="module")
def shards(corpus: Corpus) -> dict[str, Windows]:
    return split(corpus)


@pytest.fixture(scope="module")
def task() -> Task:
    return stdlib_text.task()


def files_of(windows: Windows) -> set[int]:
    return {windows.group_of(index) for index in range(len(windows))}


def write(root: Path, **texts: bytes) -> None:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_bytes(text)


# -- text --------------------------------------------------------------------------------------------------------


def test_vocabulary_is_printable_ascii_newline_and_one_symbol_for_all_else():
    printable = "\n" + "".join(map(chr, range(0x20, 0x7F)))
    symbols = encode(printable.encode())
    assert VOCABULARY == 97
    assert sorted(symbols) == list(range(OTHER))
    assert encode(b"\t\r\x00") == bytes([OTHER] * 3)


def test_a_character_is_one_symbol_however_many_bytes_it_takes():
    assert len(encode("aé€😀b".encode())) == 5
    assert encode("é€😀".encode()) == bytes([OTHER] * 3)


def test_tests_and_installed_packages_are_no_part_of_the_corpus(tmp_path: Path):
    write(tmp_path, b=b"b", a__c=b"c", test__x=b"x", a__tests__x=b"x", site_packages=b"not the folder")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "x.py").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    assert list(read_corpus(tmp_path).sources) == ["a/c.py", "b.py", "site_packages.py"]


def test_a_source_that_is_not_utf8_is_left_out_by_name(tmp_path: Path):
    write(tmp_path, good="é".encode(), bad="é".encode("latin-1"))
    corpus = read_corpus(tmp_path)
    assert list(corpus.sources) == ["good.py"]
    assert corpus.left_out == ("bad.py",)


def test_a_source_that_cannot_be_read_is_an_error_not_a_smaller_corpus(tmp_path: Path):
    write(tmp_path, good=b"x")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "absent")
    with pytest.raises(TaskError, check=telling("dangling.py", field="stdlib_text corpus")) as caught:
        read_corpus(tmp_path)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_root_that_is_no_folder_is_an_error_not_an_empty_corpus(tmp_path: Path):
    with pytest.raises(TaskError, check=telling(field="stdlib_text corpus", value=re.compile("/absent$"))):
        read_corpus(tmp_path / "absent")


# -- shards ------------------------------------------------------------------------------------------------------


def test_every_file_that_fills_a_window_is_in_exactly_one_shard(corpus: Corpus, shards: dict[str, Windows]):
    placed = sorted(number for name in SHARDS for number in files_of(shards[name]))
    long_enough = [number for number, text in enumerate(corpus.sources.values()) if len(text) >= STRIDE]
    assert placed == long_enough


def test_the_shard_of_a_path_is_the_same_on_every_machine():
    names = ("json/encoder.py", "json/__init__.py", "os.py", "shutil.py", "pdb.py")
    assert [shard_of(name) for name in names] == ["train", "pick", "gate", "test", "test"]


def test_a_file_keeps_its_shard_when_the_others_come_in_another_order(corpus: Corpus, shards: dict[str, Windows]):
    backwards = Corpus(dict(reversed(corpus.sources.items())), ())
    paths, paths_backwards = list(corpus.sources), list(backwards.sources)
    for name, windows in split(backwards).items():
        assert {paths_backwards[n] for n in files_of(windows)} == {paths[n] for n in files_of(shards[name])}


def test_pick_and_gate_have_files_enough_to_draw_128_groups(shards: dict[str, Windows]):
    assert min(len(files_of(shards["pick"])), len(files_of(shards["gate"]))) >= 140


def test_a_window_is_the_next_65_characters_of_its_one_file(corpus: Corpus, shards: dict[str, Windows]):
    texts = list(corpus.sources.values())
    for windows in shards.values():
        used: dict[int, int] = {}
        for index, window in enumerate(windows.symbols_NT):
            number = windows.group_of(index)
            start = used.get(number, 0)
            assert bytes(window.tolist()) == texts[number][start : start + STRIDE]
            used[number] = start + STRIDE
        assert all(len(texts[number]) - end < STRIDE for number, end in used.items())


def test_the_target_is_the_input_shifted_by_one(shards: dict[str, Windows]):
    inputs, targets = shards["train"][7]
    assert (inputs.shape, targets.shape) == ((64,), (64,))
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert torch.equal(inputs[1:], targets[:-1])
    assert torch.equal(torch.cat([inputs[:1], targets]), shards["train"].symbols_NT[7].long())


def test_many_samples_at_once_are_the_samples_one_by_one(shards: dict[str, Windows]):
    indices = [5, 0, 1_000]
    for (inputs, targets), index in zip(shards["gate"].__getitems__(indices), indices, strict=True):
        alone_inputs, alone_targets = shards["gate"][index]
        assert torch.equal(inputs, alone_inputs)
        assert torch.equal(targets, alone_targets)


def test_a_sampled_window_keeps_its_file(shards: dict[str, Windows]):
    whole = shards["valid"]
    some, same, other = whole.sample(50, key=0), whole.sample(50, key=0), whole.sample(50, key=1)
    assert torch.equal(some.symbols_NT, same.symbols_NT)
    assert not torch.equal(some.symbols_NT, other.symbols_NT)
    known = {(bytes(text.tolist()), whole.group_of(n)) for n, text in enumerate(whole.symbols_NT)}
    assert all((bytes(text.tolist()), some.group_of(n)) in known for n, text in enumerate(some.symbols_NT))


def test_a_library_without_sources_enough_is_refused_by_the_shard_it_cannot_fill(corpus: Corpus):
    few = dict(list(corpus.sources.items())[:300])
    with pytest.raises(TaskError, check=telling("140", field="stdlib_text files in pick")):
        split(Corpus(few, ()))


def test_files_enough_with_too_little_text_are_refused(corpus: Corpus):
    short = {path: text[:STRIDE] for path, text in corpus.sources.items()}
    with pytest.raises(TaskError, check=telling("1200", field="stdlib_text windows in train")):
        split(Corpus(short, ()))


# -- task --------------------------------------------------------------------------------------------------------


def test_two_builds_of_the_task_are_equal(task: Task):
    again = stdlib_text.task()
    for name in SHARDS:
        assert torch.equal(getattr(task, name).symbols_NT, getattr(again, name).symbols_NT)
        assert torch.equal(getattr(task, name).files_N, getattr(again, name).files_N)


def test_validation_and_test_are_capped_and_an_epoch_fits_into_train(task: Task):
    assert (len(task.valid), len(task.test)) == (2_048, 2_048)
    assert task.epochs * task.epoch_samples // task.batch_size == 600
    assert len(task.train) >= task.epoch_samples


def test_no_output_before_a_position_moves_with_its_input():
    model = CharTransformer()
    symbols = torch.randint(VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(0))
    changed = symbols.clone()
    changed[:, 20] = (changed[:, 20] + 1) % VOCABULARY
    moved = (model(symbols) != model(changed)).any(dim=-1).any(dim=0)
    assert not moved[:20].any()
    assert moved[20:].all()


def test_both_slots_put_out_position_by_channel(task: Task):
    model = task.model()
    shapes = {}
    for path in task.slots:
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: shapes.update({path: tuple(output.shape)})
        )
    logits = model(torch.zeros(3, 64, dtype=torch.int64))
    assert shapes == {"embed": (3, 64, 32), "blocks.0": (3, 64, 32)}
    assert logits.shape == (3, 64, 97)


def test_the_loss_is_the_mean_of_the_losses_of_the_samples(task: Task):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 64, VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (5, 64), generator=generator)
    per_sample = task.sample_loss(logits, targets)
    alone = torch.stack([task.loss(logits[n : n + 1], targets[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(per_sample, alone)
    torch.testing.assert_close(per_sample.mean(), task.loss(logits, targets))


def test_the_rate_rises_for_40_steps_then_falls_to_a_tenth_and_stays(task: Task):
    optimizer = task.optimizer([torch.nn.Parameter(torch.zeros(1))])
    scheduler = task.scheduler(optimizer, 600)
    rates = []
    for _ in range(650):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(8e-3 / 40)
    assert rates[39] == rates[40] == max(rates) == pytest.approx(8e-3)
    assert rates[600] == rates[649] == min(rates[40:]) == pytest.approx(8e-4)


def test_the_model_starts_knowing_nothing_and_learns(task: Task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    inputs, targets = (torch.stack(part) for part in zip(*task.train.__getitems__(range(64)), strict=True))
    assert model.embed(inputs).std() < 0.05
    start = task.loss(model(inputs), targets).item()
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    assert start == pytest.approx(math.log(97), abs=0.5)
    assert task.loss(model(inputs), targets) < 2.8
