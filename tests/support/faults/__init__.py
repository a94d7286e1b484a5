"""All planted bugs, by name: importing the modules registers them."""

from support.faults import claims, exchange, maths, measurement, runs
from support.faults.frame import FAULTS

__all__ = ["FAULTS", "claims", "exchange", "maths", "measurement", "runs"]
