"""What an audit sees inside a model: losses on T and H, distance to the memorising optimum, dimension, membership."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cdmem.audit.generators import Subject
from cdmem.data.subset import TrainingSet
from cdmem.diffusion.sampling import SEEDS_PER_RUN, NoiseSource
from cdmem.metrics.whitebox.empirical_optimum import distance_to_optimum, training_optimum
from cdmem.metrics.whitebox.intrinsic_dimension import lid
from cdmem.metrics.whitebox.loss_gap import LossGap, OdeEndpoint, denoising_losses, endpoint_losses, loss_gap
from cdmem.metrics.whitebox.membership_inference import attack_sigmas, membership, pia, secmi
from cdmem.metrics.whitebox.roc import Estimate

SIGMAS = (0.1, 0.5, 2.0)
IMAGES = 256
POINTS = 32
EXACT_DIMENSIONS = 64
PROBES = 8


def _estimate(e: Estimate) -> dict[str, Any]:
    return {"value": e.value, "ci95": [e.low, e.high]}


def _gaps(gaps: list[LossGap]) -> list[dict[str, Any]]:
    return [
        {
            "sigma": sigma,
            "train": g.train,
            "held_out": g.held_out,
            "gap": _estimate(g.gap),
            "auc": _estimate(g.separation.auc),
            "tpr_at_1_fpr": _estimate(g.separation.tpr),
        }
        for sigma, g in zip(SIGMAS, gaps)
    ]


def inside(
    subject: Subject,
    training_set: TrainingSet,
    teacher: Subject | None,
    samples: Tensor,
    seeds: Tensor,
    hit: Tensor,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that needs the model itself; without H only the distance to the optimum on T and the dimension.

    Args:
        subject: with a module.
        training_set: T and H; the first 256 of each are used.
        teacher: whose ODE endpoints the student is compared with, or None.
        samples: generated images, float (m, C, H, W); the dimension is taken at the first 32.
        seeds: of the samples, int64 (m,).
        hit: which samples are memorised, bool (m,).
        device: where the model is.

    Returns:
        ``images`` (sizes used), by noise level ``loss_gap`` (of D, or of f as ``loss_gap_f``), ``endpoint`` (students
        with a teacher), ``optimum``; ``lid`` (of f: ``lid_f``); for teachers ``secmi`` and ``pia``.
    """
    module = subject.module
    function, conditional = module.function(), module.num_classes > 0
    suffix = "" if subject.role == "teacher" else "_f"
    common = {"seed": int(seeds[0]) // SEEDS_PER_RUN, "device": device}
    t = training_set
    sides = {"train": (t.images[:IMAGES], t.labels[:IMAGES] if conditional else None)}
    if conditional and (t.num_classes != module.num_classes or int(t.labels.max()) >= module.num_classes):
        return {"unavailable": f"the model has {module.num_classes} classes, the training set names {t.num_classes}"}
    unlabelled = conditional and bool((t.held_out_labels < 0).any())
    if len(t.held_out_images) >= 2 and not unlabelled:
        held_labels = t.held_out_labels[:IMAGES] if conditional else None
        sides["held_out"] = (t.held_out_images[:IMAGES], held_labels)
    record: dict[str, Any] = {"images": {name: len(images) for name, (images, _) in sides.items()}}
    if unlabelled:
        record["unavailable"] = "held-out images without labels, for a model with classes"
    if "held_out" in sides:
        losses = [denoising_losses(function, x, SIGMAS, labels=y, **common) for x, y in sides.values()]
        record[f"loss_gap{suffix}"] = _gaps(loss_gap(*losses))
        if subject.role == "student" and teacher is not None and teacher.module is not None:
            end = OdeEndpoint(teacher.module.function(), module.sigma_min)
            losses = [endpoint_losses(function, end, x, SIGMAS, labels=y, **common) for x, y in sides.values()]
            record["endpoint"] = _gaps(loss_gap(*losses))
        if subject.role == "teacher":
            record |= _membership(subject, sides, device)
    record[f"optimum{suffix}"] = _optimum(subject, t, sides, common)
    record[f"lid{suffix}"] = _dimension(subject, samples[:POINTS], seeds[:POINTS], hit[:POINTS], device)
    return record


def _membership(subject: Subject, sides: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """SecMI and PIA at the published times, no level below the model's sigma_min."""
    module = subject.module
    function, sigmas = module.function(), attack_sigmas(sigma_min=module.sigma_min)
    attacks = {
        "secmi": lambda x, y: secmi(function, x, sigmas, labels=y, device=device),
        "pia": lambda x, y: pia(function, x, sigmas[-2], sigmas[0], labels=y, device=device),
    }
    found = {}
    for name, attack in attacks.items():
        result = membership(*(attack(x, y) for x, y in sides.values()))
        found[name] = {"auc": _estimate(result.auc), "tpr_at_1_fpr": _estimate(result.tpr), "sigma": sigmas[-2]}
    return found


def _optimum(subject: Subject, t: TrainingSet, sides: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """By side one row a level: ``sigma``, ``absolute``, ``reference``, ``ratio`` (None where it is rounding only)."""
    module, conditional = subject.module, subject.module.num_classes > 0
    best = training_optimum(t, conditional).to(common["device"])
    target = best if subject.role == "teacher" else OdeEndpoint(best, module.sigma_min)
    table = {}
    for name, (images, labels) in sides.items():
        if labels is not None and not set(labels.tolist()) <= set(t.labels.tolist()):
            continue  # a class that T lacks has no optimum
        found = distance_to_optimum(module.function(), target, images, SIGMAS, labels=labels, **common)
        table[name] = [
            {"sigma": s, "absolute": d.absolute, "reference": d.reference, "ratio": d.ratio}
            for s, d in zip(SIGMAS, found)
        ]
    return table


def _dimension(subject: Subject, x: Tensor, seeds: Tensor, hit: Tensor, device: torch.device) -> list[dict[str, Any]]:
    """Median LID at generated points, at memorised and at other ones, by level; None where there are no such points."""
    module = subject.module
    labels = NoiseSource(seeds.tolist(), module.shape, device).labels(module.num_classes)
    probes = None if x[0].numel() <= EXACT_DIMENSIONS else PROBES
    rows = []
    for sigma in SIGMAS:
        value = lid(module.function(), x.to(device), sigma, seeds.tolist(), probes, labels=labels).value

        def median(chosen: Tensor, value: Tensor = value) -> float | None:
            return float(value[chosen].median()) if bool(chosen.any()) else None

        everywhere = torch.ones_like(hit)
        rows.append({"sigma": sigma, "median": median(everywhere), "memorised": median(hit), "other": median(~hit)})
    return rows
