"""Checks of intervals and tests, hits, pairs, convergence, the verdict, and of what is seen inside a model."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from cdmem.diffusion import analytic
from cdmem.images import to_float
from cdmem.metrics import statistics
from cdmem.metrics.comparison import convergence, verdict
from cdmem.metrics.comparison import equal_noise as matching
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.memorization import coverage, extraction
from cdmem.metrics.neighbors import index as search
from cdmem.metrics.whitebox import empirical_optimum as optimum
from cdmem.metrics.whitebox import intrinsic_dimension as dimension
from cdmem.metrics.whitebox import loss_gap, roc
from cdmem.metrics.whitebox import membership_inference as membership
from support.measurement import close, normal
from support.parts import make_training_set, random_images, refused, rng

# ---- intervals and tests --------------------------------------------------------------------------------------------


def check_wilson():
    """Newcombe 1998, table I: 0 of 20 and 15 of 148."""
    for (k, n), wanted in {(0, 20): (0, 0.1611), (15, 148): (0.0624, 0.1605)}.items():
        assert np.allclose(statistics.wilson_interval(k, n), wanted, atol=6e-5)


def check_newcombe():
    """Newcombe 1998, method 10: the published example, and one whose correlation is corrected for continuity."""
    found = statistics.newcombe_paired_difference(36, 12, 2, 0)
    assert np.allclose(found, (0.2, 0.0569, 0.3404), atol=6e-5)
    phi = (20 * 66 - 5 * 9 - 50) / math.sqrt(25 * 75 * 29 * 71)
    (low1, _), (_, high2) = statistics.wilson_interval(25, 100), statistics.wilson_interval(29, 100)
    a, b = 0.25 - low1, high2 - 0.29
    low = -0.04 - math.sqrt(a * a - 2 * phi * a * b + b * b)
    assert close(statistics.newcombe_paired_difference(20, 5, 9, 66)[1], low)


def check_families_of_tests():
    """Holm is monotone; Benjamini and Hochberg step up from the last p value that passes."""
    assert close(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    p = np.array([0.04, 0.001, 0.035, 0.9])
    assert statistics.benjamini_hochberg(p, 0.06).tolist() == [True, True, True, False]


def check_conformal():
    """The sample itself counts among the controls, ties against it; 99 controls carry a rate of 1 %."""
    p = statistics.conformal_p_values(np.array([0.5, 2.0, 9.0]), np.array([3.0, 1.0, 4.0, 2.0]))
    assert close(p, [1 / 5, 3 / 5, 1])
    assert extraction.conformal_threshold(torch.arange(99), 0.01) == 0.0
    assert extraction.conformal_threshold(torch.arange(98), 0.01) is None


def check_roc():
    """No more than 1 % of the others exceed the threshold, and exceeding is strict; ties are half right."""
    others = np.arange(200.0)
    assert roc.tpr_at_fpr(others + 50, others).value == 52 / 200
    assert roc.auc(np.array([1.0, 2.0]), np.array([1.0, 0.0])).value == 3.5 / 4


def check_hits():
    """Chao's and Good and Turing's estimates by hand: S = 5, f1 = 3, f2 = 1, 10 memorised samples."""
    found = coverage.coverage(torch.tensor([0, 1, 1, 1, 2, 5, 0, 0]))
    assert close([found["unique"], found["chao1"], found["good_turing"]], [5, 5 + 3 * 2 / (2 * 2), 1 - 3 / 10])


def check_duplication_slope():
    """Who draws rows of T at random answers repetitions with slope 1."""
    train, copies = random_images(9, (1, 4, 4)), torch.tensor([1, 2, 8]).repeat(3)
    metric = coverage.HitCoverage().prepare(make_training_set(train, copies))
    samples = train.repeat_interleave(copies, 0)
    metric.update(samples, torch.arange(len(samples)))
    found = metric.compute()
    assert close(found["duplication_slope"], 1, 1e-6) and found["most_hits"] == 8


# ---- pairs ----------------------------------------------------------------------------------------------------------


def yes(*values):
    return torch.tensor(values, dtype=torch.bool)


def check_difference():
    """Student minus teacher; McNemar on the pairs that disagree: 20 both, 5 teacher, 15 student, 60 neither."""
    counts = torch.tensor([20, 5, 15, 60])
    teacher, student = (yes(*v).repeat_interleave(counts) for v in ([1, 1, 0, 0], [1, 0, 1, 0]))
    found = pairing.difference(teacher, student)
    assert close(found["value"], 0.1) and found["ci95"][0] > 0
    assert close(found["p_mcnemar"], 2 * sum(math.comb(20, k) for k in range(6)) / 2**20)


def check_transfer():
    teacher, student = yes(1, 1, 1, 0, 0, 1, 0, 1), yes(1, 1, 0, 1, 0, 1, 0, 0)
    groups = torch.tensor([4, 4, 2, 1, 3, 0, 5, 1]), torch.tensor([4, 2, 2, 1, 3, 0, 6, 1])
    table = pairing.transfer_table(teacher, student, *groups)
    assert table == {"kept_same": 2, "kept_other": 1, "lost": 2, "gained": 1, "neither": 2}


def check_identity():
    """Agreement beside chance: same 1 of 4, p = (3/4, 1/4), q = (1/4, 3/4), chance 3/8."""
    found = pairing.identity_agreement(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 0, 1, 1])[[0, 2, 3, 1]])
    assert close([found["same"], found["chance"], found["kappa"]], [0, 3 / 8, -(3 / 8) / (5 / 8)])


def check_pairs_are_of_one_seed():
    rows = {"seeds": torch.arange(3), "squared": torch.tensor([[1, 90]] * 3), "groups": torch.zeros(3, 2).long()}
    assert refused(lambda: pairing.compare(rows, rows | {"seeds": torch.arange(3) + 1}, 1 / 3))


SHAPE, SEEDS = (3, 8, 8), 400


def rows_of(index, images):
    found = index.query(images, 2)
    return {"seeds": torch.arange(len(images)), "squared": found.squared, "groups": found.groups}


def matched(student_of, flip=False):
    """The comparison at equal noise of a teacher that copies with a student made from its samples."""
    train = random_images(8, SHAPE)
    teacher = matching.add_noise(train[torch.arange(SEEDS) % 8], torch.randn(SEEDS, *SHAPE, generator=rng(1)), 2.0)
    if flip:
        teacher[100:] = teacher[100:].flip(-1)
    index = search.group_index(make_training_set(train, flip=flip))
    student = student_of(teacher)
    return matching.fidelity_matched(teacher, rows_of(index, teacher), rows_of(index, student), index, 1 / 3, None)


def check_blur_is_no_loss():
    """Noisy copies past 1/3 are recognised, and at equal noise the teacher loses as many; a third of them is left."""
    noise = torch.randn(SEEDS, *SHAPE, generator=rng(2))
    found = matched(lambda teacher: matching.add_noise(teacher, noise, 60.0))
    assert found["recognised_at"] == 0.5 and found["common"] > SEEDS / 4
    assert abs(found["noise"] - 60) < 1.5 and found["teacher_f_mem"] < 0.5 and found["difference"]["ci95"][1] >= 0
    mirrored = matched(lambda teacher: matching.add_noise(teacher, noise, 8.0), flip=True)
    assert mirrored["common"] == SEEDS and abs(mirrored["noise"] - 8) < 1


def check_leaving_the_copies_is_a_loss():
    """Half of the seeds show other images."""
    other = random_images(SEEDS, SHAPE, seed=3)
    found = matched(lambda teacher: torch.cat([other[: SEEDS // 2], teacher[SEEDS // 2 :]]))
    assert found["noise"] == 0.0 and found["difference"]["value"] == -0.5 and found["difference"]["ci95"][1] < 0


def check_noise_is_clamped():
    """At black and white half of the noise is swallowed, so more of it is due."""
    targets = random_images(60, SHAPE, high=2) * 255
    first, second = (torch.randn(60, *SHAPE, generator=rng(k)) for k in (4, 5))
    wanted = (matching.add_noise(targets, second, 12.0).double() - targets).square().flatten(1).sum(1)
    assert abs(matching.copy_noise(targets, first, targets, wanted) / 12 - 1) < 0.05


# ---- convergence and verdict ----------------------------------------------------------------------------------------


def check_convergence():
    """Between the first evaluation of the last third and the end, paired by seed, in any order."""
    seeds = np.arange(1000)
    shares = (0.2, 0.2, 0.2, 0.3, 0.4, 0.5)
    curve = {100 * (k + 1): (seeds, seeds < 1000 * f) for k, f in enumerate(shares)}
    found = convergence.convergence(curve)
    assert (found.from_step, found.to_step, found.trend) == (400, 600, "rising") and close(found.change, 0.2)
    flat = {200: (seeds, seeds < 500), 300: (seeds[::-1], seeds[::-1] < 500)}
    assert convergence.convergence(flat).trend == "stopped"
    spread = np.random.default_rng(0).gamma(4.0, size=1000)
    falling = convergence.rmse_convergence({200: (seeds, 4 * spread), 300: (seeds, spread)})
    assert falling.trend == "falling" and close(falling.change, -0.5)
    # A drop of 2 % that nobody doubts lies within the 5 % of standing still.
    assert convergence.rmse_convergence({200: (seeds, spread), 300: (seeds, 0.96 * spread)}).trend == "stopped"


def change(value, half=0.02, p=1e-6, holm=None):
    return {"value": value, "ci95": [value - half, value + half], "p_mcnemar": p, "p_holm": p if holm is None else holm}


def trend(name="stopped", value=0.0, half=0.01):
    ends = {"low": value - half, "high": value + half}
    return {"trend": name, "change": value, "from_step": 4, "to_step": 6, "samples": 1000} | ends


def student(value=-0.3, recognised=-0.2, noise=-0.25, **options):
    at = {"recognised": change(recognised), "difference": None if noise is None else change(noise)}
    return {"difference": change(value, **options), "matched": at}


REDUCED = {
    "variance_ratio": 1.0,
    "paired": student(),
    "teacher_ci95": (0.55, 0.65),
    "control_ci95": (0.0, 0.01),
    "f_mem_trend": trend(),
    "rmse_trend": trend(),
    "annealed": False,
    "as_real": True,
}
CASES = {
    "reduced": ({}, "reduced", ""),
    "unpaired": ({"paired": None}, "unpaired", "no teacher"),
    "faint": ({"variance_ratio": 0.8}, "not_distilled", "variance ratio"),
    "loud": ({"variance_ratio": 1.2}, "not_distilled", "variance ratio"),
    "leaving the teacher": ({"rmse_trend": trend("rising", 0.2)}, "not_distilled", "rmse rising"),
    "teacher like control": ({"control_ci95": (0.3, 0.57)}, "nothing_to_transfer", "teacher at control level"),
    "unknown": ({"f_mem_trend": None}, "undecided", "convergence unknown"),
    "rising": ({"f_mem_trend": trend("rising", 0.05)}, "undecided", "still rising"),
    "falling": ({"f_mem_trend": trend("falling", -0.05)}, "undecided", "still falling"),
    "few samples of the curve": ({"f_mem_trend": trend("undetermined")}, "undecided", "may still be moving"),
    "approaching": ({"rmse_trend": trend("falling", -0.2)}, "undecided", "rmse still falling"),
    "annealed": ({"annealed": True}, "undecided", "learning rate annealed to 0"),
    "pace": ({"paired": student(-0.07), "f_mem_trend": trend(value=0.02)}, "undecided", "could change if it went on"),
    "blurrier": ({"paired": student(noise=0.0)}, "undecided", "may only be blurrier"),
    "not recognised": ({"paired": student(recognised=0.0)}, "undecided", "may only be blurrier"),
    "damaged": ({"paired": student(noise=None), "as_real": False}, "undecided", "may only be damaged"),
    "one of many": ({"paired": student(p=0.01, holm=0.06)}, "undecided", "too few samples"),
    "wide": ({"paired": student(0.0, half=0.05)}, "undecided", "too few samples"),
    "more": ({"paired": student(0.1), "annealed": True}, "amplified", ""),
}


def check_verdict(name):
    """One case of the rule: what changes against a reduced student, claim and reason."""
    changes, claim, reason = CASES[name]
    found = verdict.judge(**copy.deepcopy(REDUCED) | changes)
    assert (found.claim, found.reason) == (claim, reason)


# ---- inside ---------------------------------------------------------------------------------------------------------


def check_loss_gap():
    """D* of T: no loss on T, the squared distance to T on H; a gap above 0; the same noise for T and H."""
    train, held_out = random_images(12, (1, 4, 4)), random_images(12, (1, 4, 4), seed=1)
    best = analytic.EmpiricalDenoiser(to_float(train))
    losses = [loss_gap.denoising_losses(best, side, [1e-3]) for side in (train, held_out)]
    found = loss_gap.loss_gap(*losses)[0]
    assert found.gap.low > 0 and found.separation.auc.value == 1 and found.train < 1e-12 < found.held_out
    noises = [next(loss_gap.noisy_batches(side, [2.0])) for side in (train, held_out)]
    assert torch.allclose(*(batch.x - batch.clean for batch in noises), rtol=0, atol=1e-12)


def check_endpoint():
    """The closed-form solution of a Gaussian's ODE has no loss against the teacher's own end points."""
    images = random_images(6, (1, 2, 2))
    gaussian = analytic.GaussianDenoiser.fit(to_float(random_images(40, (1, 2, 2), seed=1)))
    end = loss_gap.OdeEndpoint(gaussian, points=40)
    exact = lambda x, sigma, labels=None: gaussian.endpoint(x, sigma, 0.0)  # noqa: E731
    assert float(loss_gap.endpoint_losses(exact, end, images, [0.3, 2.0]).max()) < 1e-4


def check_membership():
    """A straight path leads back to where it came from; small errors are the members'."""
    images = random_images(5, (1, 4, 4))
    assert float(membership.secmi(lambda x, s, c=None: torch.full_like(x, 0.3), images).max()) < 1e-18
    assert membership.membership(normal(30, 1, 0)[:, 0], normal(30, 1, 1)[:, 0] + 9).auc.value == 1


def check_dimension():
    """A linear Gaussian: sum l / (l + s^2), and the residual off the mean."""
    gaussian, sigma = analytic.GaussianDenoiser(torch.zeros(1, 1, 2), torch.diag(torch.tensor([1.0, 4.0]))), 0.5
    found = dimension.lid(gaussian, torch.tensor([[[[1.0, 2.0]]]]), sigma).value
    trace = 1 / 1.25 + 4 / 4.25
    assert close(found, [trace + (1 * sigma / 1.25) ** 2 + (2 * sigma / 4.25) ** 2], 1e-6)


def check_optimum():
    """D* sees what training sees: repetitions, and mirror images."""
    images, copies = random_images(4, (1, 2, 2)), torch.tensor([1, 1, 1, 30])
    best = optimum.training_optimum(make_training_set(images, copies, flip=True), False)
    rows = torch.cat([images, images.flip(-1)]).repeat_interleave(copies.repeat(2), 0)
    x, sigma = normal(5, 4, 0).reshape(5, 1, 2, 2), torch.full((5,), 2.0, dtype=torch.float64)
    assert close(best(x, sigma), analytic.EmpiricalDenoiser(to_float(rows))(x, sigma), 1e-6)
