"""Breaks a run on purpose at a named moment, and checks everything that must follow. It mocks nothing and picks no
random victim.
"""

from drills.drill import Drill
from drills.drill_context import DrillContext

__all__ = ["Drill", "DrillContext"]
