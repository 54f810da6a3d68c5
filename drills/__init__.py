"""Breaks a run on purpose at a named moment, and checks everything that must follow. It mocks nothing and picks no
random victim.
"""

import drills.breaking as breaking
import drills.expect as expect
from drills.drill import Drill
from drills.drill_context import DrillContext

__all__ = ["Drill", "DrillContext", "breaking", "expect"]
