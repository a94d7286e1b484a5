"""Bugs of intervals and tests, hits, pairs, convergence, the verdict, and of what is seen inside a model."""

from __future__ import annotations

import itertools

import support
from cdmem.diffusion.sampling import NoiseSource
from cdmem.metrics import statistics
from cdmem.metrics.comparison import convergence, verdict
from cdmem.metrics.comparison import equal_noise as matching
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.comparison.equal_noise import fidelity_matched
from cdmem.metrics.comparison.verdict import judge
from cdmem.metrics.memorization import coverage, duplication, extraction
from cdmem.metrics.statistics import newcombe_paired_difference
from cdmem.metrics.whitebox import empirical_optimum as optimum
from cdmem.metrics.whitebox import intrinsic_dimension as dimension
from cdmem.metrics.whitebox import loss_gap, roc
from cdmem.metrics.whitebox import membership_inference as membership
from support.faults.frame import fault, patch, plant, slip

# ---- intervals and tests --------------------------------------------------------------------------------------------


def wald(k, n):
    """[0, 0] for none of n."""
    return tuple(k / n + z * (k / n * (1 - k / n) / n) ** 0.5 for z in (-1.96, 1.96))


plant(support.check_wilson, wald_interval=patch(statistics, "wilson_interval", lambda _: wald))
plant(
    support.check_newcombe,
    unpaired_interval=slip(newcombe_paired_difference, "phi = cross / math.sqrt(margins)", "pass"),
    correlation_not_corrected=slip(newcombe_paired_difference, "max(cross - n / 2, 0.0)", "cross"),
)
plant(
    support.check_families_of_tests,
    holm_without_its_monotone_step=slip(statistics.holm, "max(worst, min(", "max(0.0, min("),
    steps_down_from_the_first_failure=slip(
        statistics.benjamini_hochberg, "passed[-1] + 1", "(passed == range(len(passed))).sum()"
    ),
)
plant(
    support.check_conformal,
    sample_not_among_the_controls=slip(statistics.conformal_p_values, "(1 + np.", "(0 + np."),
    ties_for_the_sample=slip(statistics.conformal_p_values, 'side="right"', 'side="left"'),
    quantile_of_h_instead_of_h_plus_one=slip(extraction.conformal_threshold, "len(control) + 1", "len(control)"),
)
plant(
    support.check_roc, one_false_positive_too_many=slip(roc.tpr_at_fpr, "members > threshold", "members >= threshold")
)
plant(
    support.check_hits,
    good_turing_of_unique_images=slip(coverage.coverage, "1 - once / total", "1 - once / unique"),
    chao_without_its_correction=slip(coverage.chao1, "a, b = once, twice + 1", "a, b = once, max(twice, 1)"),
    chao_counts_pairs_for_singles=slip(
        coverage.chao1, "(hits > 0, hits == 1, hits == 2)", "(hits > 0, hits == 2, hits == 1)"
    ),
)
plant(
    support.check_duplication_slope,
    slope_against_copies_instead_of_their_logarithm=slip(
        duplication.HitLikelihood.__init__, "np.log(rows[0])", "rows[0].astype(float)"
    ),
    hits_weighted_by_rows=patch(
        coverage.HitCoverage,
        "hits_by_group",
        lambda real: lambda self, rows: self.search.multiplicities * real(self, rows),
    ),
)

# ---- pairs ----------------------------------------------------------------------------------------------------------

plant(
    support.check_difference,
    teacher_minus_student=slip(pairing.difference, "(both, gained, lost, neither)", "(both, lost, gained, neither)"),
    mcnemar_of_concordant_pairs=slip(pairing.difference, "mcnemar_exact(gained, lost)", "mcnemar_exact(both, neither)"),
)
plant(
    support.check_transfer,
    another_image_kept_counts_as_the_same=slip(pairing.transfer_table, "(both & same).sum()", "both.sum()"),
    lost_and_gained_exchanged=slip(pairing.transfer_table, "(teacher & ~student)", "(student & ~teacher)"),
)
plant(
    support.check_identity,
    chance_of_one_model_with_itself=slip(pairing.identity_agreement, "(p * q).sum()", "(p * p).sum()"),
)
plant(
    support.check_pairs_are_of_one_seed,
    other_seeds_compared=slip(pairing.compare, "if not torch.equal(teacher[SEEDS], student[SEEDS])", "if False"),
)
plant(
    support.check_blur_is_no_loss,
    recognised_only_where_memorised=patch(
        matching, "recognition_threshold", lambda _: lambda control, threshold: threshold
    ),
    teacher_compared_without_noise=slip(fidelity_matched, "add_noise(teacher_images, noise, level)", "teacher_images"),
    noisiest_copies_drop_out_of_one_side_only=slip(fidelity_matched, "if level > 0", "if False"),
    mirrored_copies_measured_against_the_image=slip(
        matching._copied_images, "(mirrored < as_is) if search.flip", "(mirrored < as_is) if False"
    ),
)
plant(
    support.check_leaving_the_copies_is_a_loss,
    noisy_teacher_compared_with_itself=slip(
        fidelity_matched, 'hit_s = memorized(student["squared"][', 'hit_s = memorized(teacher["squared"]['
    ),
    noise_matched_on_lost_seeds_too=slip(fidelity_matched, "common = seen_t & seen_s &", "common = seen_t | seen_s |"),
)
plant(
    support.check_noise_is_clamped,
    noise_matched_without_clamping=slip(
        matching.copy_noise, "add_noise(teacher, noise, middle)", "teacher.double() + middle * noise"
    ),
)

# ---- convergence and verdict ----------------------------------------------------------------------------------------

plant(
    support.check_convergence,
    judged_on_the_first_third=slip(
        convergence._ends, "if s >= 2 / 3 * steps[-1]", "if s <= 1 / 3 * steps[-1] or len(steps) < 3"
    ),
    trend_with_the_other_sign=slip(
        convergence.convergence, "int((a & ~b).sum()), int((~a & b).sum())", "int((b & ~a).sum()), int((~b & a).sum())"
    ),
    seeds_paired_by_position=slip(
        convergence._ends, "np.array([after[s] for s in shared])", "np.array(list(after.values()))"
    ),
    rmse_trend_with_the_other_sign=patch(convergence, "mean_interval", lambda real: lambda change: real(-change)),
    change_of_the_square_called_change_of_rmse=slip(
        convergence.rmse_convergence, "float(np.sqrt(max(1 + x / base, 0.0)))", "float(1 + x / base)"
    ),
)


def unconverged(change):
    """Patched to see other trends of f_mem and rmse, or another schedule."""
    return patch(
        verdict, "unconverged", lambda real: lambda f_mem, rmse, annealed: real(*change(f_mem, rmse, annealed))
    )


def stopped(record, trend):
    return {"trend": "stopped"} if record and record["trend"] == trend else record


def blind_to(trend):
    return unconverged(lambda f_mem, rmse, annealed: (stopped(f_mem, trend), rmse, annealed))


for case, bugs in {
    "faint": {"amplitude_of_four_fifths": patch(verdict, "AMPLITUDE", lambda _: (0.8, 1.1))},
    "leaving the teacher": {
        "rising_rmse_passes_for_distilled": slip(judge, 'if checks["rmse_not_rising"] is False', "if False")
    },
    "teacher like control": {"control_without_its_interval": slip(judge, "control_ci95[1]", "control_ci95[0]")},
    "unknown": {
        "unknown_convergence_is_convergence": slip(verdict.unconverged, 'return "convergence unknown"', "return None")
    },
    "rising": {"reduced_although_rising": blind_to("rising")},
    "falling": {"reduced_although_falling": blind_to("falling")},
    "few samples of the curve": {"reduced_although_nobody_knows": blind_to("undetermined")},
    "approaching": {
        "reduced_although_rmse_falls": unconverged(lambda f, rmse, annealed: (f, stopped(rmse, "falling"), annealed))
    },
    "annealed": {"reduced_although_annealed": unconverged(lambda f_mem, rmse, _: (f_mem, rmse, False))},
    "pace": {"reduced_for_the_moment": patch(verdict, "HORIZON", lambda _: 0)},
    "blurrier": {"reduced_although_only_blurrier": slip(judge, ' or checks["below_at_equal_noise"] is False', "")},
    "not recognised": {
        "reduced_although_copies_are_recognised": slip(judge, 'checks["below_at_recognition"] is not True or ', "")
    },
    "damaged": {
        "reduced_although_only_damaged": slip(judge, "is None and as_real is False", "is None and as_real is None")
    },
    "one of many": {
        "family_not_adjusted": patch(
            verdict, "_significant", lambda real: lambda d: real({k: v for k, v in d.items() if k != "p_holm"})
        )
    },
    "wide": {
        "unchanged_because_not_significant": slip(
            judge, 'difference["ci95"][0] >= -MARGIN and difference["ci95"][1] <= MARGIN', "True"
        )
    },
    "more": {
        "amplified_needs_convergence": slip(
            judge, 'if difference["ci95"][0] > 0 and', "if trouble is None and difference['ci95'][0] > 0 and"
        )
    },
}.items():
    plant(support.check_verdict, case, **bugs)

# ---- inside ---------------------------------------------------------------------------------------------------------


@fault(support.check_loss_gap)
def fresh_noise_for_held_out_images(m):
    calls = itertools.count()
    m.setattr(loss_gap, "NoiseSource", lambda seeds, shape: NoiseSource([s + 1000 * next(calls) for s in seeds], shape))


plant(
    support.check_loss_gap,
    gap_of_train_minus_held_out=patch(loss_gap, "welch", lambda real: lambda h, t: real(t, h)),
    members_have_the_larger_loss=patch(loss_gap, "separation", lambda real: lambda t, h: real(-t, -h)),
)
plant(
    support.check_endpoint,
    endpoint_is_the_clean_image=slip(
        loss_gap.endpoint_losses, "teacher_endpoint(batch.x, batch.sigma, batch.labels)", "batch.clean"
    ),
    endpoint_is_the_posterior_mean=patch(
        loss_gap.OdeEndpoint, "__call__", lambda _: lambda self, x, sigma, labels=None: self.denoiser(x, sigma, labels)
    ),
)
plant(
    support.check_membership,
    no_step_back=slip(membership.secmi, "back = euler_step(denoiser, up, there, here, classes)", "back = up"),
    large_errors_are_the_members=patch(membership, "separation", lambda real: lambda t, h: real(-t, -h)),
)
plant(
    support.check_dimension,
    dimension_without_residual=patch(dimension, "_lid", lambda real: lambda *a: (values := real(*a))[2:3] + values[1:]),
    residual_in_other_units=slip(dimension._lid, "/ sigma**2", "/ sigma**4"),
)
plant(
    support.check_optimum,
    optimum_of_every_image_once=slip(optimum.training_optimum, "to_float(images), copies,", "to_float(images), None,"),
    optimum_without_mirror_images=slip(optimum.training_optimum, "images.flip(-1)", "images"),
)
