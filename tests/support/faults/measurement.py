"""Bugs of distances, groups, copying in feature space, quality, extractors and of what goes into an audit."""

from __future__ import annotations

from collections import OrderedDict

import torch

import support
from cdmem import images as pixels
from cdmem.audit import reference_sets as references
from cdmem.audit.auditor import Auditor
from cdmem.cli.audit import gate
from cdmem.metrics import base
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.memorization import (
    authenticity,
    extraction,
)
from cdmem.metrics.memorization import (
    data_copying as copying,
)
from cdmem.metrics.memorization import (
    feature_likelihood as likelihood,
)
from cdmem.metrics.memorization import (
    fraction as memorization,
)
from cdmem.metrics.neighbors import features as feature_neighbors
from cdmem.metrics.neighbors import index as search
from cdmem.metrics.neighbors import pixels as neighbors
from cdmem.metrics.quality import efficientnet, feature_space, features, fidelity, frechet, inception, prdc
from cdmem.models import pipelines
from support.faults.frame import fault, slip

# ---- neighbours and groups ------------------------------------------------------------------------------------------


@fault(support.check_repeated_rows_are_one_image)
def repeated_rows_are_neighbours_of_each_other(m):
    m.setattr(neighbors, "group_ids", lambda images: torch.arange(len(images)))


@fault(support.check_repeated_rows_are_one_image, True)
def exact_copies_of_repeated_rows_are_undefined(m):
    m.setattr(neighbors, "group_ids", lambda images: torch.arange(len(images)))


@fault(support.check_exact_copies)
def distance_zero_left_out(m):
    slip(m, memorization.memorized, "_double(squared1) <", "(_double(squared1) + 1e300 * (squared1 == 0)) <")


@fault(support.check_exact_copies)
def inverse_ratio_of_exact_copies(m):
    slip(m, memorization.ratios, "_double(squared[:, 0])", "_double(squared[:, 0]).clip(1)")


@fault(support.check_mirror_images)
def mirror_image_is_another_image(m):
    slip(m, neighbors._components, "if flip else []", "if False else []")


@fault(support.check_mirror_images)
def mirror_images_not_searched(m):
    slip(m, neighbors.NeighborIndex.__init__, "images.flip(-1)", "images")


@fault(support.check_mirror_images)
def mirror_images_searched_without_flips(m):
    slip(m, neighbors.NeighborIndex.__init__, "images.flip(-1)]) if flip", "images.flip(-1)]) if (flip := True)")


@fault(support.check_threshold)
def threshold_of_squared_distances(m):
    slip(m, memorization.memorized, "threshold**2", "threshold")


@fault(support.check_threshold)
def ratio_of_squared_distances(m):
    slip(m, memorization.ratios, "_root(", "(")


@fault(support.check_threshold)
def distribution_counts_equal_ratios(m):
    slip(m, memorization.ratio_cdf, "right=False", "right=True")


@fault(support.check_distances_are_integers)
def products_of_one_low_precision_matrix_product(m):
    wrong = lambda a, b, _: (a.bfloat16() @ b.bfloat16().T).to(torch.int32)  # noqa: E731
    m.setattr(neighbors, "products", wrong)


@fault(support.check_distances_are_integers)
def distances_in_wrapping_uint8(m):
    slip(m, neighbors.NeighborIndex._squares, "part.to(torch.int32).square_()", "part.square()")


@fault(support.check_ties_go_to_the_lowest_group)
def ties_broken_by_row(m):
    right = "order = torch.argsort(of_content * len(images) + original, stable=True)"
    slip(m, neighbors.NeighborIndex.__init__, right, "order = torch.argsort(original, stable=True)")


@fault(support.check_spacing_leaves_the_own_group_out)
def own_group_is_the_nearest(m):
    slip(m, search.GroupIndex.spacing, "exclude=own", "exclude=None")


@fault(support.check_extraction_scores)
def distance_per_pixel_without_root(m):
    slip(m, extraction.absolute_distance, "math.sqrt(pixels)", "pixels")


@fault(support.check_extraction_scores)
def extraction_without_alpha(m):
    slip(m, extraction.adaptive_score, "alpha * ", "")


@fault(support.check_feature_distances)
def near_copies_drown_in_products(m):
    slip(m, feature_neighbors.FeatureIndex.query, "(ranked.squared[:, -1] < beyond) & ", "")


@fault(support.check_feature_distances)
def equal_features_are_not_at_zero(m):
    slip(m, feature_space.squared_blocks, "table <= CANCELLED * scale", "table < -1e300")


# ---- copying in feature space ---------------------------------------------------------------------------------------


@fault(support.check_authenticity)
def spacing_indexed_by_the_sample(m):
    """As in the authors' program."""
    wrong = "rows, place = torch.arange(len(train)), torch.arange(len(generated))"
    slip(m, authenticity.authentic, "rows, place = torch.unique(index, return_inverse=True)", wrong)


@fault(support.check_authenticity, 3)
def spacing_to_a_copy_of_the_same_image(m):
    slip(m, authenticity.authentic, "groups[rows], groups)", "rows, torch.arange(len(train)))")


@fault(support.check_authenticity)
def authentic_also_at_equality(m):
    slip(m, authenticity.authentic, "spacing[place] < distance", "spacing[place] <= distance")


@fault(support.check_copy_test)
def samples_and_held_out_exchanged(m):
    slip(m, copying.Cells.score, "z_u(q, p)", "z_u(p, q)")


@fault(support.check_two_sample_copies)
def copies_made_twice_are_told_apart(m):
    slip(m, copying.two_sample_accuracy, "own < other", "own <= other")


@fault(support.check_train_preference)
def ties_are_for_the_training_set(m):
    slip(m, copying.train_preference, "torch.where(to_train == to_held, 0.5,", "torch.where(to_train == to_held, 1.0,")


@fault(support.check_likelihood)
def standardised_by_the_training_set(m):
    slip(
        m,
        likelihood._standardised,
        "held_out.double().mean(0), held_out.double()",
        "train.double().mean(0), train.double()",
    )


@fault(support.check_likelihood)
def gap_with_the_other_sign(m):
    slip(m, likelihood.feature_likelihood, "100 * (nll_train - nll_test)", "100 * (nll_test - nll_train)")


@fault(support.check_likelihood)
def repetitions_weigh_in_the_fit(m):
    slip(m, likelihood.feature_likelihood, "unique_rows(train) if weights is None else train", "train")


# ---- quality --------------------------------------------------------------------------------------------------------


@fault(support.check_manifold)
def boundary_inside_the_ball(m):
    slip(m, prdc.precision_recall_density_coverage, "table < real_radii", "table <= real_radii")


@fault(support.check_manifold)
def ball_of_one_neighbour_more(m):
    slip(m, prdc._squared_radii, "k - 1]", "k]")


@fault(support.check_manifold)
def point_is_its_own_neighbour(m):
    slip(m, prdc._squared_radii, "own] = torch.inf", "own] = 0.0")


@fault(support.check_manifold, 2)
def repeated_rows_shrink_the_balls(m):
    right = "real[first_rows(content_groups(real) if real_groups is None else real_groups)]"
    slip(m, prdc.precision_recall_density_coverage, right, "real")


@fault(support.check_frechet)
def biased_covariance(m):
    slip(m, frechet.moments, "(total - 1)", "total")


@fault(support.check_frechet)
def trace_without_root(m):
    slip(m, frechet.moments_distance, "b.root.T).sum()", "b.root.T).square().sum()")


@fault(support.check_frechet)
def multiplicities_left_out_of_the_distance(m):
    slip(m, fidelity.Fidelity.references, "copies.repeat(", "torch.ones_like(copies).repeat(")


@fault(support.check_kernel_distance)
def kernel_of_a_sample_with_itself(m):
    slip(m, fidelity.kernel_interval, "ones, ones)[0] - _self_kernel(generated)", "ones, ones)[0]")


@fault(support.check_kernel_distance)
def kernel_of_a_reference_with_itself(m):
    slip(m, fidelity.reference_of, "rows if weights is not None else rows - _self_kernel(features)", "rows")


@fault(support.check_kernel_distance)
def quadratic_kernel(m):
    slip(m, fidelity._kernel_sums, "** 3", "** 2")


@fault(support.check_extractor_runs_as_meant)
def extractor_in_training_mode(m):
    slip(m, features._evaluation_mode, "module.eval()", "pass")


@fault(support.check_extractor_runs_as_meant)
def extractor_left_in_evaluation_mode(m):
    slip(m, features._evaluation_mode, "part.training = training", "pass")


@fault(support.check_extractor_runs_as_meant)
def extractor_under_autocast(m):
    slip(m, features.extract, "enabled=False", "enabled=torch.is_autocast_enabled('cpu')")


@fault(support.check_cache_knows_weights)
def cache_by_name_alone(m):
    m.setattr(features, "_recent", OrderedDict())
    slip(m, features.cached_features, "digest_of(module)", "''")


@fault(support.check_other_weights_are_refused)
def efficientnet_digest_not_compared(m):
    slip(m, efficientnet.EfficientNetLite0Features.__init__, "if digest != SHA256", "if not digest")


@fault(support.check_other_weights_are_refused)
def inception_digest_not_compared(m):
    slip(m, inception.checked_bytes, "if digest != sha256", "if not digest")


# ---- samples, pairs, references -------------------------------------------------------------------------------------


@fault(support.check_a_seed_counts_once)
def padded_seeds_count_twice(m):
    slip(m, base.SampleMetric._unique_rows, "keep[1:] = seeds[1:] != seeds[:-1]", "pass")


@fault(support.check_a_seed_counts_once)
def rows_in_the_order_of_arrival(m):
    slip(m, base.SampleMetric._unique_rows, "torch.argsort(rows[SEEDS], stable=True)", "torch.arange(len(rows[SEEDS]))")


@fault(support.check_quantisation)
def grey_levels_truncated(m):
    slip(m, pixels.to_uint8, "torch.round", "torch.floor")


@fault(support.check_quantisation)
def grey_levels_wrap_round(m):
    slip(m, pixels.to_uint8, ".clamp(0, 255)", ".to(torch.int32)")


@fault(support.check_quantisation)
def range_of_256_levels(m):
    m.setattr(pixels, "HALF_RANGE", 128.0)


@fault(support.check_pair_metric)
def variance_ratio_upside_down(m):
    slip(m, pairing.PairedWithTeacher.evaluate, "total[0] / total[1]", "total[1] / total[0]")


@fault(support.check_pair_metric)
def pairs_clamped(m):
    slip(m, pairing.PairedWithTeacher.columns, "images.float()", "images.float().clamp(-1, 1)")


@fault(support.check_controls_are_no_training_images)
def training_image_as_control(m):
    slip(m, references.disjoint, "if digest in seen", "if False")


@fault(support.check_controls_are_no_training_images)
def mirrored_training_image_as_control(m):
    slip(m, references.disjoint, "content_digests(training, flip)", "content_digests(training)")


@fault(support.check_controls_are_no_training_images)
def repeated_control(m):
    slip(m, references.disjoint, "elif digest in fresh", "elif False")


@fault(support.check_pipeline)
def pipeline_starts_at_unit_noise(m):
    """As diffusers' DDPMPipeline does with any scheduler."""
    slip(m, pipelines.PipelineSampler.__call__, " * float(self.scheduler.init_noise_sigma)", "")


@fault(support.check_pipeline)
def pipeline_input_not_scaled(m):
    slip(m, pipelines.PipelineSampler.__call__, "self.scheduler.scale_model_input(x, t)", "x")


@fault(support.check_pipeline)
def one_generator_for_the_batch(m):
    slip(m, pipelines.PipelineSampler.__call__, "noise.generators", "noise.generators[0]")


@fault(support.check_gate)
def gate_on_the_estimate(m):
    slip(m, gate, 'm["f_mem"]["ci95"][1]', 'm["f_mem"]["value"]')


@fault(support.check_gate)
def gate_on_the_teacher(m):
    slip(m, gate, 'if m["role"] != "teacher"', "")


@fault(support.check_copycat)
def copycat_of_images_instead_of_rows(m):
    right = "t.images[t.row_to_group[torch.randint(t.rows, (self.samples,), generator=draw)]]"
    slip(m, Auditor.control, right, "t.images[torch.randint(len(t.images), (self.samples,), generator=draw)]")


@fault(support.check_realism_beside_the_teacher)
def realism_of_the_estimates(m):
    slip(m, Auditor._as_real, 'teacher.get(f"{k}_high")', 'teacher.get(f"{k}_low")')


@fault(support.check_realism_beside_the_teacher)
def realism_in_one_extractor_suffices(m):
    slip(m, Auditor._as_real, "all(known)", "any(known)")
