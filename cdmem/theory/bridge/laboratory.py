"""``python -m cdmem theory bridge RUN``: do the random features' directions explain a trained pair?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.errors import InputError
from cdmem.theory.bridge.decision import RULE, cliffs_delta, difference, verdict
from cdmem.theory.bridge.directions import Directions, Response, compare, directions, lanczos, last_features
from cdmem.theory.bridge.page import lead, sections
from cdmem.theory.experiment import Outcome, Progress
from cdmem.theory.measures import COPY_RATIO, Interval, mean_interval, nearest_two
from cdmem.theory.settings import check_settings, each, number, seed
from cdmem.theory.trained_pair import Pair, load_pair

AT_ONCE = 64  # points of a Jacobian at a time


@dataclass(frozen=True)
class Settings:
    """Settings of bridge.

    Attributes:
        run: folder of a finished study.
        student: its student's name; none takes the one called student, or the first.
        sigmas: noise levels, in units of pixels from -1 to 1.
        points: training images, at most; all of them if there are fewer.
        noises: noise draws per image in one Gram matrix.
        draws: independent repetitions of the whole comparison.
        share: of the Gram matrix's trace that counts as stable.
        samples: seeds whose endpoints are compared.
        leading: eigenpairs of the Jacobian that count as its leading directions.
        jacobian_sigma: noise level of the Jacobian.
        seed: of everything.
    """

    run: str = ""
    student: str | None = None
    sigmas: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0, 2.0], metadata=each(0, open=True))
    points: int = number(64, 4)
    noises: int = number(4, 1)
    draws: int = number(8, 2)
    share: float = number(0.9, 0, 1, open=True)
    samples: int = number(192, 4)
    leading: int = number(6, 1)
    jacobian_sigma: float = number(0.5, 0, open=True)
    seed: int = seed()


def check_levels(s: Settings, pair: Pair) -> None:
    """Raises InputError for levels outside the pair's own."""
    for key, values in (("sigmas", s.sigmas), ("jacobian_sigma", [s.jacobian_sigma])):
        for value in values:
            if not pair.sigma_min < value <= pair.sigma_max:
                span = f"above {pair.sigma_min:g} and up to {pair.sigma_max:g}"
                raise InputError(key, value, "is outside the pair's noise levels", f"give levels {span}")
    if s.leading >= pair.images[0].numel():
        raise InputError("leading", s.leading, "is not below the number of pixels", "give fewer")


def one_draw(pair: Pair, s: Settings, sigma: float, generator: torch.Generator) -> tuple[Directions, Response]:
    """One Gram matrix and what teacher and student do along its directions."""
    rows = torch.randperm(len(pair.images), generator=generator)[: s.points].repeat(s.noises)
    labels = None if pair.labels is None else pair.labels[rows]
    x = pair.images[rows] + sigma * torch.randn(pair.images[rows].shape, generator=generator)
    along = directions(last_features(pair.teacher, x, sigma, labels), s.share)
    return along, compare(along, pair.endpoint(x, sigma, labels), pair.jump(x, sigma, labels), generator)


def ratios(samples: Tensor, images: Tensor) -> Tensor:
    """d1 / d2 of samples against T (distinct images), unsquared, float64."""
    distances, _ = nearest_two(samples.flatten(1), images.flatten(1))
    return distances[:, 0] / distances[:, 1].clamp_min(1e-300)


def endpoints(pair: Pair, s: Settings, generator: torch.Generator) -> dict[str, Any]:
    """Share of each seed's change that lies in the Jacobian's leading directions, memorised seeds against the
    others."""
    x, labels = pair.start(range(s.samples))
    teacher = pair.endpoint(x, pair.sigma_max, labels)
    student = pair.jump(x, pair.sigma_max, labels)
    copied = ratios(teacher, pair.images) < COPY_RATIO
    change = (student - teacher).flatten(1).double()
    share, other, skews, spectra = [], [], [], []
    shuffled = change[torch.randperm(len(change), generator=generator)]
    for k in range(0, len(x), AT_ONCE):
        part = slice(k, k + AT_ONCE)
        noisy = teacher[part] + s.jacobian_sigma * torch.randn(teacher[part].shape, generator=generator)
        level, own = torch.full((len(noisy),), s.jacobian_sigma), None if labels is None else labels[part]
        values, vectors, skew = lanczos(lambda y, a=level, b=own: pair.teacher(y, a, b), noisy, s.leading, generator)
        vectors = vectors.double()
        for target, of in ((share, change[part]), (other, shuffled[part])):
            inside = torch.einsum("bcs,bs->bc", vectors, of)
            target += ((inside**2).sum(1) / (of**2).sum(1).clamp_min(1e-300)).tolist()
        skews += skew.tolist()
        spectra.append(values)
    yes, no = ([v for v, copy in zip(share, copied.tolist()) if copy == kind] for kind in (True, False))
    return {
        "sigma": s.jacobian_sigma,
        "leading": s.leading,
        "samples": s.samples,
        "memorised": len(yes),
        "share_memorised": float(np.mean(yes)) if yes else None,
        "share_others": float(np.mean(no)) if no else None,
        "difference": asdict(difference(yes, no)) if yes and no else None,
        "cliffs_delta": cliffs_delta(yes, no),
        "share_null": float(np.mean(other)),
        "against_null": asdict(difference(share, other)),
        "skew": float(np.median(skews)),
        "eigenvalues": torch.cat(spectra).double().mean(0).tolist(),
        "student_memorised": float((ratios(student, pair.images) < COPY_RATIO).double().mean()),
    }


def level_results(s: Settings, draws: Sequence[Response], sigma: float, stable: Sequence[int]) -> dict[str, Any]:
    """One noise level, over its draws."""
    keys = ("gain_stable", "gain_unstable", "share_change", "share_teacher", "share_null")
    means = {key: asdict(mean_interval([getattr(d, key) for d in draws])) for key in keys}
    means["contrast"] = asdict(mean_interval([d.contrast for d in draws], len(s.sigmas)))
    return {"sigma": sigma, "draws": len(draws), "stable": float(np.mean(stable)), **means}


def run(settings: Settings, progress: Progress) -> Outcome:
    """Compare, decide, show.

    Raises:
        InputError: settings that cannot be run, or a run without a pair.
    """
    check_settings(settings)
    pair, name = load_pair(settings.run, settings.student)
    check_levels(settings, pair)
    generator = torch.Generator().manual_seed(settings.seed)
    levels, spectra = [], []
    for sigma in settings.sigmas:
        progress(f"sigma = {sigma:g}")
        draws = [one_draw(pair, settings, sigma, generator) for _ in progress.bar(range(settings.draws), "draws")]
        levels.append(level_results(settings, [r for _, r in draws], sigma, [d.stable for d, _ in draws]))
        first, response = draws[0]
        spectra.append((sigma, first.eigenvalues.tolist(), response.gains.tolist()))
    progress("endpoints and Jacobians")
    ends = endpoints(pair, settings, generator)
    decided = verdict([Interval(**level["contrast"]) for level in levels])
    results = {
        "status": "reconstruction",
        "run": settings.run,
        "student": name,
        "n": len(pair.images),
        "rule": RULE,
        "verdict": decided,
        "levels": levels,
        "endpoints": ends,
    }
    title = "Does the random features' mechanism show in a trained network?"
    return Outcome(lead(results), results, sections(results, spectra), title)
