"""Checkpoints: what was written comes back to the bit, what is damaged or hostile never; no save fails in silence."""

from __future__ import annotations

import builtins
import errno
import io
import json
import operator
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from growing import DRAWN, RUN
from training import bits, live_trainer, make_plan, make_survey

from esper.durable.files import Disk
from esper.durable.streams import Written, write_stream
from esper.errors import CheckpointCorrupt, DependencyViolationError, RestoreImpossible, StoreWriteFailed
from esper.ground.heartbeat import beats
from esper.ground.tensors import state_crc32c
from esper.leyline.checkpoint_record import QUARANTINE, CheckpointWritten
from esper.telemetry import Telemetry
from esper.telemetry.events import LOG
from esper.testing import telling
from esper.tolaria import background_save, checkpoint_file
from esper.tolaria.checkpoint_file import FORMAT, load, load_written, restore_latest, save, verify_all
from esper.tolaria.memory_copy import MemoryCopy
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.snapshot_codec import from_plain, incubation_of, to_plain, topology_digest
from esper.tolaria.trainer import Trainer, never

FLIPS, MANY_FLIPS = 1_000, 100_000
Commits = list[CheckpointWritten]


def content(fence: int = 1, step: int = 20, **changes: Any) -> dict[str, Any]:
    """A whole checkpoint of a host of two tensors."""
    host = HostSnapshot(
        step=step,
        fence=fence,
        total_steps=320,
        topology=(),
        tensors={"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)},
        optimizer={"state": {0: {"step": torch.tensor(3.0), "sum": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1}]},
        scheduler=None,
        seed_optimizers={},
        best_round=0.5,
        receipts={},
        leaks={},
    )
    whole = {
        "format": FORMAT,
        "run_id": RUN,
        "fence": fence,
        "step": step,
        "generation": 1,
        "trainer": to_plain(host),
        "rooms": {"kasmina": "{}"},
        "nursery": {},
    }
    return whole | changes


@pytest.fixture
def trainer() -> Trainer:
    """A host in training with a seed."""
    survey = make_survey()
    trainer = live_trainer(survey)
    trainer.run_round(1, 20)
    trainer.apply(make_plan(survey), DRAWN)
    trainer.train_to(25)
    return trainer


@contextmanager
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """No file is synced before the event is set; at the end it is."""
    gate, fsync = Event(), Disk.fsync

    def wait_and_sync(disk: Disk, descriptor: int) -> None:
        assert gate.wait(600)
        fsync(disk, descriptor)

    monkeypatch.setattr(Disk, "fsync", wait_and_sync)
    try:
        yield gate
    finally:
        gate.set()


def fail(*_arguments: object) -> None:
    raise OSError(errno.EIO, "planted")


# -- saving and loading ------------------------------------------------------------------------------------------


def test_a_host_restored_from_a_file_goes_on_as_the_one_that_was_saved(trainer: Trainer, tmp_path: Path) -> None:
    twin = make_survey().trainer(RUN, 1, "kasmina", never).snapshot()
    trainer.save(tmp_path / "fence-1-g1.pt", {"tamiyo": '{"seen": 1}'}, {"twin": twin, "order": None})
    saved = bits(trainer)
    written = trainer.saved()
    found = load_written(tmp_path, written)
    fresh = live_trainer(make_survey())
    fresh.restore(from_plain(found["trainer"]), 2)

    assert bits(fresh) == saved
    assert fresh.train_to(50) == trainer.train_to(50)
    assert bits(fresh) == bits(trainer)
    assert (found["run_id"], found["fence"], found["step"], found["generation"]) == (RUN, 1, 25, 1)
    assert found["rooms"] == {"tamiyo": '{"seen": 1}'}
    assert bits(incubation_of(found["nursery"])["twin"]) == bits(twin)
    assert (written.file, written.fence, written.step, written.generation) == ("fence-1-g1.pt", 1, 25, 1)
    assert written.length == (tmp_path / written.file).stat().st_size


def test_what_was_loaded_can_be_used_after_its_file_is_gone_and_trained_without_changing_it(
    trainer: Trainer, tmp_path: Path
) -> None:
    trainer.save(tmp_path / "a.pt", {}, {})
    found = load_written(tmp_path, trainer.saved())
    before = (tmp_path / "a.pt").read_bytes()
    fresh = live_trainer(make_survey())
    fresh.restore(from_plain(found["trainer"]), 1)
    fresh.train_to(30)
    assert (tmp_path / "a.pt").read_bytes() == before

    (tmp_path / "a.pt").unlink()
    again = from_plain(found["trainer"])
    fresh.restore(again, 2)
    assert fresh.step == 25
    assert bits(fresh) == bits(again)


def test_what_is_read_is_what_was_verified_though_the_name_was_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mapped = tmp_path / "a.pt", checkpoint_file.mapped
    written = save(path, content())
    save(tmp_path / "b.pt", content(step=99))

    def replaced(file: Any) -> Any:
        os.replace(tmp_path / "b.pt", path)
        return mapped(file)

    monkeypatch.setattr(checkpoint_file, "mapped", replaced)
    assert load(path, written.length, written.crc, written.algorithm)["step"] == 20


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    written = save(path, content())
    with pytest.raises(StoreWriteFailed) as caught:
        save(path, content(step=21))
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert load(path, written.length, written.crc, written.algorithm)["step"] == 20


def test_a_save_leaves_torchs_own_settings_as_they_were(tmp_path: Path) -> None:
    assert torch.serialization.get_crc32_options()
    save(tmp_path / "a.pt", content())
    assert torch.serialization.get_crc32_options()


# -- in the background -------------------------------------------------------------------------------------------


def test_training_goes_on_during_a_save_and_what_is_saved_is_what_was(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(trainer)
    with gated(monkeypatch) as gate:
        trainer.save(tmp_path / "a.pt", {}, {})
        trainer.run_round(2, 40)
        assert list(tmp_path.glob("*.pt")) == []
        gate.set()
        written = trainer.saved()

    assert written.step == 25
    assert bits(from_plain(load_written(tmp_path, written)["trainer"])) == before


def test_the_record_can_be_awaited_by_another_thread(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[CheckpointWritten] = []
    with gated(monkeypatch) as gate:
        trainer.save(tmp_path / "a.pt", {}, {})
        waiting = Thread(target=lambda: found.append(trainer.saved()))
        waiting.start()
        trainer.train_to(30)
        assert found == []
        gate.set()
        waiting.join(600)

    assert found == [trainer.saved()]


@pytest.mark.parametrize("what", ["copy_state", "save"])
def test_the_memory_copy_is_not_overwritten_while_it_is_being_written(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    order: list[str] = []
    with gated(monkeypatch) as gate:
        trainer.save(tmp_path / "a.pt", {}, {})
        result, copy_state = Future.result, MemoryCopy.copy_state

        def awaited(writing: Future[Any]) -> Any:
            gate.set()
            written = result(writing)
            order.append("written")
            return written

        def copied(*arguments: Any) -> Any:
            order.append("copied")
            return copy_state(*arguments)

        monkeypatch.setattr(Future, "result", awaited)
        monkeypatch.setattr(MemoryCopy, "copy_state", copied)
        if what == "copy_state":
            trainer.copy_state(2)
        else:
            trainer.save(tmp_path / "b.pt", {}, {})

    assert order == ["written", "copied"]


def test_a_rollback_does_not_wait_for_the_save_in_flight_and_does_not_disturb_it(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(trainer)
    with gated(monkeypatch) as gate:
        trainer.save(tmp_path / "a.pt", {}, {})
        trainer.train_to(30)
        trainer.roll_back(2)
        assert bits(trainer) == before
        trainer.train_to(30)
        gate.set()

    assert bits(from_plain(load_written(tmp_path, trainer.saved())["trainer"])) == before


@pytest.mark.parametrize("call", ["write", "fsync", "link", "sync_folder"])
def test_a_save_that_failed_in_the_background_is_raised_by_whatever_comes_next(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(Disk, call, fail)
    trainer.save(tmp_path / "a.pt", {}, {})
    with pytest.raises(StoreWriteFailed, match="planted"):
        trainer.saved()
    monkeypatch.undo()
    step = trainer.step

    for doing in (
        lambda: trainer.run_round(2, 40),
        lambda: trainer.copy_state(2),
        lambda: trainer.save(tmp_path / "b.pt", {}, {}),
        trainer.saved,
    ):
        with pytest.raises(StoreWriteFailed, match="planted"):
            doing()
    assert trainer.step == step
    assert call == "sync_folder" or list(tmp_path.iterdir()) == []


def test_a_save_that_finds_the_disk_full_fails_and_leaves_nothing(trainer: Trainer, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        trainer.save(tmp_path / "a.pt", {}, {})
        with pytest.raises(StoreWriteFailed, match="File too large"):
            trainer.saved()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(StoreWriteFailed):
        trainer.train_to(30)
    assert list(tmp_path.iterdir()) == []


# -- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Written]:
    path = tmp_path / "fence-1-g1.pt"
    return path, save(path, content())


def refused(path: Path, written: Written) -> str:
    with pytest.raises(CheckpointCorrupt) as caught:
        load(path, written.length, written.crc, written.algorithm)
    assert caught.value.file == str(path)
    return caught.value.reason


def flip_and_load(path: Path, written: Written, places: Any) -> int:
    """How many of the flips of one bit, at these places counted in bits, were refused."""
    whole, count = path.read_bytes(), 0
    with path.open("r+b", buffering=0) as file:
        for place in places:
            at, bit = divmod(int(place), 8)
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << bit]), at)
            refused(path, written)
            os.pwrite(file.fileno(), whole[at : at + 1], at)
            count += 1
    load(path, written.length, written.crc, written.algorithm)  # it was the flips
    return count


def test_a_flipped_bit_is_never_loaded_in_silence(written: tuple[Path, Written]) -> None:
    drawn = np.random.Generator(np.random.Philox(key=7)).integers(0, 8 * written[1].length, FLIPS)
    assert flip_and_load(*written, drawn) == FLIPS


def test_a_damaged_byte_in_the_header_is_never_loaded_in_silence(written: tuple[Path, Written]) -> None:
    with zipfile.ZipFile(written[0]) as archive:
        first = archive.infolist()[1].header_offset  # all before it is the pickle and its header
    assert first > 500
    assert flip_and_load(*written, range(0, 8 * first, 8)) == first


@pytest.mark.torture
def test_many_flipped_bits_are_never_loaded_in_silence(written: tuple[Path, Written]) -> None:
    drawn = np.random.Generator(np.random.Philox(key=8)).integers(0, 8 * written[1].length, MANY_FLIPS)
    assert flip_and_load(*written, drawn) == MANY_FLIPS


def test_a_file_cut_anywhere_or_made_longer_is_refused(written: tuple[Path, Written]) -> None:
    path, record = written
    whole = path.read_bytes()
    for length in [*range(64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert f"is {length} bytes long" in refused(path, record)
    path.write_bytes(whole + b"\0")
    assert f"is {len(whole) + 1} bytes long" in refused(path, record)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"length": 0}, "bytes long"),
        ({"crc": 0}, "checksum"),
        ({"algorithm": "crc64"}, "crc64"),
        ({"algorithm": ""}, "sealed"),
    ],
)
def test_a_file_that_is_sound_but_not_the_one_recorded_is_refused(
    written: tuple[Path, Written], changed: dict[str, Any], why: str
) -> None:
    assert why in refused(written[0], replace(written[1], **changed))


def test_what_is_no_file_is_refused(tmp_path: Path, written: tuple[Path, Written]) -> None:
    assert "cannot be read" in refused(tmp_path / "missing.pt", written[1])
    (tmp_path / "folder.pt").mkdir()
    assert refused(tmp_path / "folder.pt", written[1])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"format": 2}, "format 2; this program reads 1"),
        ({"format": None}, "format None"),
        ({"step": "20"}, "lacks step"),
        ({"rooms": []}, "lacks rooms"),
        ({"trainer": {}}, "no snapshot of a host"),
        ({"nursery": {"twin": {"host_snapshot": {}}}}, "no snapshot of a host"),
    ],
)
def test_a_file_whose_checksum_holds_but_whose_content_is_another_is_refused(
    tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    assert why in refused(tmp_path / "a.pt", save(tmp_path / "a.pt", content(**changed)))


def test_a_lack_of_memory_is_not_held_against_the_file(
    written: tuple[Path, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_file: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoint_file, "mapped", exhausted)
    with pytest.raises(MemoryError):
        load(written[0], written[1].length, written[1].crc, written[1].algorithm)


# -- hostile files: their checksum holds, because whoever made them wrote the journal too ------------------------


class Calls:
    """Pickles as a call of a function: what loads it without care makes the call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        plain = self.function, self.arguments
        return plain if self.state is None else (*plain, self.state)


def hostile(marker: Path) -> dict[str, Any]:
    """Objects whose loading would make the file `marker`."""
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Calls(os.system, touch))
    attack = Calls(os.system, touch)
    return {
        "system": attack,
        "popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "eval": Calls(eval, f"__import__('os').system({touch!r})"),
        "exec": Calls(exec, code),
        "open": Calls(open, str(marker), "w"),
        "getattr": Calls(operator.call, Calls(getattr, Calls(__import__, "os"), "system"), touch),
        "attrgetter": Calls(operator.attrgetter("system"), Calls(__import__, "os")),
        "methodcaller": Calls(operator.methodcaller("touch"), marker),
        "map": Calls(list, Calls(map, builtins.eval, [code])),
        "nested pickle": Calls(pickle.loads, inner),
        "nested torch load": Calls(torch.load, Calls(io.BytesIO, inner), None, Calls(__import__, "pickle")),
        "storage from bytes": Calls(torch.storage._load_from_bytes, inner),
        "jit": Calls(torch.jit.load, str(marker)),
        "numpy load": Calls(np.load, str(marker), None, True),
        "hub": Calls(torch.hub.load, str(marker), "model"),
        "import": Calls(__import__, "this"),
        "path method": Calls(Path.touch, marker),
        "in a list": [1, [2, (3, attack)]],
        "as a key's value": {"a": {"b": OrderedDict(c=attack)}},
        "in a state": Calls(OrderedDict, state={"x": attack}),
        "as tensor arguments": Calls(torch._utils._rebuild_tensor_v2, attack, 0, (1,), (1,), False, OrderedDict()),
        "as backward hooks": Calls(torch._utils._rebuild_parameter, torch.zeros(1), False, attack),
        "as a parameter's state": Calls(
            torch._utils._rebuild_parameter_with_state, torch.zeros(1), False, OrderedDict(), {"x": attack}
        ),
        "as a subclass": Calls(torch._tensor._rebuild_from_type_v2, os.system, touch, (), {}),
        "module": torch.nn.Linear(1, 1),
    }


NAMES = list(hostile(Path("marker")))


def in_a_checkpoint(hidden: object) -> dict[str, Any]:
    return content(nursery={"twin": hidden})


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_has_no_effect(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    assert refused(path, save(path, in_a_checkpoint(hostile(marker)[name])))
    assert not marker.exists()


def test_a_hostile_pickle_would_have_had_an_effect_where_it_is_loaded_without_care(tmp_path: Path) -> None:
    """Else the corpus proves nothing. It runs in a process of its own, which loads as esper never does."""
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    save(path, in_a_checkpoint(hostile(marker)["system"]))
    careless = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", careless], check=True)
    assert marker.exists()


def repacked(path: Path, records: dict[str, bytes]) -> Written:
    """A torch file with other records, sealed anew: a name that is there is replaced, another is added."""
    blob = io.BytesIO()
    torch.save(content(), blob)
    with zipfile.ZipFile(blob) as old:
        root = old.namelist()[0].partition("/")[0]
        found = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()} | records
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as new:
        for name, data in found.items():
            new.writestr(f"{root}/{name}", data)
    return seal(path, packed.getvalue())


def seal(path: Path, blob: bytes) -> Written:
    def produce(stream: BinaryIO) -> None:
        stream.write(blob)

    return write_stream(path, produce)


def persistent(identity: object) -> bytes:
    """A pickle of one tensor storage that is named by `identity`."""

    class Named(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return identity if isinstance(value, Calls) else None

    out = io.BytesIO()
    Named(out, 2).dump({"x": Calls(print)})
    return out.getvalue()


RAW: dict[str, Callable[[str], bytes]] = {
    "system by its opcode": lambda touch: b"cos\nsystem\n(V" + touch.encode() + b"\ntR.",
    "posix system": lambda touch: b"cposix\nsystem\n(V" + touch.encode() + b"\ntR.",
    "an instance opcode": lambda touch: b"(V" + touch.encode() + b"\nios\nsystem\n.",
    "eval in protocol 4": lambda touch: (
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c"
        + bytes([len(code := f"__import__('os').system({touch!r})".encode())])
        + code
        + b"\x85R."
    ),
    "a dotted name": lambda touch: b"\x80\x04\x8c\x05torch\x8c\x0bos.system.__\x93\x8c" + bytes([len(touch)]) + b"R.",
    "getattr of torch": lambda touch: b"cbuiltins\ngetattr\n(ctorch\nos\nVsystem\ntR(V" + touch.encode() + b"\ntR.",
    "torch's own modules": lambda touch: b"ctorch.serialization\nos.system\n(V" + touch.encode() + b"\ntR.",
    "a storage in another file": lambda _: persistent(("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 4)),
    "a storage of a function": lambda touch: persistent(("storage", os.system, touch, "cpu", 4)),
    "a storage of no kind": lambda touch: persistent((touch,)),
    "a stack that is empty": lambda _: b"R.",
    "nothing": lambda _: b"",
    "no end": lambda _: b"}",
    "a memo that is not there": lambda _: b"h\x07.",
    "a length beyond the file": lambda _: b"X\xff\xff\xff\x7fabc.",
}


@pytest.mark.parametrize("name", RAW)
def test_a_pickle_made_by_hand_has_no_effect(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    pickled = RAW[name](f"touch {marker}")
    assert refused(path, repacked(path, {"data.pkl": pickled}))
    assert refused(tmp_path / "b.pt", seal(tmp_path / "b.pt", pickled))  # and not as a file of the old kind either
    assert not marker.exists()


def test_a_script_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.warns(UserWarning, match="TorchScript"):
        reason = refused(path, repacked(path, {"constants.pkl": pickle.dumps(())}))
    assert "TorchScript" in reason


# -- the checkpoints of a run ------------------------------------------------------------------------------------


@pytest.fixture
def commits(tmp_path: Path) -> Commits:
    """Three checkpoints of a run, oldest first."""
    return [_committed(tmp_path, fence) for fence in (1, 2, 3)]


def _committed(folder: Path, fence: int) -> CheckpointWritten:
    name = f"fence-{fence}-g1.pt"
    whole = content(fence=fence, step=20 * fence)
    made, host = save(folder / name, whole), from_plain(whole["trainer"])
    return CheckpointWritten(
        file=name,
        length=made.length,
        crc=made.crc,
        algorithm=made.algorithm,
        fence=fence,
        step=20 * fence,
        generation=1,
        weights_crc32c=state_crc32c(host.tensors),
        topology_digest=topology_digest(host.topology),
        seconds=0.1,
    )


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"damage")


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_is_used(
    tmp_path: Path, commits: Commits, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    damage(tmp_path / "fence-3-g1.pt")
    (tmp_path / "fence-2-g1.pt").unlink()
    written, found = restore_latest(tmp_path, commits)

    assert written == commits[0]
    assert found["step"] == 20
    assert [path.name for path in (tmp_path / QUARANTINE).iterdir()] == ["fence-3-g1.pt"]
    assert not (tmp_path / "fence-3-g1.pt").exists()
    assert told() == ["checkpoint_rejected", "checkpoint_rejected"]
    log = (telemetry.directory / LOG).read_text().splitlines()
    moved = [json.loads(line)["fields"]["moved_to"] for line in log]
    assert moved == [f"{tmp_path.name}/{QUARANTINE}/fence-3-g1.pt", None]


def test_when_none_is_left_the_restore_names_each_with_its_reason(tmp_path: Path, commits: Commits) -> None:
    for one in commits:
        damage(tmp_path / one.file)
    with pytest.raises(RestoreImpossible, match=r"fence-3-g1\.pt its checksum.*fence-1-g1\.pt its checksum"):
        restore_latest(tmp_path, commits)
    assert len(list((tmp_path / QUARANTINE).iterdir())) == 3
    with pytest.raises(RestoreImpossible, match="no checkpoint was ever committed"):
        restore_latest(tmp_path, [])


class FailingTrial:
    """Raises an error for one fence, or for all, as often as it is told."""

    def __init__(self, error: Exception, *, fence: int | None = None, times: int = 99) -> None:
        self.error, self.fence, self.times = error, fence, times

    def __call__(self, written: CheckpointWritten, _: dict[str, Any]) -> None:
        if self.times and self.fence in (None, written.fence):
            self.times -= 1
            raise self.error


def test_a_trial_that_fails_for_every_checkpoint_moves_none(tmp_path: Path, commits: Commits) -> None:
    trial = FailingTrial(RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(RestoreImpossible, check=telling("fence-3-g1.pt", "CUDA", "fence-1-g1.pt")):
        restore_latest(tmp_path, commits, trial=trial)
    assert len(list(tmp_path.glob("fence-*.pt"))) == 3


@pytest.mark.parametrize(("times", "condemned"), [(0, []), (1, []), (99, ["fence-3-g1.pt"])])
def test_only_a_trial_that_the_last_checkpoint_alone_fails_and_always_condemns_it(
    tmp_path: Path, commits: Commits, times: int, condemned: list[str]
) -> None:
    trial = FailingTrial(KeyError("betas"), fence=3, times=times)
    written, found = restore_latest(tmp_path, commits, trial=trial)
    assert written == commits[-1 - len(condemned)]
    assert found["step"] == written.step
    assert [path.name for path in tmp_path.glob(f"{QUARANTINE}/*")] == condemned
    assert len(list(tmp_path.glob("fence-*.pt"))) == 3 - len(condemned)


def _caused_by(cause: Exception) -> Exception:
    error = DependencyViolationError("snapshot", "an optimizer's state does not load")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        _caused_by(MemoryError()),
        _caused_by(OSError(errno.EMFILE, "too many open files")),
    ],
    ids=["memory of the device", "device", "memory", "a cause", "files"],
)
def test_a_trial_that_the_machine_fails_condemns_nothing(tmp_path: Path, commits: Commits, error: Exception) -> None:
    with pytest.raises((type(error), CheckpointCorrupt)):
        restore_latest(tmp_path, commits, trial=FailingTrial(error, fence=3))
    assert len(list(tmp_path.glob("fence-*.pt"))) == 3


def test_what_lies_in_quarantine_is_never_overwritten(tmp_path: Path, commits: Commits) -> None:
    aside = tmp_path / QUARANTINE
    aside.mkdir()
    (aside / "fence-3-g1.pt").write_bytes(b"from before")
    damage(tmp_path / "fence-3-g1.pt")
    restore_latest(tmp_path, commits)

    assert (aside / "fence-3-g1.pt").read_bytes() == b"from before"
    assert sorted(path.name for path in aside.iterdir()) == ["fence-3-g1.pt", "fence-3-g1.pt.1"]


def test_a_checkpoint_that_cannot_be_put_aside_stops_the_restore(tmp_path: Path, commits: Commits) -> None:
    (tmp_path / QUARANTINE).write_bytes(b"in the way")
    damage(tmp_path / "fence-3-g1.pt")
    with pytest.raises(StoreWriteFailed, check=telling("quarantine", doing="making the folder")):
        restore_latest(tmp_path, commits)
    assert (tmp_path / "fence-3-g1.pt").exists()


def test_a_sound_file_under_the_name_of_another_fence_is_refused(tmp_path: Path, commits: Commits) -> None:
    swapped = commits[-1].model_copy(
        update={"file": commits[0].file, "length": commits[0].length, "crc": commits[0].crc}
    )
    with pytest.raises(CheckpointCorrupt, check=telling("fence-1-g1.pt", "fence 3")):
        load_written(tmp_path, swapped)


def test_every_checkpoint_of_a_damaged_folder_is_judged_and_nothing_is_changed(
    tmp_path: Path, commits: Commits
) -> None:
    damage(tmp_path / "fence-1-g1.pt")
    (tmp_path / "fence-2-g1.pt").unlink()
    found = verify_all(tmp_path, commits)

    assert [(one["file"], one["fence"], one["ok"]) for one in found] == [
        ("fence-1-g1.pt", 1, False),
        ("fence-2-g1.pt", 2, False),
        ("fence-3-g1.pt", 3, True),
    ]
    assert "checksum" in found[0]["reason"]
    assert "cannot be read" in found[1]["reason"]
    assert found[2]["reason"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fence-1-g1.pt", "fence-3-g1.pt"]


@pytest.mark.parametrize("name", ["../a.pt", "/etc/passwd", "a/b.pt", "..", "", ".hidden"])
def test_a_record_names_a_file_and_never_a_path(commits: Commits, name: str) -> None:
    with pytest.raises(ValueError, match="file"):
        CheckpointWritten.model_validate(commits[0].model_dump() | {"file": name})


def test_whoever_watches_sees_a_save_get_on_and_no_sync_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    before, fdatasync = beats(), Disk.fdatasync

    def note(disk: Disk, descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fdatasync(disk, descriptor)

    monkeypatch.setattr(Disk, "fdatasync", note)
    monkeypatch.setattr(background_save, "SYNC_EVERY_BYTES", 4 * 2**20)
    blob = torch.zeros(18 * 2**20, dtype=torch.uint8)
    save(tmp_path / "fence-1-g1.pt", content() | {"nursery": {"blob": blob}}, disk=background_save.SavingDisk())
    assert beats() - before >= 18
    assert [size // 2**20 for size in synced] == [4, 8, 12, 16]
