"""All planted bugs, by name: importing the two modules registers them."""

from faults import maths, runs
from faults.frame import FAULTS

__all__ = ["FAULTS", "maths", "runs"]
