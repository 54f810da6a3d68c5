"""Named fault points, at which a failure can be injected on purpose. A point without an armed fault takes almost no
time.

Only the run's config (`[[faults]]`) arms a point; the journal records the config. A fault fires when a process with its
role passes its point for the n-th time. It fires again at the next passages, until it has fired `times` times in the
whole run. Each firing is recorded in a file of the run before it happens, so that a restarted process does not fire it
again.
"""

from esper.faults.arming import arm, armed, fired, message, point
from esper.faults.fault_checks import check
from esper.faults.fault_points import POINTS, possible
from esper.faults.fault_spec import Fault, FaultSpec
from esper.faults.firings import Firing, Firings, missed

__all__ = [
    "POINTS",
    "Fault",
    "FaultSpec",
    "Firing",
    "Firings",
    "arm",
    "armed",
    "check",
    "fired",
    "message",
    "missed",
    "point",
    "possible",
]
