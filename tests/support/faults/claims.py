"""Bugs of intervals and tests, hits, pairs, convergence, the verdict, and of what is seen inside a model."""

from __future__ import annotations

import itertools

import support
from cdmem.diffusion.sampling import NoiseSource
from cdmem.metrics import statistics
from cdmem.metrics.comparison import convergence, verdict
from cdmem.metrics.comparison import equal_noise as matching
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.memorization import coverage, extraction
from cdmem.metrics.whitebox import (
    empirical_optimum as optimum,
)
from cdmem.metrics.whitebox import (
    intrinsic_dimension as dimension,
)
from cdmem.metrics.whitebox import (
    loss_gap,
    roc,
)
from cdmem.metrics.whitebox import (
    membership_inference as membership,
)
from support.faults.frame import fault, slip

# ---- intervals and tests --------------------------------------------------------------------------------------------


@fault(support.check_wilson)
def wald_interval(m):
    """[0, 0] for none of n."""
    slip(m, statistics.wilson_interval, "z2 = float(", "return wald(successes, trials)\n    z2 = float(")
    wald = lambda k, n: tuple(k / n + z * (k / n * (1 - k / n) / n) ** 0.5 for z in (-1.96, 1.96))  # noqa: E731
    m.setattr(statistics, "wald", wald, raising=False)


@fault(support.check_newcombe)
def unpaired_interval(m):
    slip(m, statistics.newcombe_paired_difference, "phi = cross / math.sqrt(margins)", "pass")


@fault(support.check_newcombe)
def correlation_not_corrected(m):
    slip(m, statistics.newcombe_paired_difference, "max(cross - n / 2, 0.0)", "cross")


@fault(support.check_families_of_tests)
def holm_without_its_monotone_step(m):
    slip(m, statistics.holm, "max(worst, min(", "max(0.0, min(")


@fault(support.check_families_of_tests)
def steps_down_from_the_first_failure(m):
    slip(m, statistics.benjamini_hochberg, "passed[-1] + 1", "(passed == range(len(passed))).sum()")


@fault(support.check_conformal)
def sample_not_among_the_controls(m):
    slip(m, statistics.conformal_p_values, "(1 + np.", "(0 + np.")


@fault(support.check_conformal)
def ties_for_the_sample(m):
    slip(m, statistics.conformal_p_values, 'side="right"', 'side="left"')


@fault(support.check_conformal)
def quantile_of_h_instead_of_h_plus_one(m):
    slip(m, extraction.conformal_threshold, "len(control) + 1", "len(control)")


@fault(support.check_roc)
def one_false_positive_too_many(m):
    slip(m, roc.tpr_at_fpr, "members > threshold", "members >= threshold")


@fault(support.check_hits)
def good_turing_of_unique_images(m):
    slip(m, coverage.coverage, "1 - once / total", "1 - once / unique")


@fault(support.check_hits)
def chao_without_its_correction(m):
    slip(m, coverage._unseen, "a, b = once, twice + 1", "a, b = once, max(twice, 1)")


@fault(support.check_hits)
def chao_counts_pairs_for_singles(m):
    slip(m, coverage.coverage, "_unseen(unique, once, twice)", "_unseen(unique, twice, once)")


@fault(support.check_duplication_slope)
def slope_against_copies_instead_of_their_logarithm(m):
    slip(m, coverage.duplication_slope, "copies.double().log()", "copies.double()")


@fault(support.check_duplication_slope)
def hits_weighted_by_rows(m):
    right = "return hit_counts(rows"
    slip(m, coverage.HitCoverage.hits, right, "return self.search.multiplicities * hit_counts(rows")


# ---- pairs ----------------------------------------------------------------------------------------------------------


@fault(support.check_difference)
def teacher_minus_student(m):
    slip(m, pairing.difference, "(both, gained, lost, neither)", "(both, lost, gained, neither)")


@fault(support.check_difference)
def mcnemar_of_concordant_pairs(m):
    slip(m, pairing.difference, "mcnemar_exact(gained, lost)", "mcnemar_exact(both, neither)")


@fault(support.check_transfer)
def another_image_kept_counts_as_the_same(m):
    slip(m, pairing.transfer_table, "(both & same).sum()", "both.sum()")


@fault(support.check_transfer)
def lost_and_gained_exchanged(m):
    slip(m, pairing.transfer_table, "(teacher & ~student)", "(student & ~teacher)")


@fault(support.check_identity)
def chance_of_one_model_with_itself(m):
    slip(m, pairing.identity_agreement, "(p * q).sum()", "(p * p).sum()")


@fault(support.check_pairs_are_of_one_seed)
def other_seeds_compared(m):
    slip(m, pairing.compare, "if not torch.equal(teacher[SEEDS], student[SEEDS])", "if False")


@fault(support.check_blur_is_no_loss)
def recognised_only_where_memorised(m):
    slip(m, matching.fidelity_matched, "loose = recognition_threshold(control, threshold)", "loose = threshold")


@fault(support.check_blur_is_no_loss)
def teacher_compared_without_noise(m):
    slip(m, matching.fidelity_matched, "add_noise(teacher_images, noise, level)", "teacher_images")


@fault(support.check_blur_is_no_loss)
def noisiest_copies_drop_out_of_one_side_only(m):
    slip(m, matching.fidelity_matched, "if level > 0", "if False")


@fault(support.check_blur_is_no_loss)
def mirrored_copies_measured_against_the_image(m):
    slip(m, matching._copied_images, "(mirrored < as_is) if search.flip", "(mirrored < as_is) if False")


@fault(support.check_leaving_the_copies_is_a_loss)
def noisy_teacher_compared_with_itself(m):
    slip(
        m,
        matching.fidelity_matched,
        'hit_s = memorized(student["squared"][:, 0]',
        'hit_s = memorized(teacher["squared"][:, 0]',
    )


@fault(support.check_leaving_the_copies_is_a_loss)
def noise_matched_on_lost_seeds_too(m):
    slip(m, matching.fidelity_matched, "common = seen_t & seen_s &", "common = seen_t | seen_s |")


@fault(support.check_noise_is_clamped)
def noise_matched_without_clamping(m):
    slip(m, matching.copy_noise, "add_noise(teacher, noise, middle)", "teacher.double() + middle * noise")


# ---- convergence and verdict ----------------------------------------------------------------------------------------


@fault(support.check_convergence)
def judged_on_the_first_third(m):
    slip(m, convergence._ends, "if s >= 2 / 3 * steps[-1]", "if s <= 1 / 3 * steps[-1] or len(steps) < 3")


@fault(support.check_convergence)
def trend_with_the_other_sign(m):
    slip(
        m,
        convergence.convergence,
        "int((a & ~b).sum()), int((~a & b).sum())",
        "int((b & ~a).sum()), int((~b & a).sum())",
    )


@fault(support.check_convergence)
def seeds_paired_by_position(m):
    slip(m, convergence._ends, "np.array([after[s] for s in shared])", "np.array(list(after.values()))")


@fault(support.check_convergence)
def rmse_trend_with_the_other_sign(m):
    slip(m, convergence.rmse_convergence, "mean_interval(after - before)", "mean_interval(before - after)")


@fault(support.check_convergence)
def change_of_the_square_called_change_of_rmse(m):
    slip(m, convergence.rmse_convergence, "float(np.sqrt(max(1 + x / base, 0.0)))", "float(1 + x / base)")


@fault(support.check_verdict, "faint")
def amplitude_of_four_fifths(m):
    m.setattr(verdict, "AMPLITUDE", (0.8, 1.1))


@fault(support.check_verdict, "leaving the teacher")
def rising_rmse_passes_for_distilled(m):
    slip(m, verdict.judge, 'if checks["rmse_not_rising"] is False', "if False")


@fault(support.check_verdict, "teacher like control")
def control_without_its_interval(m):
    slip(m, verdict.judge, "control_ci95[1]", "control_ci95[0]")


@fault(support.check_verdict, "unknown")
def unknown_convergence_is_convergence(m):
    slip(m, verdict.unconverged, 'return "convergence unknown"', "return None")


@fault(support.check_verdict, "rising")
def reduced_although_rising(m):
    slip(m, verdict.unconverged, 'f_mem["trend"] == "rising"', "False")


@fault(support.check_verdict, "falling")
def reduced_although_falling(m):
    slip(m, verdict.unconverged, 'f_mem["trend"] == "falling"', "False")


@fault(support.check_verdict, "few samples of the curve")
def reduced_although_nobody_knows(m):
    slip(m, verdict.unconverged, 'f_mem["trend"] == "undetermined"', "False")


@fault(support.check_verdict, "approaching")
def reduced_although_rmse_falls(m):
    slip(m, verdict.unconverged, 'rmse["trend"] == "falling"', "(rmse := {'trend': 'stopped'}) is None")


@fault(support.check_verdict, "annealed")
def reduced_although_annealed(m):
    slip(m, verdict.unconverged, "if annealed else None", "if False else None")


@fault(support.check_verdict, "pace")
def reduced_for_the_moment(m):
    m.setattr(verdict, "HORIZON", 0)


@fault(support.check_verdict, "blurrier")
def reduced_although_only_blurrier(m):
    slip(m, verdict.judge, ' or checks["below_at_equal_noise"] is False', "")


@fault(support.check_verdict, "not recognised")
def reduced_although_copies_are_recognised(m):
    slip(m, verdict.judge, 'checks["below_at_recognition"] is not True or ', "")


@fault(support.check_verdict, "damaged")
def reduced_although_only_damaged(m):
    slip(m, verdict.judge, "is None and as_real is False", "is None and as_real is None")


@fault(support.check_verdict, "one of many")
def family_not_adjusted(m):
    slip(m, verdict._significant, 'difference.get("p_holm", difference["p_mcnemar"])', 'difference["p_mcnemar"]')


@fault(support.check_verdict, "wide")
def unchanged_because_not_significant(m):
    slip(m, verdict.judge, 'difference["ci95"][0] >= -MARGIN and difference["ci95"][1] <= MARGIN', "True")


@fault(support.check_verdict, "more")
def amplified_needs_convergence(m):
    slip(m, verdict.judge, 'if difference["ci95"][0] > 0 and', "if trouble is None and difference['ci95'][0] > 0 and")


# ---- inside ---------------------------------------------------------------------------------------------------------


@fault(support.check_loss_gap)
def fresh_noise_for_held_out_images(m):
    calls = itertools.count()
    m.setattr(loss_gap, "NoiseSource", lambda seeds, shape: NoiseSource([s + 1000 * next(calls) for s in seeds], shape))


@fault(support.check_loss_gap)
def gap_of_train_minus_held_out(m):
    slip(m, loss_gap.loss_gap, "welch(h, t)", "welch(t, h)")


@fault(support.check_loss_gap)
def members_have_the_larger_loss(m):
    slip(m, loss_gap.loss_gap, "separation(-t, -h)", "separation(t, h)")


@fault(support.check_endpoint)
def endpoint_is_the_clean_image(m):
    slip(m, loss_gap.endpoint_losses, ".double() - end", ".double() - batch.clean")


@fault(support.check_endpoint)
def endpoint_is_the_posterior_mean(m):
    wrong = "return self.denoiser(x, sigma, labels)"
    slip(m, loss_gap.OdeEndpoint.__call__, "return sample_ode(self.denoiser, x, grid, heun_step, labels)", wrong)


@fault(support.check_membership)
def no_step_back(m):
    slip(m, membership.secmi, "back = euler_step(denoiser, up, there, here, classes)", "back = up")


@fault(support.check_membership)
def large_errors_are_the_members(m):
    slip(m, membership.membership, "-train_scores.double().numpy(), -heldout", "train_scores.double().numpy(), heldout")


@fault(support.check_dimension)
def dimension_without_residual(m):
    slip(m, dimension._lid, "for t in (trace + residual, error", "for t in (trace, error")


@fault(support.check_dimension)
def residual_in_other_units(m):
    slip(m, dimension._lid, "/ sigma**2", "/ sigma**4")


@fault(support.check_optimum)
def optimum_of_every_image_once(m):
    slip(m, optimum.training_optimum, "to_float(images), copies,", "to_float(images), None,")


@fault(support.check_optimum)
def optimum_without_mirror_images(m):
    slip(m, optimum.training_optimum, "images.flip(-1)", "images")
