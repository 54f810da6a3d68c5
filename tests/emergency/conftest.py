"""Lets the tests of this folder import the helpers in kit/, which several of them and their child processes share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "kit"))  # --import-mode=importlib puts no folder of tests there
