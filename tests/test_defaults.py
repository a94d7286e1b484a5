"""What settings are without being set: the documented and published values, one row each."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from cdmem.data.stream import BatchStream
from cdmem.data.subset import SubsetSpec
from cdmem.diffusion import losses, noise, preconditioning, sampling
from cdmem.images import HALF_RANGE
from cdmem.metrics import (
    authenticity,
    convergence,
    copying,
    coverage,
    dimension,
    efficientnet,
    extraction,
    fidelity,
    frechet,
    groups,
    hog,
    likelihood,
    loss_gap,
    matching,
    membership,
    memorization,
    optimum,
    pairing,
    prdc,
    roc,
    statistics,
    verdict,
)
from cdmem.training.ema import EMA
from cdmem.training.recipes import PRESETS, Recipe, make_recipe
from cdmem.training.student import ConsistencyStudent
from cdmem.training.teacher import DiffusionTeacher

OPTIMIZATION = {
    "lr_schedule": "cosine",
    "warmup_steps": 0,
    "ema_half_lives": (200,),
    "ema_ramp": 0.05,
    "weights": None,
    "training_seed": None,
    "sampling_seed": None,
    "compile": False,
}
DEFAULTS = [
    # Karras et al. 2022, table 1 (training) and eq. 5 (sampling).
    (DiffusionTeacher, {"parameterization": "edm", "sigma_data": None, "p_mean": -1.2, "p_std": 1.2, **OPTIMIZATION}),
    (DiffusionTeacher, {"conditional": False, "label_dropout": 0.0, "sampler_points": 18, "solver": "heun"}),
    (ConsistencyStudent, {"objective": "distillation", "initialize": "teacher", "data": "same", **OPTIMIZATION}),
    (ConsistencyStudent, {"preset": "small", "dropout": 0.0, "mid_sigmas": (0.8,)}),
    # Song et al. 2023, table 3 (CIFAR-10); intervals of Song & Dhariwal 2023, table 1.
    (
        Recipe,
        {
            "points": 18,
            "start_points": 2,
            "curriculum": "fixed",
            "solver": "heun",
            "distance": "l2",
            "huber_c": None,
            "weighting": "uniform",
            "intervals": "uniform",
            "p_mean": -1.1,
            "p_std": 2.0,
            "mu": 0.0,
            "mu_start": 0.95,
        },
    ),
    (noise.karras_sigmas, {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}),
    (noise.sampler_sigmas, {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}),
    (noise.interval_probabilities, {"p_mean": -1.1, "p_std": 2.0}),
    # Ho et al. 2020, section 4.
    (noise.VPSchedule, {"beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}),
    (preconditioning.EDMScaling, {"noise_factor": 250.0, "prediction": "epsilon"}),
    (preconditioning.VPScaling, {"prediction": "epsilon"}),
    (sampling.OdeSampler, {"num_classes": 0}),
    (sampling.ConsistencySampler, {"num_classes": 0}),
    (losses.PseudoHuber, {"c": None}),
    (losses.denoising_loss, {"weight": 1.0}),
    (losses.consistency_loss, {"weight": 1.0}),
    (EMA, {"ramp": 0.05}),
    (SubsetSpec, {"seed": 0, "balance": False, "duplication": None, "held_out": 0, "flip": False}),
    (BatchStream, {"rank": 0, "world_size": 1, "start": 0, "flip": False}),
    (memorization.MemorizedFraction, {"threshold": 1 / 3, "near_duplicates": "off"}),
    (memorization.memorized, {"threshold": 1 / 3}),
    (coverage.HitCoverage, {"threshold": 1 / 3, "near_duplicates": "off"}),
    (coverage.hits_against_spacing, {"bins": 4}),
    (pairing.PairedWithTeacher, {"near_duplicates": "off"}),
    # Carlini et al. 2023, section 5.
    (extraction.AbsoluteExtraction, {"delta": 0.1, "near_duplicates": "off"}),
    (extraction.AdaptiveExtraction, {"alpha": 0.5, "neighbors": 50, "near_duplicates": "off"}),
    (extraction.adaptive_score, {"alpha": 0.5}),
    # Meehan et al. 2020.
    (copying.CopyTest, {"cells": 3, "components": 64, "seed": 0}),
    (copying.c_t, {"cells": 3, "components": 64, "seed": 0}),
    (copying.Cells, {"cells": 3, "components": 64, "seed": 0}),
    (copying.TrainPreference, {"repetitions": 200, "seed": 0}),
    (copying.train_preference, {"repetitions": 200, "seed": 0}),
    (copying.TwoSampleAccuracy, {"seed": 0}),
    (copying.two_sample_accuracy, {"size": None, "seed": 0}),
    (likelihood.FeatureLikelihood, {"weighted": False, "most": 10_000, "seed": 0}),
    (likelihood.feature_likelihood, {"weights": None, "seed": 0}),
    (fidelity.Fidelity, {"interval": False, "infinity": False}),
    (fidelity.Fidelity.controls, {"seed": 0}),
    (frechet.sampling_floor, {"repeats": 5}),
    (frechet.frechet_infinity, {"points": 15}),
    # Naeem et al. 2020.
    (prdc.ManifoldQuality, {"k": 5}),
    (prdc.precision_recall_density_coverage, {"k": 5}),
    (groups.near_duplicate_labels, {"flip": False, "rule": "auto"}),
    (efficientnet.EfficientNetLite0Features, {"side": 96}),
    (loss_gap.denoising_losses, {"seed": 0, "draws": 1}),
    (loss_gap.endpoint_losses, {"seed": 0, "draws": 1}),
    (optimum.distance_to_optimum, {"seed": 0, "draws": 1}),
    (loss_gap.OdeEndpoint, {"sigma_min": 0.002, "points": 18}),
    (loss_gap.welch, {"confidence": 0.95}),
    (membership.attack_sigmas, {"time": 100, "interval": 10, "sigma_min": 0.002}),
    (roc.auc, {"confidence": 0.95}),
    (roc.tpr_at_fpr, {"rate": 0.01}),
    (statistics.wilson_interval, {"confidence": 0.95}),
    (statistics.newcombe_paired_difference, {"confidence": 0.95}),
    (statistics.mean_interval, {"confidence": 0.95}),
    (statistics.hierarchical_bootstrap, {"draws": 2000, "seed": 0, "confidence": 0.95}),
    (convergence.classify, {"margin": 0.03}),
    (convergence.extrapolate, {"draws": 400, "seed": 0}),
    (verdict.judge, {"equal_nfe": None, "as_real": None}),
]


@pytest.mark.parametrize(("made", "values"), DEFAULTS, ids=lambda v: getattr(v, "__qualname__", ""))
def test_documented_defaults(made, values):
    parameters = inspect.signature(made).parameters
    assert {name: parameters[name].default for name in values} == values


def test_documented_constants():
    """Rules of the verdict and of the measurements, as docs and reports state them."""
    assert (convergence.MARGIN, convergence.RMSE_MARGIN) == (0.03, 0.05)
    assert (verdict.AMPLITUDE, verdict.SIGNIFICANT, verdict.HORIZON) == ((0.9, 1.1), 0.05, 3)
    assert memorization.THRESHOLDS == (1 / 2, 1 / 3, 1 / 4)
    assert (groups.AUTO, groups.MOST) == (0.5, 8)
    assert (matching.WITHOUT_CONTROL, matching.FALSE_POSITIVES, matching.MIN_SEEDS) == (0.5, 0.01, 20)
    assert (hog.BINS, hog.FALSE_POSITIVES, copying.MIN_PER_CELL, extraction.LEVELS) == (8, 0.01, 20, 255)
    assert (fidelity.MOST, fidelity.LEAST, HALF_RANGE) == (10_000, 3, 127.5)
    # Jiralerspong et al. 2023, their program.
    assert (likelihood.LOWEST, likelihood.HIGHEST, likelihood.START, likelihood.NEARER) == (-40, 20, 1e-3, 0.9**2)
    assert (sampling.SEEDS_PER_RUN, sampling.LABEL_STREAM, matching.NOISE_STREAM) == (1_000_000, 109_537, 0x5EED)
    assert loss_gap.SEED_OFFSET == 750_000
    measures = (authenticity.Authenticity, prdc.ManifoldQuality)
    assert all(m.higher_is_better for m in measures)
    lower = (memorization.MemorizedFraction, fidelity.Fidelity, likelihood.FeatureLikelihood)
    assert not any(m.higher_is_better for m in (*lower, extraction.AbsoluteExtraction, extraction.AdaptiveExtraction))
    assert inspect.signature(dimension.lid).parameters["seeds"].default == ()


def test_presets_are_the_published_recipes():
    assert PRESETS["small"] == Recipe(distance="pseudo_huber", intervals="lognormal", mu=0.95)
    assert PRESETS["cm"] == Recipe()
    ict = {"points": 1280, "start_points": 10, "curriculum": "doubling", "mu": 0.0}
    ict |= {"distance": "pseudo_huber", "weighting": "inverse_gap", "intervals": "lognormal"}
    assert PRESETS["ict"] == Recipe(**ict) and set(PRESETS) == {"small", "cm", "ict"}


def test_choices_replace_a_presets_one_by_one():
    made = make_recipe("ict", points=40, mu=0.5, distance=None)
    assert made == replace(PRESETS["ict"], points=40, mu=0.5)
    with pytest.raises(ValueError, match="colour"):
        make_recipe("cm", colour="red")
    assert Recipe(huber_c=0.3, distance="pseudo_huber").distance_function() == losses.PseudoHuber(0.3)
    assert (Recipe(distance="l1").distance_function(), Recipe().distance_function()) == (losses.l1, losses.l2)
