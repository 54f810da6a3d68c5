"""Settings of the tiny task with which a run adopts the fork of a winner, and then that of its replica."""

from __future__ import annotations

from typing import Any

from esper.kasmina.settings import LEAN

SHORT: dict[str, Any] = {"growth__entry": "adopt", "growth__replicas": 2}
"""A tournament of one round, with one module per seed and without placebos."""
WHOLE: dict[str, Any] = SHORT | {
    "growth__rungs": (10, 20, 40),
    "growth__copies": 2,
    "growth__placebos": LEAN["placebos"],
    "growth__finish": "better",
    **{f"growth__{name}_budget": 60.0 for name in ("parameter", "cost", "memory")},
}
"""A tournament of several rounds, with copies and placebos, as in the default preset."""
