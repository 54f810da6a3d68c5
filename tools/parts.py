"""Runs the tests of a make target in two pytest processes side by side, and prints the output and the result of each.

`.parts/TARGET/PART.xml` is pytest's report of a part. `tools/minutes.py` reads the times from it.
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
"""Exit code of pytest if it finds no test with the marks."""
PARTS_OF_RUNS = ("actors", "cli", "durable", "kasmina", "tolaria", "zoo")
"""Test folders of one part of `make test`. Their tests take as long as all other tests together."""
STARTING = ("embedded", "launch_tiny", "mark.integration")
"""Names of fixtures or marks. If a file of tests/actors contains one of these names, its tests start Ray."""
BESIDE_ACTORS = ("export", "kasmina", "tolaria", "zoo")
"""Test folders that run in the part of the actors in `make check`, so that both parts take equally long.

The drills cannot be one of them, because a process can be connected to one Ray only, nor can durable, whose tests fork
their process, which has threads of Ray.
"""


def parts(target: str, root: Path = ROOT) -> dict[str, list[str]]:
    """Return the arguments of pytest for the two processes. Together they run every test once.

    For `check`, one part has the test files that start actors and the folders `BESIDE_ACTORS`, and the other part has
    all other files. In both targets the parts take equally long.
    """
    if target == "check":
        starting = [str(path.relative_to(root)) for path in sorted((root / "tests").rglob("test_*.py")) if starts(path)]
        starting += [f"tests/{folder}" for folder in BESIDE_ACTORS if (root / "tests" / folder).is_dir()]
        return {"actors": starting, "rest": ["tests", *(f"--ignore={path}" for path in starting)]}
    here = sorted(path for path in (root / "tests").iterdir() if holds_tests(path))
    shares = {
        "runs": [path for path in here if path.name not in PARTS_OF_RUNS],
        "rooms": [path for path in here if path.name in PARTS_OF_RUNS],
    }
    return {part: [str(path.relative_to(root)) for path in paths] for part, paths in shares.items()}


def holds_tests(path: Path) -> bool:
    """Return whether a path is a test file, or a folder with test files."""
    return path.match("test_*.py") if path.is_file() else any(path.rglob("test_*.py"))


def starts(file: Path) -> bool:
    """Return whether a test in the file starts actors, with the Ray of the session or with a new Ray."""
    return file.parent.name == "actors" and any(word in file.read_text() for word in STARTING)


def start(target: str, part: str, words: list[str], options: list[str]) -> subprocess.Popen[str]:
    """Start a pytest process with its output in a pipe."""
    report = REPORTS / target / f"{part}.xml"
    report.unlink(missing_ok=True)  # a report of an earlier run must not count as a report of this run
    command = [sys.executable, "-u", "-m", "pytest", "-q", *words, *options, f"--junitxml={report}"]
    return subprocess.Popen(
        [*command, "-o", f"cache_dir=.pytest_cache/{part}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def show(part: str, process: subprocess.Popen[str]) -> None:
    """Print each line of a process after the name of its part."""
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{part:>6} | {line}", end="", flush=True)


def run(target: str, options: list[str]) -> dict[str, int]:
    """Run all parts of a target, and return the exit code of each."""
    (REPORTS / target).mkdir(parents=True, exist_ok=True)
    begun = {part: start(target, part, words, options) for part, words in parts(target, ROOT).items()}
    shown = [threading.Thread(target=show, args=item) for item in begun.items()]
    for thread in shown:
        thread.start()
    for thread in shown:
        thread.join()
    return {part: process.wait() for part, process in begun.items()}


def passed(codes: dict[str, int]) -> bool:
    """Return whether no part failed, and at least one part had a test with the marks."""
    return 0 in codes.values() and set(codes.values()) <= {0, NOTHING_SELECTED}


def main() -> None:
    """Run a target. Exit with code 1 unless all parts passed. Further arguments are passed to both pytest processes."""
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
