"""All planted bugs, by name: importing the modules registers them."""

from faults import claims, exchange, maths, measurement, runs
from faults.frame import FAULTS

__all__ = ["FAULTS", "claims", "exchange", "maths", "measurement", "runs"]
