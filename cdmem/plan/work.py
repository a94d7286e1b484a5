"""Pieces of work: what a stage spends on its evaluations and an audit on its samples, in network evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdmem.metrics.whitebox import record as look
from cdmem.metrics.whitebox.loss_gap import OdeEndpoint
from cdmem.metrics.whitebox.membership_inference import attack_sigmas
from cdmem.plan.images import Facts
from cdmem.training.module import DiffusionModule


@dataclass(frozen=True)
class Work:
    """FLOPs with a name.

    Attributes:
        name: what for.
        flops: of all devices together; of each device if ``everywhere``.
        low: whether the network runs in 16 bit.
        everywhere: every device does all of it instead of a share.
    """

    name: str
    flops: int
    low: bool = False
    everywhere: bool = False

    def total(self, devices: int) -> int:
        """FLOPs that all devices spend."""
        return self.flops * (devices if self.everywhere else 1)


@dataclass(frozen=True)
class Evaluations:
    """Network evaluations of the callbacks of a stage.

    Attributes:
        moments: optimizer steps at which something is evaluated.
        model: images times evaluations of the trained model, shared by the devices.
        teacher: the same of the frozen teacher.
        model_everywhere: of the trained model, on every device.
        teacher_everywhere: of the frozen teacher, on every device.
        products: backward passes to the image, of one image each, on every device.
        assumed: callbacks of unknown kinds, taken to draw their samples once at the model's headline.
    """

    moments: int = 0
    model: int = 0
    teacher: int = 0
    model_everywhere: int = 0
    teacher_everywhere: int = 0
    products: int = 0
    assumed: tuple[str, ...] = ()


def endpoint_nfe(sigmas: Sequence[float], sigma_min: float) -> int:
    """Evaluations for the ODE endpoints from all of these levels, one image: Heun, the last step by Euler."""
    return sum(2 * OdeEndpoint.points - 1 if s > sigma_min else 1 for s in sigmas)


def evaluations(
    callbacks: Sequence[Any], model: DiffusionModule, facts: Facts, steps: int, teacher_nfe: int
) -> Evaluations:
    """What the callbacks ask of the networks during ``fit``; samples of one moment are shared, as they are there.

    Args:
        callbacks: of the trainer.
        model: assembled.
        facts: of its data.
        steps: optimizer steps of the whole run.
        teacher_nfe: of the frozen teacher's full sampler, 0 without one.
    """
    from callbacks.evaluation import EvaluationCallback, evaluation_steps
    from callbacks.whitebox import WhiteboxCallback

    asked: dict[int, dict[tuple[int, str], int]] = {}
    endpoints, extra, assumed = 0, Counter(), []
    for callback in callbacks:
        if not isinstance(callback, EvaluationCallback):
            continue
        at = evaluation_steps(steps, callback.cadence.points, callback.cadence.spacing)
        at = [0, *at] if model.role == "student" else at
        for step in at:
            asked.setdefault(step, {})
        if isinstance(callback, WhiteboxCallback):
            extra += _internal(callback, model, facts, len(at), teacher_nfe > 0)
            continue
        wanted, count, known = _samples(callback, model)
        if not known:
            assumed.append(type(callback).__name__)
        endpoints = max(endpoints, count)
        for step in at:
            for key in wanted:
                asked[step][key] = max(asked[step].get(key, 0), callback.samples)
    made = sum(nfe * samples for moment in asked.values() for (nfe, _), samples in moment.items())
    return Evaluations(len(asked), made, endpoints * teacher_nfe, **extra, assumed=tuple(assumed))


def _samples(callback: Any, model: DiffusionModule) -> tuple[list[tuple[int, str]], int, bool]:
    """(NFE, weights) that a callback draws at every moment, teacher endpoints that it needs, and whether we know."""
    from callbacks.memorization import MemorizationCallback
    from callbacks.metric import MetricCallback
    from callbacks.panels import NeighborPanelCallback
    from callbacks.quality import QualityCallback
    from callbacks.samples import SampleGridCallback

    several = isinstance(callback, MemorizationCallback | QualityCallback)
    nfes = getattr(callback, "nfe", None) or (model.default_nfe if several else [None])
    weights = getattr(callback, "weights", None)
    wanted = [(model.sampler(nfe, weights).nfe, weights or model.weights) for nfe in nfes]
    endpoints = 0
    if isinstance(callback, MemorizationCallback | NeighborPanelCallback):
        endpoints = callback.samples if several else callback.shown
    known = several or isinstance(callback, MetricCallback | NeighborPanelCallback | SampleGridCallback)
    return wanted, endpoints, known


def _internal(callback: Any, model: DiffusionModule, facts: Facts, moments: int, teacher: bool) -> Counter[str]:
    """Evaluations of an `WhiteboxCallback`: every device does all of them; the teacher's answers are kept."""
    levels = len(callback.sigmas)
    images = sum(min(callback.images, count) for count in (facts.n, facts.held_out))
    looks = 1 + int(callback.optimum) + int(teacher)
    samples, size = callback.samples, facts.shape[0] * facts.shape[1] * facts.shape[2]
    probes = size if size <= look.EXACT_DIMENSIONS else look.PROBES
    drawn = samples * model.sampler(None, callback.weights).nfe
    found = {
        "model_everywhere": moments * (images * levels * looks + drawn + samples * levels),
        "teacher_everywhere": images * endpoint_nfe(callback.sigmas, model.sigma_min) if teacher else 0,
        "products": moments * samples * levels * probes,
    }
    return Counter(found)


@dataclass(frozen=True)
class Inside:
    """Network evaluations of an audit's look inside one model, see `cdmem.metrics.whitebox.record`.

    Attributes:
        model: images times evaluations of the model.
        teacher: of its teacher.
        products: backward passes to the image, of one image each.
    """

    model: int
    teacher: int
    products: int


def inside(model: DiffusionModule, facts: Facts, samples: int) -> Inside:
    """Evaluations of `whitebox_record` for an audit of ``samples`` samples with the teacher at hand."""
    levels, held_out = len(look.SIGMAS), min(look.IMAGES, facts.held_out)
    images = min(look.IMAGES, facts.n) + (held_out if held_out >= 2 else 0)
    points, size = min(look.POINTS, samples), facts.shape[0] * facts.shape[1] * facts.shape[2]
    probes = size if size <= look.EXACT_DIMENSIONS else look.PROBES
    made, teacher = images * levels + points * levels, 0
    if held_out >= 2:
        made += images * levels
        if model.role == "student":
            made += images * levels
            teacher = images * endpoint_nfe(look.SIGMAS, model.sigma_min)
        else:
            # SecMI asks once a level, PIA twice.
            made += images * (len(attack_sigmas(sigma_min=model.sigma_min)) + 2)
    return Inside(made, teacher, points * levels * probes)
