"""Classifier-free guidance of a trained class-conditional teacher, towards targets that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdmem.diffusion.preconditioning import DenoiserLike
from cdmem.diffusion.sampling import NoiseSource
from cdmem.theory.decomposition.parts import Parts, correlate, decompose
from cdmem.theory.decomposition.paths import Guided, exact_guided, walk
from cdmem.theory.measures import COPY_RATIO, mean_interval, nearest_two
from cdmem.theory.trained_pair import Pair

KNOWN = 0.5  # an image is the target of its class above this share
LEAST_SEEDS = 8


@dataclass(frozen=True)
class Target:
    """A class whose outcome is known beforehand: one image makes up more than half of its training copies.

    Attributes:
        label: of the class.
        image: its row in T.
        copies: how often T holds it.
        share: of the class's copies.
        members: rows of the class (k,).
    """

    label: int
    image: int
    copies: int
    share: float
    members: Tensor


class Constant:
    """A conditional denoiser with one label for everything; with the null label it is the unconditional one."""

    def __init__(self, denoiser: DenoiserLike, label: int) -> None:
        self.denoiser, self.label = denoiser, label

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, torch.full((len(x),), self.label))


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

    Args:
        pair: a class-conditional teacher with a null label.
        sigmas: levels of the Euler walk, (K + 1,).
        scales: g.
        samples: paths of each scale, dealt out over the classes, at least :data:`LEAST_SEEDS` each.
        seed: of the noise.

    Returns:
        classes, seeds of each, and by scale the parts of both; no rows without a known target.
    """
    assert pair.null_label is not None and pair.labels is not None
    known = targets(pair.labels, pair.multiplicities, pair.num_classes)
    seeds = max(LEAST_SEEDS, samples // max(len(known), 1))
    classes = [{key: value for key, value in vars(t).items() if key != "members"} for t in known]
    shape = tuple(pair.images.shape[1:])
    start = NoiseSource(range(seed * 10**6, seed * 10**6 + seeds), shape, "cpu").next().double() * sigmas[0]
    rows = []
    for g in scales if known else ():
        kinds: dict[str, list[tuple[Parts, Tensor, Tensor]]] = {"trained": [], "exact": []}
        for t in known:
            free, own = Constant(pair.teacher, pair.null_label), Constant(pair.teacher, t.label)
            exact = exact_guided(pair.images, pair.multiplicities, t.members, g)
            for kind, denoiser in (("trained", Guided(free, own, g)), ("exact", exact)):
                kinds[kind].append(_towards(denoiser, start, sigmas, pair, t))
        rows.append({"g": g, **{kind: _summary(paths, seed) for kind, paths in kinds.items()}})
    return {"classes": classes, "seeds": seeds, "rows": rows}


def _towards(
    denoiser: DenoiserLike, start: Tensor, sigmas: Tensor, pair: Pair, t: Target
) -> tuple[Parts, Tensor, Tensor]:
    """Parts for the target; severity -ln(d to the target / d to the nearest other image); whether it is a copy."""
    flat = pair.images.flatten(1).double()
    path = walk(denoiser, start, sigmas)
    index = torch.full((len(start),), t.image)
    parts = decompose(path, flat[index], flat, pair.multiplicities, index)
    others = torch.arange(len(flat)) != t.image
    near = (path.states[-1] - flat[t.image]).norm(dim=1).clamp_min(1e-12)
    far = nearest_two(path.states[-1], flat[others])[0][:, 0].clamp_min(1e-12)
    return parts, (far / near).log(), near < COPY_RATIO * far


def _summary(paths: list[tuple[Parts, Tensor, Tensor]], seed: int) -> dict[str, Any]:
    """Means over classes: paths of one class share their target. With one or two classes, over paths."""

    def over(values: list[Tensor]) -> dict[str, float]:
        means = [float(v.mean()) for v in values]
        return asdict(mean_interval(means if len(means) > 2 else torch.cat(values).tolist()))

    severity = torch.cat([s for _, s, _ in paths]).numpy()
    drawn = np.concatenate([p.D_1.numpy() for p, _, _ in paths])
    return {
        "a_first": over([p.a[0] for p, _, _ in paths]),
        "across_first": over([p.across[0] for p, _, _ in paths]),
        "D_1": over([p.D_1 for p, _, _ in paths]),
        "D_2": over([p.D_2 for p, _, _ in paths]),
        "hits": over([hit.double() for _, _, hit in paths]),
        "D_1_pearson": asdict(correlate("pearson", drawn, severity, seed)),
        "w_0": torch.stack([p.w_0.mean(1) for p, _, _ in paths]).mean(0).tolist(),
    }
