"""Classifier-free guidance of a trained class-conditional teacher, towards targets that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.theory.decomposition.parts import Parts, correlate, decompose
from cdmem.theory.decomposition.paths import Guided, exact_guided, noise_of, walk
from cdmem.theory.measures import COPY_RATIO, mean_interval, nearest_two
from cdmem.theory.trained_pair import Pair

KNOWN = 0.5  # an image is the target of its class above this share
LEAST_SEEDS = 8


@dataclass(frozen=True)
class Target:
    """A class whose outcome is known beforehand: one image (its row in T, how often T holds it, and its share of the
    class's copies) makes up more than half of it; ``members`` are the class's rows (k,)."""

    label: int
    image: int
    copies: int
    share: float
    members: Tensor


def constant(denoiser: DenoiserLike, label: int) -> DenoiserLike:
    """A conditional denoiser with one label for everything; with the null label it is the unconditional one."""
    return lambda x, sigma, labels=None: denoiser(x, sigma, torch.full((len(x),), label))


def targets(labels: Tensor, weights: Tensor, num_classes: int) -> list[Target]:
    """Known targets among the classes of T; ``labels`` and ``weights`` (multiplicities) are (n,)."""
    known = []
    for label in range(num_classes):
        members = torch.nonzero(labels == label).flatten()
        if len(members):
            own = weights[members].double()
            most = int(own.argmax())
            if own[most] > KNOWN * own.sum():
                share = float(own[most] / own.sum())
                known.append(Target(label, int(members[most]), int(own[most]), share, members))
    return known


def guided_teacher(pair: Pair, sigmas: Tensor, scales: Sequence[float], samples: int, seed: int) -> dict[str, Any]:
    """Paths towards each known target at each scale, by the trained and by the exact denoisers from the same noise.

    The pair is a class-conditional teacher with a null label; ``samples`` paths of each scale are dealt out over the
    classes, at least :data:`LEAST_SEEDS` each.

    Returns:
        classes, seeds of each, and by scale the parts of both; no rows without a known target.
    """
    assert pair.null_label is not None and pair.labels is not None
    known = targets(pair.labels, pair.multiplicities, pair.num_classes)
    seeds = max(LEAST_SEEDS, samples // max(len(known), 1))
    classes = [{key: value for key, value in vars(t).items() if key != "members"} for t in known]
    start = noise_of(seed, seeds, pair.images).next().double() * sigmas[0]
    rows = []
    for g in scales if known else ():
        free = constant(pair.teacher, pair.null_label)
        trained = [Guided(free, constant(pair.teacher, t.label), g) for t in known]
        exact = [exact_guided(pair.images, pair.multiplicities, t.members, g) for t in known]
        row: dict[str, Any] = {"g": g}
        for kind, denoisers in (("trained", trained), ("exact", exact)):
            row[kind] = _summary([_towards(d, start, sigmas, pair, t) for d, t in zip(denoisers, known)], seed)
        rows.append(row)
    return {"classes": classes, "seeds": seeds, "rows": rows}


def _towards(
    denoiser: DenoiserLike, start: Tensor, sigmas: Tensor, pair: Pair, t: Target
) -> tuple[Parts, Tensor, Tensor]:
    """Parts for the target; severity -ln(d to the target / d to the nearest other image); whether it is a copy."""
    flat = pair.images.flatten(1).double()
    path = walk(denoiser, start, sigmas)
    index = torch.full((len(start),), t.image)
    parts = decompose(path, flat, pair.multiplicities, index)
    others = torch.arange(len(flat)) != t.image
    near = (path.states[-1] - flat[t.image]).norm(dim=1).clamp_min(1e-12)
    far = nearest_two(path.states[-1], flat[others])[0][:, 0].clamp_min(1e-12)
    return parts, (far / near).log(), near < COPY_RATIO * far


def _summary(paths: list[tuple[Parts, Tensor, Tensor]], seed: int) -> dict[str, Any]:
    """Means over classes: paths of one class share their target. With one or two classes, over paths."""

    def over(values: list[Tensor]) -> dict[str, float]:
        means = [float(v.mean()) for v in values]
        return asdict(mean_interval(means if len(means) > 2 else torch.cat(values).tolist()))

    parts, severity, hits = zip(*paths)
    drawn = torch.cat([p.D_1 for p in parts]).numpy()
    return {
        "a_first": over([p.a[0] for p in parts]),
        "across_first": over([p.across[0] for p in parts]),
        "D_1": over([p.D_1 for p in parts]),
        "D_2": over([p.D_2 for p in parts]),
        "hits": over([hit.double() for hit in hits]),
        "D_1_pearson": asdict(correlate("pearson", drawn, torch.cat(severity).numpy(), seed)),
        "w_0": torch.stack([p.w_0.mean(1) for p in parts]).mean(0).tolist(),
    }
