"""``python -m cdmem theory decomposition``: target and noise within the paths of an exact or a trained teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.data.sources import load_source
from cdmem.diffusion.analytic import EmpiricalDenoiser
from cdmem.diffusion.noise import sampler_sigmas
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.metrics.statistics import median
from cdmem.theory.decomposition.page import lead, sections
from cdmem.theory.decomposition.parts import Split, correlate, decompose, diversity, split
from cdmem.theory.decomposition.paths import exact_guided, exact_schedule, first_overestimate, noise_of, walk
from cdmem.theory.decomposition.trained import guided_teacher
from cdmem.theory.experiment import Outcome, Progress
from cdmem.theory.measures import COPY_RATIO, mean_interval, nearest_two
from cdmem.theory.settings import check_settings, each, number, seed
from cdmem.theory.trained_pair import Pair, load_pair, load_teacher

GUIDED_SEEDS = 32


@dataclass(frozen=True)
class Settings:
    """Settings of decomposition.

    Attributes:
        run: folder of a study whose teacher is looked at.
        student: name of the run's student; none takes the one called student, or the first, if there is one.
        teacher: instead of a run any teacher alone: its checkpoint, stage folder or exported folder. Without run and
            teacher the exact denoiser of n digits is taken.
        training_set: of that teacher, as for an audit; none takes the record beside it.
        n: training images of the exact teacher.
        duplicated: copies of the first image of the exact teacher's training set.
        samples: paths.
        steps: Euler (DDIM) steps of each.
        scales: guidance scales g, with exact denoisers of the same images, and with the teacher's own if it was
            trained with label dropout.
        seed: of everything.
    """

    run: str | None = None
    student: str | None = None
    teacher: str | None = None
    training_set: str | None = None
    n: int = number(32, 3, 1797)
    duplicated: int = number(4, 1, 10**6)
    samples: int = number(256, 8, 100_000)
    steps: int = number(50, 2, 2000)
    scales: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0, 5.0, 7.5], metadata=each(0, open=True))
    seed: int = seed()


def check(s: Settings) -> None:
    """Raises InputError for settings that cannot be run."""
    check_settings(s)
    if s.run is None and s.student is not None:
        raise InputError("student", s.student, "has no run", "give --run too")
    if s.run is not None and s.teacher is not None:
        raise InputError("teacher", s.teacher, "stands beside --run", "give one of them")
    if s.teacher is None and s.training_set is not None:
        raise InputError("training_set", s.training_set, "has no teacher", "give --teacher too")


def load(s: Settings) -> tuple[Pair, str]:
    """The teacher whose paths are taken, and its name; the exact denoiser of digits has neither student nor classes."""
    if s.run is not None:
        return load_pair(s.run, s.student, alone=True)[0], f"teacher of {s.run}"
    if s.teacher is not None:
        return load_teacher(s.teacher, s.training_set), f"teacher {s.teacher}"
    pool = load_source("digits")
    rows = torch.randperm(len(pool.images), generator=torch.Generator().manual_seed(s.seed))[: s.n]
    images, weights = to_float(pool.images[rows]), torch.ones(s.n)
    weights[0] = s.duplicated
    denoiser = EmpiricalDenoiser(images, weights)
    return Pair(denoiser, None, images, weights, None, 0.002, 80.0), f"exact denoiser of {s.n} digits"


def _mean(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return asdict(mean_interval(values))


def _ends(points: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances and indices (B, 2) of the two nearest of T, and whether each point (B, size) is a copy."""
    distances, nearest = nearest_two(points, images)
    return distances, nearest, distances[:, 0] < COPY_RATIO * distances[:, 1]


def paths(s: Settings, teacher: Pair, sigmas: Tensor) -> dict[str, Any]:
    """Unguided paths: each for the image that it ends nearest to, and for two controls."""
    noise = noise_of(s.seed, s.samples, teacher.images)
    x = noise.next().double() * sigmas[0]
    path = walk(teacher.teacher, x, sigmas, noise.labels(teacher.num_classes))
    images = teacher.images.flatten(1).double()
    distances, nearest, copied = _ends(path.states[-1], images)
    severity = -(distances[:, 0].clamp_min(1e-12) / distances[:, 1].clamp_min(1e-12)).log().numpy()
    other = torch.randint(1, len(images), (s.samples,), generator=torch.Generator().manual_seed(s.seed))
    targets = {"nearest": nearest[:, 0], "second": nearest[:, 1], "random": (nearest[:, 0] + other) % len(images)}
    results: dict[str, Any] = {"f_mem": float(copied.double().mean()), "samples": s.samples}
    parts = {name: decompose(path, images, teacher.multiplicities, index) for name, index in targets.items()}
    for name, of in parts.items():
        keys = ("w_0", "w_T", "residual", "a", "across", "posterior")
        entry: dict[str, Any] = {"along": {key: getattr(of, key).mean(1).tolist() for key in keys}}
        for key in ("D_1", "D_2"):
            values = getattr(of, key).numpy()
            entry[key] = _mean(values)
            for kind in ("pearson", "spearman"):
                entry[f"{key}_{kind}"] = asdict(correlate(kind, values, severity, s.seed))
        results[name] = entry
    when = parts["nearest"].commitment
    groups = {"copies": when[copied], "others": when[~copied], "all": when}
    results["commitment"] = {name: median(of) if len(of) else None for name, of in groups.items()}
    ratio, count = diversity(path, nearest[:, 0])
    results["diversity"] = {"ratio": ratio.tolist(), "groups": count}
    w_0, w_T = exact_schedule(sigmas[:-1])
    results["schedule"] = {"sigma": sigmas[:-1].tolist(), "w_0": w_0.tolist(), "w_T": w_T.tolist()}
    return results


def guided(s: Settings, teacher: Pair, sigmas: Tensor) -> list[dict[str, Any]]:
    """Guidance towards a class of one image, the target known beforehand, with the exact denoisers of T."""
    images, weights, flat = teacher.images, teacher.multiplicities, teacher.images.flatten(1).double()
    target = int(weights.argmax())  # a duplicated image, if there is one
    noise = noise_of(0, GUIDED_SEEDS, images).next().double() * sigmas[0]
    rows = []
    for g in s.scales:
        path = walk(exact_guided(images, weights, torch.tensor([target]), g), noise, sigmas)
        parts = decompose(path, flat, weights, torch.full((GUIDED_SEEDS,), target))
        _, nearest, copied = _ends(path.states[-1], flat)
        hit = (nearest[:, 0] == target) & copied
        first = first_overestimate(images, weights, target, g, noise, float(sigmas[0]))
        rows.append(
            {
                "g": g,
                "a_first": _mean(parts.a[0].tolist()),
                "a_against_unconditional": float(first.mean()),
                "w_0_most": float(parts.w_0.mean(1).max()),
                "D_1": _mean(parts.D_1.tolist()),
                "D_2": _mean(parts.D_2.tolist()),
                "hits": float(hit.double().mean()),
                "w_0": parts.w_0.mean(1).tolist(),
            }
        )
    return rows


def students(s: Settings, pair: Pair) -> dict[str, Any] | None:
    """The student's outputs beside the teacher's endpoints of the same noise, for the teacher's nearest image."""
    if pair.student is None:
        return None
    noise = noise_of(s.seed, s.samples, pair.images)
    x = noise.next() * pair.sigma_max
    labels = noise.labels(pair.num_classes)
    endpoint = pair.endpoint(x, pair.sigma_max, labels).flatten(1).double()
    images = pair.images.flatten(1).double()
    _, nearest, copied = _ends(endpoint, images)
    mean = (pair.multiplicities.double()[:, None] * images).sum(0) / pair.multiplicities.sum()
    goal = images[nearest[:, 0]]
    own = split(endpoint, endpoint, goal, mean)
    rows: list[dict[str, Any]] = []
    output = pair.jump(x, pair.sigma_max, labels)
    for step, sigma in enumerate([pair.sigma_max, *pair.mid_sigmas], 1):
        if step > 1:
            again = output + (sigma**2 - pair.sigma_min**2) ** 0.5 * noise.next()
            output = pair.jump(again, sigma, labels)
        made = split(output.flatten(1), endpoint, goal, mean)
        rows.append({"steps": step, "sigma": sigma, **_against(made, own, copied)})
    teacher_row = {"a": _mean(own.a.tolist()), "across": _mean(own.across.tolist())}
    return {"teacher": teacher_row, "students": rows, "copies": int(copied.sum()), "samples": s.samples}


def _against(student: Split, teacher: Split, copied: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {key: _mean(getattr(student, key).tolist()) for key in ("a", "across", "cosine")}
    for name, rows in (("all", torch.ones_like(copied)), ("copies", copied)):
        if int(rows.sum()) > 1:
            for key in ("a", "across"):
                change = (getattr(student, key) - getattr(teacher, key))[rows]
                entry[f"{key}_change_{name}"] = _mean(change.tolist())
    return entry


def run(settings: Settings, progress: Progress) -> Outcome:
    """Paths and their parts, guidance, students.

    Raises:
        InputError: settings that cannot be run, or a run that cannot be read.
    """
    check(settings)
    pair, name = load(settings)
    sigmas = sampler_sigmas(settings.steps, pair.sigma_min, pair.sigma_max)
    progress(f"paths of {name}")
    results: dict[str, Any] = {"status": "reconstruction", "teacher": name, "n": len(pair.images)}
    results["paths"] = paths(settings, pair, sigmas)
    progress("guidance")
    results["guidance"] = guided(settings, pair, sigmas)
    results["guided_teacher"] = None
    if pair.null_label is not None:
        progress("guidance of the trained teacher")
        results["guided_teacher"] = guided_teacher(pair, sigmas, settings.scales, settings.samples, settings.seed)
    progress("students")
    results["student"] = students(settings, pair)
    title = "Target and noise within sampling paths"
    return Outcome(lead(results), results, sections(results), title)
