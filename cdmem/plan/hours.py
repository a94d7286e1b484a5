"""From FLOPs to hours at a *stated* rate: nothing here is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdmem.plan.build import Machine
from cdmem.plan.work import Work

# Assumed, TFLOP/s sustained by one device on U-Nets of some ten million parameters: data-centre GPUs state about 300 to
# 1000 dense in 16 bit and 60 to 500 in float32 with TF32 convolutions; small images and small layers reach a fraction.
LOW, FULL = 100.0, 30.0
CPU = 0.03  # one core on the tiny layers of the quick start
SECONDS = 3600.0


@dataclass(frozen=True)
class Rates:
    """TFLOP/s that one device sustains.

    Attributes:
        low: with the network in 16 bit.
        full: in float32.
        given: stated by the user, not assumed here.
    """

    low: float
    full: float
    given: bool

    def words(self, machine: Machine) -> str:
        """The rates that apply, and that they are not measured."""
        rate = f"{self.full:g} TFLOP/s"
        if machine.low and self.low != self.full:
            rate = f"{self.low:g} TFLOP/s in 16 bit, {self.full:g} in float32"
        return f"at {rate} sustained per device, {'stated' if self.given else 'assumed'}, not measured"


def rates(machine: Machine, tflops: float | None) -> Rates:
    """The user's rate, or the assumed ones for this kind of machine."""
    if tflops is not None:
        return Rates(tflops, tflops, True)
    return Rates(CPU, CPU, False) if machine.accelerator == "cpu" else Rates(LOW, FULL, False)


def hours(work: Sequence[Work], machine: Machine, at: Rates) -> float:
    """Hours on all devices at once; what every device does itself is not shared."""
    seconds = 0.0
    for w in work:
        share = 1 if w.everywhere else machine.devices
        seconds += w.flops / share / ((at.low if w.low else at.full) * 1e12)
    return seconds / SECONDS
