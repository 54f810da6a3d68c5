"""Runs the tests of a make target in two pytest processes side by side, and prints the output and the result of each.

`.parts/TARGET/PART.xml` is pytest's own report of each part, from which `tools/minutes.py` takes the minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / ".parts"
NOTHING_SELECTED = 5
"""Exit code of a pytest that found no test with the marks."""
PARTS_OF_RUNS = ("actors", "cli", "durable", "kasmina", "tolaria", "zoo")
"""Test folders of the first part of `make test`. They take as long as all other tests together."""
STARTING = ("embedded", "launch_tiny", "mark.integration")
"""Names in a file of tests/actors that show that it starts Ray: a fixture, or the mark."""


def parts(target: str, root: Path = ROOT) -> dict[str, list[str]]:
    """Return the arguments of pytest for each of the two processes. Together they run every test once.

    The parts of `check` are files that start actors and files that do not; the parts of `test` take equally long.
    """
    if target == "check":
        starting = [str(path.relative_to(root)) for path in sorted((root / "tests").rglob("test_*.py")) if starts(path)]
        return {"actors": starting, "rest": ["tests", *(f"--ignore={path}" for path in starting)]}
    here = sorted(path for path in (root / "tests").iterdir() if holds_tests(path))
    shares = {
        "runs": [path for path in here if path.name not in PARTS_OF_RUNS],
        "rooms": [path for path in here if path.name in PARTS_OF_RUNS],
    }
    return {part: [str(path.relative_to(root)) for path in paths] for part, paths in shares.items()}


def holds_tests(path: Path) -> bool:
    """It is a file of tests or a folder that has some."""
    return path.match("test_*.py") if path.is_file() else any(path.rglob("test_*.py"))


def starts(file: Path) -> bool:
    """A test in the file starts actors: it asks for the Ray of the session, or starts one itself."""
    return file.parent.name == "actors" and any(word in file.read_text() for word in STARTING)


def start(target: str, part: str, words: list[str], options: list[str]) -> subprocess.Popen[str]:
    """Begin a pytest, whose output comes by a pipe."""
    report = REPORTS / target / f"{part}.xml"
    report.unlink(missing_ok=True)  # a report of an earlier run must not count as this run's
    command = [sys.executable, "-u", "-m", "pytest", "-q", *words, *options, f"--junitxml={report}"]
    return subprocess.Popen(
        [*command, "-o", f"cache_dir=.pytest_cache/{part}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def show(part: str, process: subprocess.Popen[str]) -> None:
    """Print each line that a process writes, behind the name of its part."""
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{part:>6} | {line}", end="", flush=True)


def run(target: str, options: list[str]) -> dict[str, int]:
    """Run all parts of a target to their ends. Returns the exit code of each."""
    (REPORTS / target).mkdir(parents=True, exist_ok=True)
    begun = {part: start(target, part, words, options) for part, words in parts(target, ROOT).items()}
    shown = [threading.Thread(target=show, args=item) for item in begun.items()]
    for thread in shown:
        thread.start()
    for thread in shown:
        thread.join()
    return {part: process.wait() for part, process in begun.items()}


def passed(codes: dict[str, int]) -> bool:
    """Whether no part failed and at least one had a test with the marks."""
    return 0 in codes.values() and set(codes.values()) <= {0, NOTHING_SELECTED}


def main() -> None:
    """Exits with 1 unless all parts passed. All further words go to both pytest processes."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("target", choices=["test", "check"])
    known, options = reader.parse_known_args()
    began_s = time.monotonic()
    codes = run(known.target, options)
    told = ", ".join(
        f"{part} {'passed' if passed({part: code}) else f'ended with {code}'}" for part, code in codes.items()
    )
    print(f"{known.target}: {told}; {(time.monotonic() - began_s) / 60:.1f} minutes")
    sys.exit(0 if passed(codes) else 1)


if __name__ == "__main__":
    main()
