"""Bugs of intervals and tests, hits, pairs, what claims rest on, the verdict, and what is seen inside a model."""

from __future__ import annotations

import itertools

import torch

import support
from cdmem.diffusion.sampling import NoiseSource
from cdmem.metrics import statistics
from cdmem.metrics.comparison import convergence, images_copied, lost_seeds, specific, verdict
from cdmem.metrics.comparison import equal_noise as matching
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.comparison.equal_noise import equal_noise
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
    teacher_minus_student=slip(
        pairing.difference_interval,
        "(both, gained, lost, neither, confidence)",
        "(both, lost, gained, neither, confidence)",
    ),
    mcnemar_of_concordant_pairs=slip(
        pairing.difference,
        "(student & ~teacher).sum()), int((~student & teacher)",
        "(student & teacher).sum()), int((~student & ~teacher)",
    ),
    both_intervals_at_95_percent=slip(pairing.difference, "1 - 2 * error", "1 - error"),
)
plant(
    support.check_unpaired_difference,
    unrelated_samples_lie_next_to_each_other=slip(
        pairing.difference_interval,
        "return newcombe_difference(*counts, confidence)",
        "student = student[: len(teacher)]; teacher = teacher[: len(student)]",
    ),
    unpaired_difference_by_mcnemar=slip(
        pairing.difference,
        "fisher_exact(int(student.sum()), len(student), int(teacher.sum()), len(teacher))",
        "mcnemar_exact(56, 48)",
    ),
)
plant(
    support.check_transfer,
    another_image_kept_counts_as_the_same=slip(pairing.transfer_table, "(both & same).sum()", "both.sum()"),
    lost_and_gained_exchanged=slip(pairing.transfer_table, "(teacher & ~student)", "(student & ~teacher)"),
)
plant(
    support.check_identity,
    chance_of_one_model_with_itself=slip(pairing.chance_agreement, "(p * q).sum()", "(p * p).sum()"),
)
plant(
    support.check_pairs_are_of_one_seed,
    other_seeds_compared=slip(pairing.compare, "if not torch.equal(teacher[SEEDS], student[SEEDS])", "if False"),
)
matched_levels = matching.matching_levels


def one_level(*arguments):
    """The same noise for every copy, as strong as the right ones are in the median."""
    levels = matched_levels(*arguments)
    return torch.full_like(levels, float(levels.median()))


NOISED_SIDE = '"student" if int(hit_s.sum()) > int(hit_t.sum()) else "teacher"'
plant(
    support.check_only_noise_is_no_difference,
    recognised_only_where_memorised=patch(
        matching, "recognition_threshold", lambda _: lambda control, threshold: threshold
    ),
    compared_without_noise=slip(equal_noise, "add_noise(images, noise, levels)", "images"),
    medians_matched_and_nothing_else=patch(matching, "matching_levels", lambda _: one_level),
    noisiest_copies_drop_out_of_one_side_only=slip(matched_levels, "range(ROUNDS)", "range(0)"),
    noise_by_an_equal_amount_for_all=slip(
        matched_levels, "squared *= factor", "squared = (squared + 0.7 * missing.sub(added).mean() / size).clamp_min(0)"
    ),
)
plant(
    support.check_only_noise_is_no_difference,
    True,
    noise_always_to_the_teacher=slip(equal_noise, NOISED_SIDE, '"teacher"'),
)
plant(
    support.check_leaving_the_copies_is_a_loss,
    noised_side_compared_with_itself=slip(equal_noise, "else (hit, hit_s)", "else (hit, hit_t)"),
    noise_matched_on_lost_seeds_too=slip(equal_noise, "both = seen_t & seen_s &", "both = seen_t | seen_s |"),
)
plant(
    support.check_noise_is_clamped,
    noise_matched_without_clamping=slip(matched_levels, "range(ROUNDS)", "range(0)"),
)
plant(
    support.check_unrelated_seeds_are_not_paired,
    pairs_of_unrelated_seeds=slip(equal_noise, "(both, both) if paired", "(both, both) if True"),
    interval_of_pairs_for_unrelated_seeds=slip(equal_noise, "difference(*pair, paired, error)", "difference(*pair)"),
)
plant(
    support.check_images_copied,
    drawn_with_replacement=patch(
        images_copied,
        "expected_distinct",
        lambda _: lambda hits, copies: float((1 - (1 - hits / hits.sum()) ** copies).sum()),
    ),
    fewer_images_at_unequal_numbers_of_copies=slip(
        images_copied.images_copied, "of_student / of_teacher", "len(counts[1]) / len(counts[0])"
    ),
    teacher_over_student=slip(images_copied.images_copied, "of_student / of_teacher", "of_teacher / of_student"),
)
plant(
    support.check_lost_seeds,
    lost_by_what_the_student_copies=slip(lost_seeds.lost_seeds, "lost = hit_t & ~hit_s", "lost = hit_s & ~hit_t"),
    every_seed_of_the_teacher_is_lost=slip(lost_seeds.lost_seeds, "lost = hit_t & ~hit_s", "lost = hit_t"),
    chance_is_one_of_all_images=patch(
        lost_seeds, "chance_agreement", lambda _: lambda first, second: 1 / len(torch.cat([first, second]).unique())
    ),
    damaged_means_nearest=slip(lost_seeds.lost_seeds, "(same & seen).sum()", "same.sum()"),
    damaged_copies_of_any_image=slip(lost_seeds.lost_seeds, "(same & seen).sum()", "seen.sum()"),
    mixtures_are_damage=slip(
        lost_seeds.damaged_share, '["damaged"]["value"] - lost["like_another"]["value"]', '["damaged"]["value"]'
    ),
    share_of_what_is_left=slip(lost_seeds.damaged_share_unpaired, "1 - recognised", "recognised"),
)
plant(
    support.check_specific,
    speeds_of_learning_compared=slip(specific.specific_record, "if not c.trained:", "if True:"),
    one_control_is_enough=slip(
        specific.specific_record, 'None if "unclear" in states else True', 'True if "below" in states else None'
    ),
    bounds_subtracted_from_each_other=slip(
        specific.difference_of_limits,
        'math.hypot(high - student["value"], control["value"] - low2)',
        "high - student['value']",
    ),
)

# ---- convergence and verdict ----------------------------------------------------------------------------------------

rmse_convergence = convergence.rmse_convergence
plant(
    support.check_convergence,
    last_third_without_its_beginning=slip(rmse_convergence, "step <= 2 / 3 * steps[-1]", "step >= 2 / 3 * steps[-1]"),
    judged_from_the_start=slip(rmse_convergence, "max(early) if early", "min(early) if early"),
    seeds_paired_by_position=slip(
        convergence._by_seed, "dict(zip(*(a.tolist() for a in pair)))", "dict(enumerate(pair[1].tolist()))"
    ),
    rmse_trend_with_the_other_sign=slip(rmse_convergence, "weights[[0, -1]] = -1, 1", "weights[[0, -1]] = 1, -1"),
    change_of_the_square_called_change_of_rmse=slip(
        rmse_convergence, "math.sqrt(max(1 + change / base, 0.0)) - 1", "change / base"
    ),
    steps_that_do_not_scatter=slip(rmse_convergence, "seeds_variance + steps_variance)", "seeds_variance)"),
    significance_before_equivalence=patch(convergence, "state", lambda _: lambda *a: significance_first(*a)),
)


def significance_first(ci90, ci95, margin):
    """The order that takes a claim away from more seeds."""
    if ci95[1] < 0 or ci95[0] > 0:
        return "below" if ci95[1] < 0 else "above"
    return "equivalent" if -margin <= ci90[0] and ci90[1] <= margin else "unclear"


def blind_to(reason):
    """Patched to let one objection pass."""
    return patch(
        verdict, "objection", lambda real: lambda *arguments: "" if real(*arguments) == reason else real(*arguments)
    )


for case, bugs in {
    "faint": {"amplitude_of_four_fifths": patch(verdict, "AMPLITUDE", lambda _: (0.8, 1.1))},
    "leaving the teacher": {
        "rising_rmse_passes_for_distilled": slip(judge, 'if checks["rmse_not_rising"] is False', "if False")
    },
    "teacher like control": {
        "control_without_its_interval": slip(verdict.ground, "control_ci95[1]", "control_ci95[0]")
    },
    "no limit": {"what_is_seen_now_is_the_limit": slip(verdict.now_and_limit, "if converged:", "if True:")},
    "for a time": {
        "reduced_whatever_the_limit": patch(
            verdict, "claim", lambda real: lambda now, limit, why="", stays=0: real(now, now)
        )
    },
    "little, for good": {
        "transient_although_most_of_it_stays": slip(
            verdict.now_and_limit, 'stays=limit["value"] / (difference["value"] or math.inf)', "stays=0.0"
        )
    },
    "limit unclear": {
        "limit_without_its_interval": slip(
            verdict.now_and_limit,
            'state(limit["ci90"], limit["ci95"], LIMIT_MARGIN)',
            '"below" if limit["value"] < 0 else "above"',
        )
    },
    "another limit": {"limit_of_strict_copies_alone": blind_to("another limit for tolerant copies")},
    "not tolerant": {"reduced_although_not_for_tolerant_copies": blind_to("not for tolerant copies")},
    "tolerant unknown": {"reduced_although_nobody_looked": blind_to("tolerant copies unavailable")},
    "blurrier": {
        "reduced_although_only_blurrier": slip(verdict.objection, ' or checks["at_equal_noise"] is False', "")
    },
    "not recognised": {
        "reduced_although_copies_are_recognised": slip(
            verdict.objection, 'checks["where_recognised"] is not True or ', ""
        )
    },
    "only damaged copies": {"reduced_although_copies_are_only_damaged": blind_to("damaged")},
    "damaged": {"reduced_although_less_real": blind_to("may only be damaged")},
    "no slow phase": {"reduced_without_a_slow_phase": blind_to("no phase at a lower learning rate")},
    "slow phase": {"reduced_although_a_slow_phase_closes_it": blind_to("closes at a lower learning rate")},
    "one of many": {
        "family_not_adjusted": patch(
            verdict, "state_now", lambda real: lambda d: real({k: v for k, v in d.items() if k != "p_holm"})
        )
    },
    "sure of little": {"equivalence_after_significance": patch(verdict, "state", lambda _: significance_first)},
    "wide": {
        "unchanged_because_not_significant": patch(
            verdict,
            "state",
            lambda real: lambda *a: "equivalent" if real(*a) == "unclear" else real(*a),
        )
    },
    "more of fewer": {"collapse_passes_for_more": slip(judge, '(pair.get("images") or {}).get("fewer")', "False")},
    "sharper": {"amplified_although_only_sharper": blind_to("may only be sharper")},
    "converged": {"a_limit_is_needed_all_the_same": slip(verdict.now_and_limit, "if converged:", "if False:")},
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
