"""Is a student less memorised, or merely blurrier? The comparison at equal nearest-image noise.

The ratio test stops calling a copy a copy once its error passes about spacing / sqrt(8 D) per pixel, although the
copied image is still plain to see. So the teacher's samples are made as inexact as the student's *copies* are, and
compared again:

1. A threshold at which copies are still recognised: the 1 % quantile of held-out d1/d2 (or 1/2 without enough of H).
2. Seeds on which both models are recognised with the same image: pure copies of one image by both.
3. Gaussian noise on the teacher's samples, one level for all, so that over these seeds its median distance to the
   nearest image is the student's (by bisection, after clamping and rounding, which swallow noise at black and white).
   Both medians are over copies that are still recognised with their image.
4. f_mem of the noisy teacher against the student's, paired by seed.

A student that only blurs has lost nothing in step 4; one whose seeds leave the copies has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cdmem.diffusion.sampling import NoiseSource
from cdmem.images import HALF_RANGE, to_float, to_uint8
from cdmem.metrics.base import SEEDS
from cdmem.metrics.comparison.paired import difference
from cdmem.metrics.memorization.extraction import conformal_threshold
from cdmem.metrics.memorization.ratio import memorized
from cdmem.metrics.neighbors.index import GroupIndex

MAX_NOISE = 128.0
FALSE_POSITIVES = 0.01
WITHOUT_CONTROL = 1 / 2
MIN_SEEDS = 20
MOST_COPIES = 512  # are enough for a median


def recognition_threshold(control: Tensor | None, threshold: float) -> float:
    """Largest d1/d2 at which at most 1 % of held-out images would count, never stricter than ``threshold``.

    Args:
        control: d1/d2 of held-out images (h,), or None.
    """
    loose = None if control is None else conformal_threshold(control, FALSE_POSITIVES)
    return max(WITHOUT_CONTROL if loose is None else loose, threshold)


def add_noise(images: Tensor, noise: Tensor, level: float) -> Tensor:
    """uint8 images (B, C, H, W) plus ``level`` grey levels times unit ``noise``, clamped and rounded to uint8."""
    return to_uint8(to_float(images) + level / HALF_RANGE * noise)


def _copied_images(copies: Tensor, search: GroupIndex) -> Tensor:
    """The training image nearest to each copy, mirrored where its mirror image is what was copied."""
    images = search.training_images[search.index.query(copies, 1).nearest.cpu()]
    as_is, mirrored = ((copies.double() - x.double()).square().flatten(1).sum(1) for x in (images, images.flip(-1)))
    swap = (mirrored < as_is) if search.flip else torch.zeros_like(as_is, dtype=torch.bool)
    return torch.where(swap[:, None, None, None], images.flip(-1), images)


def _median_squared(images: Tensor, targets: Tensor) -> float:
    return float((images.double() - targets.double()).square().flatten(1).sum(1).median())


def copy_noise(teacher: Tensor, noise: Tensor, targets: Tensor, student_squared: Tensor) -> float:
    """Grey levels of noise that bring the teacher's copies as far from their images as the student's are.

    Args:
        teacher: the teacher's copies, uint8 (b, C, H, W).
        noise: unit Gaussian (b, C, H, W).
        targets: the training images that they copy, uint8 (b, C, H, W).
        student_squared: squared distances of the student's copies to the same images, (b,).

    Returns:
        0 where the student's copies are the closer ones.
    """
    wanted = float(student_squared.double().median())
    low, high = 0.0, MAX_NOISE
    if _median_squared(teacher, targets) >= wanted:
        return 0.0
    for _ in range(16):
        middle = (low + high) / 2
        if _median_squared(add_noise(teacher, noise, middle), targets) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def selected_noise(
    images: Tensor,
    noise: Tensor,
    targets: Tensor,
    groups: Tensor,
    search: GroupIndex,
    loose: float,
    wanted: float,
    start: float,
) -> float:
    """Grey levels of noise at which the teacher's copies *that stay recognised* are as far off as the student's are.

    The student's copies are those that were recognised; its noisiest ones were not. Without the same choice among the
    noisy teacher's, the level comes out too small, and a merely noisy student would look forgetful.

    Args:
        images: the teacher's recognised copies, uint8 (b, C, H, W).
        noise: unit Gaussian (b, C, H, W).
        targets: the training images that they copy, uint8 (b, C, H, W).
        groups: of these images, int64 (b,).
        search: over T.
        loose: recognition threshold.
        wanted: median squared distance of the student's recognised copies.
        start: level without the choice, a lower bound.
    """
    low, high = start, min(4 * start + 1.0, MAX_NOISE)
    for _ in range(10):
        middle = (low + high) / 2
        noisy = add_noise(images, noise, middle)
        neighbors = search.index.query(noisy, 2)
        kept = memorized(neighbors.squared1.cpu(), neighbors.squared2.cpu(), loose) & (neighbors.group1.cpu() == groups)
        if bool(kept.any()) and _median_squared(noisy[kept], targets[kept]) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def fidelity_matched(
    teacher_images: Tensor,
    teacher: dict[str, Tensor],
    student: dict[str, Tensor],
    search: GroupIndex,
    threshold: float,
    control: Tensor | None,
) -> dict[str, Any]:
    """The comparison of the module's docstring.

    Args:
        teacher_images: uint8 (m, C, H, W), in the order of the rows.
        teacher: rows with ``seeds``, ``squared`` and ``groups``.
        student: rows of the same seeds.
        search: over T.
        threshold: memorised means d1/d2 below it.
        control: d1/d2 of held-out images, or None.

    Returns:
        ``recognised_at`` (threshold of step 1), ``recognised`` (difference of f_mem there), ``noise`` (grey levels,
        rms per pixel; None with fewer than 20 common copies), ``common`` (seeds of step 2), ``teacher_f_mem`` of the
        noisy teacher and ``difference`` (student minus noisy teacher).
    """
    loose = recognition_threshold(control, threshold)
    seen_t, seen_s = (memorized(r["squared"][:, 0], r["squared"][:, 1], loose) for r in (teacher, student))
    common = seen_t & seen_s & (teacher["groups"][:, 0] == student["groups"][:, 0])
    record: dict[str, Any] = {"recognised_at": loose, "recognised": difference(seen_t, seen_s)}
    record |= {"common": int(common.sum()), "noise": None, "teacher_f_mem": None, "difference": None}
    if record["common"] < MIN_SEEDS:
        return record
    noise = NoiseSource(teacher[SEEDS].tolist(), tuple(teacher_images.shape[1:]), stream="equal_noise").next()
    targets = _copied_images(teacher_images[common], search)
    level = copy_noise(teacher_images[common], noise[common], targets, student["squared"][common, 0])
    if level > 0:
        chosen = seen_t.nonzero().flatten()[:MOST_COPIES]
        level = selected_noise(
            teacher_images[chosen],
            noise[chosen],
            _copied_images(teacher_images[chosen], search),
            teacher["groups"][chosen, 0],
            search,
            loose,
            float(student["squared"][common, 0].double().median()),
            level,
        )
    noisy = search.index.query(add_noise(teacher_images, noise, level), 2)
    hit_t = memorized(noisy.squared1.cpu(), noisy.squared2.cpu(), threshold)
    hit_s = memorized(student["squared"][:, 0], student["squared"][:, 1], threshold)
    record |= {"noise": level, "teacher_f_mem": float(hit_t.double().mean()), "difference": difference(hit_t, hit_s)}
    return record
