"""The emergency word: what one process writes, every other that has it mapped sees, at once and whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.emergency.word import EmergencyWord, WordState
from esper.leyline.signals import Level

READER = """
import sys
from pathlib import Path
from esper.emergency.word import EmergencyWord
word = EmergencyWord.attach(Path(sys.argv[1]))
for line in sys.stdin:
    print(word.halted(), word.read(), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "word"


def test_a_new_word_is_all_clear(path: Path) -> None:
    with EmergencyWord.create(path) as word:
        assert word.read() == WordState(None, 0, 0)
        assert not word.halted()


@pytest.mark.parametrize("level", [None, *Level])
def test_only_halt_halts(path: Path, level: Level | None) -> None:
    with EmergencyWord.create(path) as word:
        word.set(level, 3, 7)
        assert word.read() == WordState(level, 3, 7)
        assert word.halted() is (level is Level.HALT)


def test_another_process_sees_what_is_written_while_it_looks(path: Path) -> None:
    with EmergencyWord.create(path) as word:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            for level in (None, Level.CONSERVATIVE, Level.HALT, None):
                word.set(level, 2, 5)
                reader.stdin.write("look\n")
                reader.stdin.flush()
                assert reader.stdout.readline() == f"{level is Level.HALT} {WordState(level, 2, 5)}\n"


def test_the_word_outlives_a_writer_that_was_killed(path: Path) -> None:
    writer = (
        "import os, signal, sys; from pathlib import Path\n"
        "from esper.emergency.word import EmergencyWord; from esper.leyline.signals import Level\n"
        "EmergencyWord.attach(Path(sys.argv[1])).set(Level.HALT, 1, 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with EmergencyWord.create(path) as word:
        assert subprocess.run([sys.executable, "-c", writer, str(path)], check=False).returncode == -9
        assert word.halted()


@given(st.sampled_from([None, *Level]), st.integers(0, 2**24 - 1), st.integers(0, 2**32 - 1), st.integers(1, 2**8))
def test_no_part_of_the_word_spills_into_another(
    tmp_path_factory: pytest.TempPathFactory, level: Level | None, generation: int, count: int, more: int
) -> None:
    with EmergencyWord.create(tmp_path_factory.mktemp("word") / "word") as word:
        word.set(level, generation, count)
        assert word.read() == WordState(level, generation, count)
        word.set(level, generation, count + more * 2**32)  # the count goes round
        assert word.read() == WordState(level, generation, count)


def test_a_word_has_one_creator_and_is_for_its_owner_alone(path: Path) -> None:
    with EmergencyWord.create(path):
        with pytest.raises(FileExistsError):
            EmergencyWord.create(path)
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_word_that_is_not_there_is_an_error_and_not_all_clear(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EmergencyWord.attach(path)
    assert not path.exists()


def test_a_closed_word_is_no_answer(path: Path) -> None:
    word = EmergencyWord.create(path)
    word.set(Level.HALT, 1, 1)
    word.close()
    word.close()
    with pytest.raises(ValueError, match="released"):
        word.halted()
    with EmergencyWord.attach(path) as again:
        assert again.halted()
