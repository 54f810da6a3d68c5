"""The spans in a telemetry folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def written(folder: Path, pattern: str = "spans-*.jsonl") -> Iterator[dict[str, Any]]:
    """The span of each line: also of the lines from a span's start, whose end time is "0"."""
    for file in sorted(folder.glob(pattern)):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]


def ended(folder: Path, pattern: str = "spans-*.jsonl") -> list[dict[str, Any]]:
    return [span for span in written(folder, pattern) if span["endTimeUnixNano"] != "0"]


def never_ended(folder: Path, pattern: str = "spans-*.jsonl") -> list[dict[str, Any]]:
    over = {span["spanId"] for span in ended(folder, pattern)}
    return [span for span in written(folder, pattern) if span["spanId"] not in over]
