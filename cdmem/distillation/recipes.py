"""How a student is distilled: the choices of Song et al. 2023 and Song & Dhariwal 2023, and three named presets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from cdmem.diffusion.curriculum import Curriculum
from cdmem.diffusion.losses import Distance, PseudoHuber, l1, l2
from cdmem.diffusion.noise import IntervalDistribution
from cdmem.errors import InputError

DistanceName = Literal["l1", "l2", "pseudo_huber"]
Weighting = Literal["uniform", "inverse_gap"]
SolverName = Literal["heun", "euler"]
Preset = Literal["small", "cm", "ict"]


@dataclass(frozen=True)
class Recipe:
    """One way to distil.

    Attributes:
        points: grid points N; the last value of a growing curriculum (s1).
        start_points: first value of a growing curriculum (s0).
        curriculum: ``fixed``, ``doubling`` (iCT) or ``sqrt`` (Song et al.).
        solver: the teacher's step from one level to the next.
        distance: ``l2`` and ``l1`` are means over pixels; ``pseudo_huber`` acts on the whole image vector.
        huber_c: None is 0.00054 sqrt(d).
        weighting: lambda = 1, or 1 / (sigma_hi - sigma_lo).
        intervals: which interval of the grid a sample trains.
        p_mean: of ln sigma for log-normal intervals.
        p_std: of ln sigma for log-normal intervals.
        mu: rate of the target network: 0 is the student itself without gradient; ``adaptive`` follows N.
        mu_start: mu_0 of the adaptive rate.
    """

    points: int = 18
    start_points: int = 2
    curriculum: Curriculum = "fixed"
    solver: SolverName = "heun"
    distance: DistanceName = "l2"
    huber_c: float | None = None
    weighting: Weighting = "uniform"
    intervals: IntervalDistribution = "uniform"
    p_mean: float = -1.1
    p_std: float = 2.0
    mu: float | Literal["adaptive"] = 0.0
    mu_start: float = 0.95

    def __post_init__(self) -> None:
        if self.points < 2:
            raise InputError("model.points", self.points, "a grid needs at least 2 points", "18 is usual")
        if not 1 <= self.start_points <= self.points:
            raise InputError(
                "model.start_points", self.start_points, f"must be 1..model.points={self.points}", "lower it"
            )
        if self.mu != "adaptive" and not 0 <= self.mu < 1:
            raise InputError("model.mu", self.mu, "must be in [0, 1)", "0 for no target network, 0.95 for small runs")

    def distance_function(self) -> Distance:
        """The distance as a function of two batches."""
        return {"l1": l1, "l2": l2, "pseudo_huber": PseudoHuber(self.huber_c)}[self.distance]


PRESETS: dict[str, Recipe] = {
    # Stable at small batch (trajectory rmse over seeds: benchmarks/student_recipes.py).
    "small": Recipe(distance="pseudo_huber", intervals="lognormal", mu=0.95),
    # CIFAR-10 recipe of Song et al. 2023, table 3, with l2 instead of LPIPS.
    "cm": Recipe(),
    # Song & Dhariwal 2023, table 1: N from 10 to 1280 intervals, no target network.
    "ict": Recipe(
        points=1280,
        start_points=10,
        curriculum="doubling",
        distance="pseudo_huber",
        weighting="inverse_gap",
        intervals="lognormal",
    ),
}


def make_recipe(preset: str, **choices: Any) -> Recipe:
    """The preset with every choice that is not None put in its place."""
    known = {f.name for f in fields(Recipe)}
    unknown = set(choices) - known
    if unknown:
        raise ValueError(f"unknown choices {sorted(unknown)}")
    return replace(PRESETS[preset], **{k: v for k, v in choices.items() if v is not None})
