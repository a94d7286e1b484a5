"""Checks of intervals and tests, hits, pairs, what claims rest on, the verdict, and what is seen inside a model."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from scipy import stats

from cdmem.diffusion import analytic
from cdmem.images import to_float
from cdmem.metrics import statistics
from cdmem.metrics.comparison import convergence, images_copied, lost_seeds, specific, verdict
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
    assert close(found["p_value"], 2 * sum(math.comb(20, k) for k in range(6)) / 2**20)
    assert found["ci95"][0] < found["ci90"][0] < found["ci90"][1] < found["ci95"][1]


def check_unpaired_difference():
    """Newcombe 1998b, method 10: 56 of 70 against 48 of 80; Fisher's test."""
    found = pairing.difference(torch.arange(80) < 48, torch.arange(70) < 56, paired=False)
    assert np.allclose([found["value"], *found["ci95"]], (0.2, 0.0524, 0.3339), atol=6e-5)
    assert close(found["p_value"], stats.fisher_exact([[56, 14], [48, 32]]).pvalue)


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


def copier(sd, seed=1):
    """Eight images, and copies of them under noise."""
    train = random_images(8, SHAPE)
    noise = torch.randn(SEEDS, *SHAPE, generator=rng(seed))
    return train, matching.add_noise(train[torch.arange(SEEDS) % 8], noise, sd)


def matched(student_of, swap=False, paired=True):
    """The comparison at equal noise of a teacher that copies with a student made from its samples, or of the two with
    their parts exchanged."""
    train, teacher = copier(2.0)
    index = search.group_index(make_training_set(train))
    pair = [teacher, student_of(teacher)][:: -1 if swap else 1]
    control = torch.linspace(0.8, 1, 199)
    return matching.equal_noise(*pair, *(rows_of(index, x) for x in pair), index, 1 / 3, control, paired)


def covers_zero(difference):
    return difference["ci95"][0] <= 0 <= difference["ci95"][1]


def check_only_noise_is_no_difference(swap=False):
    """Copies past 1/3 are recognised, and at equal noise the sharper side loses as many, whichever it is; also where
    half of the copies are clean, and where the noise differs from seed to seed."""
    noise, uneven = torch.randn(SEEDS, *SHAPE, generator=rng(2)), np.random.default_rng(3).gamma(3.0, 16.0, SEEDS)
    noised = "student" if swap else "teacher"
    for levels in (35.0, torch.where(torch.arange(SEEDS) // 8 % 2 == 0, 2.0, 70.0), torch.from_numpy(uneven)):
        found = matched(lambda teacher, levels=levels: matching.add_noise(teacher, noise, levels), swap=swap)
        assert found["common"] > 0.95 * SEEDS and found["noised"] == noised
        assert 0.2 < found["f_mem"] < 0.8 and covers_zero(found["difference"])
    # Five seeds of the last case are noisier than anything that is recognised.
    assert abs(found["recognised"]["value"]) < 0.02 and found["recognised_at"] > 0.8


def check_leaving_the_copies_is_a_loss():
    """Half of the seeds show other images."""
    other = random_images(SEEDS, SHAPE, seed=3)
    found = matched(lambda teacher: torch.cat([other[: SEEDS // 2], teacher[SEEDS // 2 :]]))
    assert found["noise"] < 1 and found["difference"]["value"] == -0.5 and found["difference"]["ci95"][1] < 0


def check_noise_is_clamped():
    """At black and white half of the noise is swallowed, so more of it is due."""
    targets = random_images(60, SHAPE, high=2) * 255
    index, groups = search.group_index(make_training_set(targets)), torch.arange(60)
    first, second = (torch.randn(60, *SHAPE, generator=rng(k)) for k in (4, 5))
    wanted = rows_of(index, matching.add_noise(targets, second, 12.0))["squared"][:, 0]
    levels = matching.matching_levels(targets, first, groups, index, 0.9, wanted)
    assert abs(float(levels.mean()) / 12 - 1) < 0.05


def check_unrelated_seeds_are_not_paired():
    """The same copies for other seeds: nothing is in common by seed, and nothing differs, within the interval of two
    independent shares."""
    noise = torch.randn(SEEDS, *SHAPE, generator=rng(2))
    found = matched(lambda teacher: matching.add_noise(teacher.roll(1, 0), noise, 35.0), paired=False)
    assert found["common"] > 0.95 * SEEDS and covers_zero(found["difference"])
    hits = [round(SEEDS * share) for share in (found["f_mem"] + found["difference"]["value"], found["f_mem"])]
    wanted = statistics.newcombe_difference(hits[0], SEEDS, hits[1], SEEDS)
    assert close(found["difference"]["ci95"], wanted[1:])


def check_images_copied():
    """Hypergeometric: 2 of 6 copies are of different images with probability 1 - (1/5 + 1/15)."""
    assert close(images_copied.expected_distinct(np.array([3, 2, 1]), 2), 1 + 11 / 15)
    even, few = np.repeat(np.arange(40), 5), np.repeat(np.arange(20), 10)
    found = images_copied.images_copied(even, few)
    assert (found["teacher"], found["student"], found["fewer"]) == (40, 20, True)
    # A tenth of the copies, drawn from the same images: fewer images, but not for their number.
    assert images_copied.images_copied(even, even[::10])["fewer"] is False


def fates(**columns):
    """Rows of ten seeds."""
    d1 = torch.tensor(columns["d1"])
    return {"squared": torch.stack([d1, torch.full_like(d1, 100)], 1), "groups": torch.tensor(columns["to"])[:, None]}


def check_lost_seeds():
    """Ten seeds: eight copied by the teacher, of which the student keeps two; of the six lost three are nearest to the
    same image, two of them seen; one is seen beside another. Chance: images 0 and 1 copied by 4 and 2 of the lost."""
    teacher = fates(d1=[1, 1, 1, 1, 1, 1, 1, 1, 90, 90], to=[0, 0, 0, 0, 1, 1, 1, 0, 3, 3])
    student = fates(d1=[25, 25, 90, 90, 25, 90, 1, 1, 1, 90], to=[0, 0, 0, 1, 2, 3, 1, 5, 3, 3])
    found = lost_seeds.lost_seeds(teacher, student, 1 / 3, 0.6)
    shares = [found[key]["value"] for key in ("nearest_to_same", "damaged", "like_another")]
    assert found["count"] == 6 and close(shares, [3 / 6, 2 / 6, 1 / 6])
    assert close(found["chance"], 4 / 6 * 3 / 6 + 2 / 6 * 1 / 6)
    many = {"count": 30, "damaged": {"value": 0.5}, "like_another": {"value": 0.4}}
    assert close(lost_seeds.damaged_share(many), 0.1) and lost_seeds.damaged_share(many | {"count": 19}) is None
    gone = lost_seeds.damaged_share_unpaired(change(-0.4), change(-0.1))
    assert close(gone, 0.75) and lost_seeds.damaged_share_unpaired(change(0.01), change(0.0)) is None


def check_specific():
    """Below every control, by limits where they are trained; equal to one of them; and not known."""
    control = {"name": "a", "difference": change(-0.2), "limit": change(-0.1), "trained": True}
    found = [
        specific.specific_record(change(*limit), [specific.Control(**control)])["holds"]
        for limit in ((-0.3,), (-0.1,), (-0.13, 0.06))
    ]
    assert found == [True, False, None]
    given = specific.Control("b", change(-0.2))
    assert specific.specific_record("none", [given])["holds"] is True
    assert specific.specific_record("none", [given, specific.Control(**control)])["holds"] is None
    apart = specific.difference_of_limits(change(-0.3, 0.03), change(-0.1, 0.04))
    assert close([apart["value"], *apart["ci95"]], [-0.2, -0.25, -0.15])


# ---- convergence and verdict ----------------------------------------------------------------------------------------


def check_convergence():
    """From the last evaluation before the last third to the end, paired by seed, in any order."""
    seeds, spread = np.arange(1000), np.random.default_rng(0).gamma(4.0, size=1000)
    curve = {766: (seeds, 9 * spread), 1533: (seeds, 4 * spread), 2300: (seeds[:400:-1], spread[:400:-1])}
    falling = convergence.rmse_convergence(curve)
    assert (falling.from_step, falling.to_step, falling.trend) == (1533, 2300, "falling")
    assert close(falling.change, -0.5)
    assert convergence.rmse_convergence({200: (seeds, spread), 300: (seeds, 4 * spread)}).trend == "rising"
    # A drop of 2 % that nobody doubts lies within the 5 % of standing still.
    assert convergence.rmse_convergence({200: (seeds, spread), 300: (seeds, 0.96 * spread)}).trend == "stopped"
    # Up and down from step to step, alike for all seeds: the last lies above the first, and nothing rises.
    noisy = {200 + 10 * k: (seeds, y * spread) for k, y in enumerate((0.9, 1.1, 1.15, 0.92, 0.95, 1.1))}
    assert convergence.rmse_convergence(noisy).trend == "undetermined"


def change(value, half=0.02, p=1e-6, holm=None):
    bounds = {"ci95": [value - half, value + half], "ci90": [value - 0.8 * half, value + 0.8 * half]}
    return {"value": value, **bounds, "p_value": p, "p_holm": p if holm is None else holm}


def student(value=-0.3, tolerant=-0.28, recognised=-0.2, noise=-0.25, damaged=False, fewer=False, **options):
    at = {"recognised": change(recognised), "difference": None if noise is None else change(noise)}
    pair = {"difference": change(value, **options), "matched": at, "damaged": damaged, "damaged_share": 0.3 * damaged}
    pair |= {"tolerant": None if tolerant is None else change(tolerant), "seeds_belong_together": True}
    return pair | {"images": {"teacher": 90, "student": 80, "fewer": fewer}}


def limits(strict, tolerant=None, half=0.03):
    return {"strict": change(strict, half), "tolerant": change(strict if tolerant is None else tolerant, half)}


REDUCED = {
    "variance_ratio": 1.0,
    "pair": student(),
    "teacher_ci95": (0.55, 0.65),
    "control_ci95": (0.0, 0.01),
    "limit": limits(-0.2),
    "slow_phase": {"after": change(-0.25)},
    "rmse_trend": {"trend": "falling"},
    "as_real": True,
}
MORE = {"pair": student(0.1, 0.1, 0.1, 0.1), "limit": limits(0.1)}
CASES = {
    "reduced": ({}, "reduced", ""),
    "unpaired": ({"pair": None}, "unpaired", "no teacher"),
    "faint": ({"variance_ratio": 0.8}, "not_distilled", "variance ratio"),
    "loud": ({"variance_ratio": 1.2}, "not_distilled", "variance ratio"),
    "leaving the teacher": ({"rmse_trend": {"trend": "rising"}}, "not_distilled", "rmse rising"),
    "teacher like control": ({"control_ci95": (0.3, 0.57)}, "nothing_to_transfer", "teacher at control level"),
    "no limit": ({"limit": {"strict": "still linear"}}, "undecided", "no limit can be given: still linear"),
    "for a time": ({"limit": limits(0.0)}, "transient", ""),
    "little, for good": (
        {"pair": student(-0.06), "limit": limits(-0.04, half=0.005)},
        "undecided",
        "reduced now, and 67 % of it stays in the limit",
    ),
    "limit unclear": ({"limit": limits(-0.03, half=0.05)}, "undecided", "reduced now, limit unclear"),
    "another limit": ({"limit": limits(-0.2, 0.0)}, "undecided", "another limit for tolerant copies"),
    "not tolerant": ({"pair": student(tolerant=0.0)}, "undecided", "not for tolerant copies"),
    "tolerant unknown": ({"pair": student(tolerant=None)}, "undecided", "tolerant copies unavailable"),
    "blurrier": ({"pair": student(noise=0.0)}, "undecided", "may only be blurrier"),
    "not recognised": ({"pair": student(recognised=0.0)}, "undecided", "may only be blurrier"),
    "only damaged copies": ({"pair": student(damaged=True)}, "undecided", "damaged"),
    "damaged": ({"pair": student(noise=None), "as_real": False}, "undecided", "may only be damaged"),
    "no slow phase": ({"slow_phase": None}, "undecided", "no phase at a lower learning rate"),
    "slow phase": ({"slow_phase": {"after": change(0.0)}}, "undecided", "closes at a lower learning rate"),
    "one of many": (
        {"pair": student(p=0.01, holm=0.06)},
        "undecided",
        "the difference now is unclear, but reduced in the limit",
    ),
    "sure of little": ({"pair": student(-0.01, half=0.001), "limit": limits(-0.01, half=0.001)}, "unchanged", ""),
    "wide": (
        {"pair": student(0.0, half=0.05), "limit": limits(0.0)},
        "undecided",
        "the difference now is unclear, unchanged in the limit",
    ),
    "more": (MORE, "amplified", ""),
    "more of fewer": (MORE | {"pair": student(0.1, 0.1, 0.1, 0.1, fewer=True)}, "amplified, of fewer images", ""),
    "sharper": (MORE | {"pair": student(0.1, 0.1, 0.1, 0.0)}, "undecided", "may only be sharper"),
    "converged": ({"limit": None, "slow_phase": None, "converged": True}, "reduced", ""),
}


def check_verdict(name):
    """One case of the rule: what changes against a reduced student, claim and reason."""
    changes, claim, reason = CASES[name]
    found = verdict.judge(verdict.Evidence(**copy.deepcopy(REDUCED) | changes))
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
