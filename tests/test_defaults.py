"""What settings are without being set: the documented and published values, one row each."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from cdmem import seeds
from cdmem.audit import pairs
from cdmem.data.stream import BatchStream
from cdmem.data.subset import SubsetSpec
from cdmem.diffusion import ddpm, losses, noise, preconditioning, sampling
from cdmem.distillation import ConsistencyDistillation, TrajectoryRegression
from cdmem.images import HALF_RANGE
from cdmem.metrics import statistics
from cdmem.metrics.comparison import claims, convergence, equal_noise, images_copied, lost_seeds, paired, verdict
from cdmem.metrics.memorization import (
    authenticity,
    copy_detection,
    coverage,
    data_copying,
    extraction,
    feature_likelihood,
    fraction,
)
from cdmem.metrics.neighbors import near_duplicates
from cdmem.metrics.quality import efficientnet, fidelity, frechet, prdc
from cdmem.metrics.whitebox import intrinsic_dimension, loss_gap, membership_inference, roc
from cdmem.training.ema import EMA
from cdmem.training.settings import Averaging, Optimization, Seeds
from cdmem.training.student import DistillationData, Student
from cdmem.training.teacher import DiffusionTeacher, Sampling, TrainingNoise

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = [
    # Karras et al. 2022, table 1 (training) and eq. 5 (sampling).
    (DiffusionTeacher, {"parameterization": "edm", "sigma_data": None, "noise": TrainingNoise(-1.2, 1.2)}),
    (DiffusionTeacher, {"conditional": False, "label_dropout": 0.0, "sampling": Sampling(18, "heun")}),
    (Student, {"teacher": None, "network": None, "teacher_weights": None, "mid_sigmas": (0.8,)}),
    (Student, {"method": ConsistencyDistillation(), "data": DistillationData("same", None)}),
    *((model, {"optimization": Optimization(), "averaging": Averaging()}) for model in (DiffusionTeacher, Student)),
    *((model, {"seeds": Seeds(), "compile": False}) for model in (DiffusionTeacher, Student)),
    (Optimization, {"optimizer": None, "schedule": "cosine", "warmup_steps": 0, "longer": None}),
    (Optimization, {"cooldown_steps": 0, "cooldown_to": 0.1}),
    (Averaging, {"half_lives": (200,), "ramp": 0.05, "weights": None}),
    (Seeds, {"training": None, "sampling": None}),
    # Stable at small batch; the intervals' law is that of Song & Dhariwal 2023, table 1.
    (ConsistencyDistillation, {"points": 18, "start_points": 2, "curriculum": "fixed", "solver": "heun"}),
    (ConsistencyDistillation, {"weighting": "uniform", "intervals": "lognormal", "p_mean": -1.1, "p_std": 2.0}),
    (ConsistencyDistillation, {"mu": 0.95, "mu_start": 0.95, "dropout": 0.0}),
    (TrajectoryRegression, {"points": 18, "solver": "heun", "weighting": "uniform", "reuse": None, "dropout": 0.0}),
    (noise.karras_sigmas, {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}),
    (noise.sampler_sigmas, {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}),
    (noise.interval_probabilities, {"p_mean": -1.1, "p_std": 2.0}),
    # Ho et al. 2020, section 4.
    (ddpm.VPSchedule, {"beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}),
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
    (fraction.MemorizedFraction, {"threshold": 1 / 3, "near_duplicates": "off"}),
    (fraction.memorized, {"threshold": 1 / 3}),
    (coverage.HitCoverage, {"threshold": 1 / 3, "near_duplicates": "off"}),
    (coverage.hits_against_spacing, {"bins": 4}),
    (paired.PairedWithTeacher, {"near_duplicates": "off"}),
    # Carlini et al. 2023, section 5.
    (extraction.AbsoluteExtraction, {"delta": 0.1, "near_duplicates": "off"}),
    (extraction.AdaptiveExtraction, {"alpha": 0.5, "neighbors": 50, "near_duplicates": "off"}),
    (extraction.adaptive_score, {"alpha": 0.5}),
    # Meehan et al. 2020.
    (data_copying.CopyTest, {"cells": 3, "components": 64, "seed": 0}),
    (data_copying.Cells, {"cells": 3, "components": 64, "seed": 0}),
    (data_copying.TrainPreference, {"repetitions": 200, "seed": 0}),
    (data_copying.train_preference, {"repetitions": 200, "seed": 0}),
    (data_copying.TwoSampleAccuracy, {"seed": 0}),
    (data_copying.two_sample_accuracy, {"size": None, "seed": 0}),
    (feature_likelihood.FeatureLikelihood, {"weighted": False, "most": 10_000, "seed": 0}),
    (feature_likelihood.feature_likelihood, {"weights": None, "seed": 0}),
    (fidelity.Fidelity, {"interval": False, "infinity": False}),
    (fidelity.Fidelity.controls, {"seed": 0}),
    (frechet.sampling_floor, {"repeats": 5}),
    (frechet.frechet_infinity, {"points": 15}),
    # Naeem et al. 2020.
    (prdc.ManifoldQuality, {"k": 5}),
    (prdc.precision_recall_density_coverage, {"k": 5}),
    (near_duplicates.near_duplicate_labels, {"flip": False, "rule": "auto"}),
    (efficientnet.EfficientNetLite0Features, {"side": 96}),
    (loss_gap.noisy_batches, {"seed": 0, "draws": 1}),
    (loss_gap.OdeEndpoint, {"sigma_min": 0.002, "points": 18}),
    (loss_gap.welch, {"confidence": 0.95}),
    (membership_inference.attack_sigmas, {"time": 100, "interval": 10, "sigma_min": 0.002}),
    (roc.auc, {"confidence": 0.95}),
    (roc.tpr_at_fpr, {"rate": 0.01}),
    (statistics.wilson_interval, {"confidence": 0.95}),
    (statistics.newcombe_paired_difference, {"confidence": 0.95}),
    (statistics.mean_interval, {"confidence": 0.95}),
    (statistics.newcombe_difference, {"confidence": 0.95}),
    (paired.difference, {"paired": True, "error": 0.05}),
    (paired.compare, {"paired": True, "error": 0.05}),
    (equal_noise.equal_noise, {"paired": True, "error": 0.05}),
    (pairs.pair_record, {"cheap": None, "error": 0.05}),
    (
        verdict.Evidence,
        {
            "control_ci95": None,
            "pair": None,
            "limit": None,
            "slow_phase": None,
            "rmse_trend": None,
            "converged": False,
            "as_real": None,
            "equal_nfe": None,
            "specific": None,
        },
    ),
    (statistics.conformal_discoveries, {"suspected": 0.0}),
]


@pytest.mark.parametrize(("made", "values"), DEFAULTS, ids=lambda v: getattr(v, "__qualname__", ""))
def test_documented_defaults(made, values):
    parameters = inspect.signature(made).parameters
    assert {name: parameters[name].default for name in values} == values


def test_documented_constants():
    """Rules of the verdict and of the measurements, as docs and reports state them."""
    assert (claims.MARGIN, claims.LIMIT_MARGIN, convergence.RMSE_MARGIN) == (0.03, 0.05, 0.05)
    assert (verdict.AMPLITUDE, verdict.SIGNIFICANT, images_copied.FEWER) == ((0.9, 1.1), 0.05, 0.8)
    assert (lost_seeds.MOST_DAMAGED, lost_seeds.LEAST_LOST) == (0.1, 20)
    assert fraction.THRESHOLDS == (1 / 2, 1 / 3, 1 / 4)
    assert (near_duplicates.AUTO, near_duplicates.MOST) == (0.5, 8)
    assert (equal_noise.WITHOUT_CONTROL, equal_noise.FALSE_POSITIVES, equal_noise.MIN_SEEDS) == (0.5, 0.01, 20)
    assert (copy_detection.BINS, copy_detection.FALSE_POSITIVES, data_copying.MIN_PER_CELL, extraction.LEVELS) == (
        8,
        0.01,
        20,
        255,
    )
    assert (fidelity.MOST, fidelity.LEAST, HALF_RANGE) == (10_000, 10, 127.5)
    # Jiralerspong et al. 2023, their program.
    assert (
        feature_likelihood.LOWEST,
        feature_likelihood.HIGHEST,
        feature_likelihood.START,
        feature_likelihood.NEARER,
    ) == (-40, 20, 1e-3, 0.9**2)
    assert (seeds.SAMPLES_PER_RUN, seeds.COUNTERS, len(set(seeds.STREAMS.values()))) == (2**20, 2**29, 8)
    assert loss_gap.SEED_OFFSET == 750_000
    measures = (authenticity.Authenticity, prdc.ManifoldQuality)
    assert all(m.higher_is_better for m in measures)
    lower = (fraction.MemorizedFraction, fidelity.Fidelity, feature_likelihood.FeatureLikelihood)
    assert not any(m.higher_is_better for m in (*lower, extraction.AbsoluteExtraction, extraction.AdaptiveExtraction))
    assert inspect.signature(intrinsic_dimension.lid).parameters["seeds"].default == ()


def test_the_methods_that_configs_name_are_the_published_recipes_and_the_defaults():
    methods, classes = (
        {},
        {f"cdmem.distillation.{c.__name__}": c for c in (ConsistencyDistillation, TrajectoryRegression)},
    )
    for file in (ROOT / "configs/methods").glob("*.yaml"):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        distance = getattr(losses, config["init_args"].pop("distance")["class_path"].rpartition(".")[2])()
        methods[file.stem] = classes[config["class_path"]](**config["init_args"], distance=distance)
    cm = ConsistencyDistillation(points=18, solver="heun", distance=losses.L2(), intervals="uniform", mu=0.0)
    ict = ConsistencyDistillation(1280, 10, "doubling", losses.PseudoHuber(), "inverse_gap", mu=0.0)
    small, regression = ConsistencyDistillation(), TrajectoryRegression()
    assert methods == {"small": small, "cm": cm, "ict": ict, "regression": regression}
    assert ConsistencyDistillation().distance == losses.PseudoHuber()
