r"""Is one of two models only sharper? Their copies at equal noise.

d1/d2 < 1/3 stops counting a copy once its error passes about spacing / sqrt(8 D) per pixel, although the image is plain
to see. So a model must not count as forgetful for being blurrier, nor as a stronger copier for being sharper:

1. *Recognised* means d1/d2 below what 1 % of held-out images reach (1/2 with fewer than 99 of them).
2. The sharper side, which has the higher f_mem, gets Gaussian noise: a level for each of its recognised copies, so that
   their distances to the copied images are distributed like the other side's (sorted against sorted, not only the
   medians: half of the copies may be damaged and half not).
3. f_mem of the noised side against the other side.

A side that is only sharper has lost its lead in step 3.
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

FALSE_POSITIVES = 0.01
WITHOUT_CONTROL = 1 / 2
MIN_SEEDS = 20
ROUNDS, MOST = 8, 2.0  # of the search for the levels, and the largest factor of one of them


def recognition_threshold(control: Tensor | None, threshold: float) -> float:
    """Largest d1/d2 at which at most 1 % of held-out images would count, never stricter than ``threshold``.

    Args:
        control: d1/d2 of held-out images (h,), or None.
    """
    loose = None if control is None else conformal_threshold(control, FALSE_POSITIVES)
    return max(WITHOUT_CONTROL if loose is None else loose, threshold)


def add_noise(images: Tensor, noise: Tensor, levels: Tensor | float) -> Tensor:
    """uint8 images (B, C, H, W) plus ``levels`` grey levels, (B,) or one, times unit ``noise``; uint8 again."""
    levels = torch.as_tensor(levels, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return to_uint8(to_float(images) + levels / HALF_RANGE * noise)


def _quantiles(values: Tensor, count: int) -> Tensor:
    """``count`` evenly spaced quantiles of values (n,), ascending, float64."""
    return torch.quantile(values.double(), (torch.arange(count, dtype=torch.float64) + 0.5) / count)


def matching_levels(
    images: Tensor, noise: Tensor, groups: Tensor, search: GroupIndex, loose: float, wanted: Tensor
) -> Tensor:
    """Grey levels of noise for each copy after which the distances of those still recognised are distributed as wanted.

    The other side's distances are those of copies that were recognised; its noisiest ones were not. So the levels are
    raised until the same choice among the noised copies gives the same distribution.

    Args:
        images: recognised copies, uint8 (b, C, H, W).
        noise: unit Gaussian (b, C, H, W).
        groups: that they copy, int64 (b,).
        search: over T.
        loose: recognition threshold.
        wanted: squared distances of the other side's recognised copies, (k,).

    Returns:
        levels, float64 (b,), of an image's own rank among ``images`` by distance.
    """
    count, size = len(images), images[0].numel()
    own = search.index.query(images, 1).squared[:, 0].cpu().double()
    order = own.argsort(stable=True)
    squared = torch.empty(count, dtype=torch.float64)
    squared[order] = (_quantiles(wanted, count) - own[order]).clamp_min(0) / size
    for _ in range(ROUNDS):
        neighbors = search.index.query(add_noise(images, noise, squared.sqrt()), 2)
        d1, d2 = neighbors.squared1.cpu().double(), neighbors.squared2.cpu()
        kept = memorized(d1, d2, loose) & (neighbors.group1.cpu() == groups)
        if not bool(kept.any()):
            break
        # Each kept copy against the wanted distance of its rank. By a factor: black and white swallow a share of noise.
        ranks = torch.where(kept, d1, torch.inf).argsort(stable=True)[: int(kept.sum())]
        added, missing = (d1 - own)[ranks], _quantiles(wanted, len(ranks)) - own[ranks]
        factor = torch.ones(count, dtype=torch.float64)
        factor[ranks] = (missing.clamp_min(0) / added.clamp_min(1)).clamp(1 / MOST, MOST)
        # Those that are past recognition were the noisiest: they go with the noisiest tenth of the others.
        factor[~kept] = factor[ranks[-max(len(ranks) // 10, 1) :]].median()
        squared *= factor
    return squared.sqrt()


def equal_noise(
    teacher_images: Tensor,
    student_images: Tensor,
    teacher: dict[str, Tensor],
    student: dict[str, Tensor],
    search: GroupIndex,
    threshold: float,
    control: Tensor | None,
    paired: bool = True,
    error: float = 0.05,
) -> dict[str, Any]:
    """The comparison of the module's docstring.

    Args:
        teacher_images: uint8 (m, C, H, W), in the order of the rows.
        student_images: of the same seeds.
        teacher: rows with ``seeds``, ``squared`` and ``groups``.
        student: the same columns.
        search: over T.
        threshold: memorised means d1/d2 below it.
        control: d1/d2 of held-out images, or None.
        paired: whether the seeds belong together, see `cdmem.metrics.comparison.paired`.
        error: of the intervals, see :func:`~cdmem.metrics.comparison.paired.difference`.

    Returns:
        ``recognised_at`` (threshold of step 1), ``recognised`` (difference of f_mem there), ``common`` (copies
        compared), ``noised`` (``teacher`` or ``student``, None with fewer than 20 of them), ``noise`` (grey levels,
        root mean square over copies), ``f_mem`` of the noised side and ``difference`` (student minus teacher).
    """
    loose = recognition_threshold(control, threshold)
    seen_t, seen_s = (memorized(r["squared"][:, 0], r["squared"][:, 1], loose) for r in (teacher, student))
    both = seen_t & seen_s & (teacher["groups"][:, 0] == student["groups"][:, 0])
    common = (both, both) if paired else (seen_t, seen_s)
    record: dict[str, Any] = {"recognised_at": loose, "recognised": difference(seen_t, seen_s, paired, error)}
    record |= {"common": min(int(c.sum()) for c in common)}
    record |= dict.fromkeys(("noised", "noise", "f_mem", "difference"))
    if record["common"] < MIN_SEEDS:
        return record
    hit_t, hit_s = (memorized(r["squared"][:, 0], r["squared"][:, 1], threshold) for r in (teacher, student))
    sharper = "student" if int(hit_s.sum()) > int(hit_t.sum()) else "teacher"
    ours, theirs = (student, teacher) if sharper == "student" else (teacher, student)
    images, chosen = (student_images, common[1]) if sharper == "student" else (teacher_images, common[0])
    noise = NoiseSource(ours[SEEDS].tolist(), tuple(images.shape[1:]), stream="equal_noise").next()
    wanted = theirs["squared"][common[0] if sharper == "student" else common[1], 0]
    levels = torch.zeros(len(images), dtype=torch.float64)
    levels[chosen] = matching_levels(images[chosen], noise[chosen], ours["groups"][chosen, 0], search, loose, wanted)
    # A copy of one side alone gets the level of a common copy at its own distance.
    seen = seen_s if sharper == "student" else seen_t
    levels[seen & ~chosen] = _level_at(ours["squared"][:, 0], chosen, levels, seen & ~chosen)
    noisy = search.index.query(add_noise(images, noise, levels), 2)
    hit = memorized(noisy.squared1.cpu(), noisy.squared2.cpu(), threshold)
    pair = (hit_t, hit) if sharper == "student" else (hit, hit_s)
    record |= {"noised": sharper, "noise": float(levels[seen].square().mean().sqrt())}
    return record | {"f_mem": float(hit.double().mean()), "difference": difference(*pair, paired, error)}


def _level_at(squared: Tensor, known: Tensor, levels: Tensor, asked: Tensor) -> Tensor:
    """Levels of the copies ``asked``, from those of the ``known`` copy of nearest rank by distance, float64."""
    order = squared[known].double().argsort(stable=True)
    distances, of_rank = squared[known].double()[order].contiguous(), levels[known][order]
    rank = torch.searchsorted(distances, squared[asked].double()).clamp_max(len(of_rank) - 1)
    return of_rank[rank]
