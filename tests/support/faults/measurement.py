"""Bugs of distances, groups, copying in feature space, quality, extractors and of what goes into an audit."""

from __future__ import annotations

from collections import OrderedDict

import torch

import support
from cdmem import images as pixels
from cdmem.audit import reference_sets
from cdmem.audit.auditor import Auditor
from cdmem.audit.gate import Bound, Detector, detectors, judge_gate
from cdmem.audit.verdicts import Verdicts
from cdmem.metrics import base
from cdmem.metrics.comparison import paired as pairing
from cdmem.metrics.comparison.paired import PairedWithTeacher
from cdmem.metrics.memorization import authenticity, extraction
from cdmem.metrics.memorization import data_copying as copying
from cdmem.metrics.memorization import feature_likelihood as likelihood
from cdmem.metrics.memorization import fraction as memorization
from cdmem.metrics.neighbors import features as feature_neighbors
from cdmem.metrics.neighbors import index as search
from cdmem.metrics.neighbors import pixels as neighbors
from cdmem.metrics.neighbors.features import FeatureIndex
from cdmem.metrics.neighbors.pixels import NeighborIndex
from cdmem.metrics.quality import feature_space, features, fidelity, frechet, prdc, weights
from cdmem.models.pipelines import PipelineSampler
from support.faults.frame import fault, patch, plant, slip

# ---- neighbours and groups ------------------------------------------------------------------------------------------

every_row_a_group = patch(neighbors, "group_ids", lambda _: lambda images: torch.arange(len(images)))
plant(support.check_repeated_rows_are_one_image, repeated_rows_are_neighbours_of_each_other=every_row_a_group)
plant(support.check_repeated_rows_are_one_image, True, exact_copies_of_repeated_rows_are_undefined=every_row_a_group)
plant(
    support.check_exact_copies,
    distance_zero_left_out=patch(
        memorization, "memorized", lambda real: lambda first, *a: real(first.double().where(first > 0, torch.inf), *a)
    ),
    inverse_ratio_of_exact_copies=slip(memorization.ratios, "_double(squared[:, 0])", "_double(squared[:, 0]).clip(1)"),
)
plant(
    support.check_mirror_images,
    mirror_image_is_another_image=patch(
        neighbors, "_components", lambda real: lambda content, n, flip, labels: real(content, n, False, labels)
    ),
    mirror_images_not_searched=slip(NeighborIndex.__init__, "images.flip(-1)", "images"),
    mirror_images_searched_without_flips=slip(
        NeighborIndex.__init__, "images.flip(-1)]) if flip", "images.flip(-1)]) if (flip := True)"
    ),
)
plant(
    support.check_threshold,
    threshold_of_squared_distances=slip(memorization.memorized, "threshold**2", "threshold"),
    ratio_of_squared_distances=patch(memorization, "ratios", lambda real: lambda squared: real(squared) ** 2),
    distribution_counts_equal_ratios=slip(memorization.ratio_cdf, "right=False", "right=True"),
)
plant(
    support.check_distances_are_integers,
    products_of_one_low_precision_matrix_product=patch(
        neighbors, "products", lambda _: lambda a, b, _: (a.bfloat16() @ b.bfloat16().T).to(torch.int32)
    ),
    distances_in_wrapping_uint8=slip(NeighborIndex._squares, "part.to(torch.int32).square_()", "part.square()"),
)
plant(
    support.check_ties_go_to_the_lowest_group,
    ties_broken_by_row=slip(
        NeighborIndex.__init__,
        "order = torch.argsort(of_content * len(images) + original, stable=True)",
        "order = torch.argsort(original, stable=True)",
    ),
)
plant(
    support.check_spacing_leaves_the_own_group_out,
    own_group_is_the_nearest=slip(search.GroupIndex.spacing, "exclude=own", "exclude=None"),
)
plant(
    support.check_extraction_scores,
    distance_per_pixel_without_root=slip(extraction.absolute_distance, "math.sqrt(pixels)", "pixels"),
    extraction_without_alpha=slip(extraction.adaptive_score, "alpha * ", ""),
)
plant(
    support.check_feature_distances,
    near_copies_drown_in_products=slip(feature_neighbors.FeatureIndex.query, "(squared[:, -1] < beyond) & ", ""),
    equal_features_are_not_at_zero=slip(feature_space.squared_blocks, "table <= CANCELLED * scale", "table < -1e300"),
)

# ---- copying in feature space ---------------------------------------------------------------------------------------

plant(
    support.check_authenticity,
    spacing_indexed_by_the_sample=slip(  # as in the authors' program
        authenticity.authentic,
        "rows, place = torch.unique(found.nearest, return_inverse=True)",
        "rows, place = torch.arange(len(train)), torch.arange(len(generated))",
    ),
    authentic_also_at_equality=slip(authenticity.authentic, "sqrt() < found", "sqrt() <= found"),
)
plant(
    support.check_authenticity,
    3,
    spacing_to_a_copy_of_the_same_image=slip(
        authenticity.authentic,
        "index.query(train[rows], 1, exclude=groups[rows])",
        "FeatureIndex(train).query(train[rows], 1, exclude=rows)",
    ),
)
plant(
    support.check_copy_test,
    samples_and_held_out_exchanged=patch(copying, "z_u", lambda real: lambda generated, held: real(held, generated)),
)
plant(
    support.check_two_sample_copies,
    copies_made_twice_are_told_apart=slip(copying.two_sample_accuracy, "own < other", "own <= other"),
)
plant(
    support.check_train_preference,
    ties_are_for_the_training_set=slip(
        copying.train_preference, "torch.where(to_train == to_held, 0.5,", "torch.where(to_train == to_held, 1.0,"
    ),
)
plant(
    support.check_likelihood,
    standardised_by_the_training_set=slip(
        likelihood._standardised,
        "held_out.double().mean(0), held_out.double()",
        "train.double().mean(0), train.double()",
    ),
    gap_with_the_other_sign=slip(
        likelihood.feature_likelihood, "100 * (nll_train - nll_test)", "100 * (nll_test - nll_train)"
    ),
    repetitions_weigh_in_the_fit=patch(likelihood, "unique_rows", lambda _: lambda rows: rows),
)

# ---- quality --------------------------------------------------------------------------------------------------------

plant(
    support.check_manifold,
    boundary_inside_the_ball=slip(FeatureIndex.inside, "squared < of_rows[j]", "squared <= of_rows[j]"),
    ball_of_one_neighbour_more=slip(
        prdc.precision_recall_density_coverage,
        "i.query(i.features, k, exclude=torch.arange(len(i.features))).squared[:, k - 1]",
        "i.query(i.features, k + 1, exclude=torch.arange(len(i.features))).squared[:, k]",
    ),
    point_is_its_own_neighbour=slip(
        prdc.precision_recall_density_coverage, "exclude=torch.arange(len(i.features))", "exclude=None"
    ),
)
plant(
    support.check_manifold,
    2,
    repeated_rows_shrink_the_balls=slip(prdc.precision_recall_density_coverage, "unique_rows(real)", "real"),
)
plant(
    support.check_frechet,
    biased_covariance=slip(frechet.moments, "(total - 1)", "total"),
    trace_without_root=patch(frechet, "sum_of_singular_values", lambda _: lambda matrix: matrix.square().sum()),
    multiplicities_left_out_of_the_distance=slip(
        fidelity.Fidelity.references, "copies.repeat(", "torch.ones_like(copies).repeat("
    ),
)
plant(
    support.check_kernel_distance,
    kernel_of_a_sample_with_itself=slip(fidelity._within, "sums.rows - alone", "sums.rows"),
    kernel_of_a_reference_with_itself=slip(
        fidelity.reference_of, "level, within.rows,", "level, within.rows + _self_kernel(features, level),"
    ),
    quadratic_kernel=slip(fidelity._kernel_sums, "** 3", "** 2"),
)
plant(
    support.check_extractor_runs_as_meant,
    extractor_in_training_mode=slip(features._evaluation_mode, "module.eval()", "pass"),
    extractor_left_in_evaluation_mode=slip(features._evaluation_mode, "part.training = training", "pass"),
    extractor_under_autocast=slip(features.extract, "enabled=False", "enabled=torch.is_autocast_enabled('cpu')"),
)


@fault(support.check_cache_knows_weights)
def cache_by_name_alone(m):
    m.setattr(features, "_recent", OrderedDict())
    m.setattr(features, "digest_of", lambda module: "")


plant(
    support.check_other_weights_are_refused,
    digest_not_compared=slip(weights.checked_bytes, "if digest != sha256", "if not digest"),
)

# ---- samples, pairs, references -------------------------------------------------------------------------------------

plant(
    support.check_a_seed_counts_once,
    padded_seeds_count_twice=slip(base.SampleMetric._unique_rows, "keep[1:] = seeds[1:] != seeds[:-1]", "pass"),
    rows_in_the_order_of_arrival=slip(
        base.SampleMetric._unique_rows, "torch.argsort(rows[SEEDS], stable=True)", "torch.arange(len(rows[SEEDS]))"
    ),
)
plant(
    support.check_quantisation,
    grey_levels_truncated=slip(pixels.to_uint8, "torch.round", "torch.floor"),
    grey_levels_wrap_round=slip(pixels.to_uint8, ".clamp(0, 255)", ".to(torch.int32)"),
    range_of_256_levels=patch(pixels, "HALF_RANGE", lambda _: 128.0),
)
plant(
    support.check_pair_metric,
    variance_ratio_upside_down=slip(pairing._distance, "total[0] / total[1]", "total[1] / total[0]"),
    amplitude_of_pixels_that_no_image_has=patch(pairing, "_saved", lambda _: lambda rows: rows["images"]),
    pairs_clamped=slip(PairedWithTeacher.columns, "images.float()", "images.float().clamp(-1, 1)"),
    chance_of_all_basins_alike=patch(pairing, "chance_agreement", lambda _: lambda first, second: 1 / 5),
)
plant(
    support.check_controls_are_no_training_images,
    training_image_as_control=slip(reference_sets.disjoint, "if digest in seen", "if False"),
    mirrored_training_image_as_control=slip(
        reference_sets.disjoint, "content_digests(training, flip)", "content_digests(training)"
    ),
    repeated_control=slip(reference_sets.disjoint, "elif digest in fresh", "elif False"),
)
plant(
    support.check_pipeline,
    pipeline_starts_at_unit_noise=slip(  # as diffusers' DDPMPipeline does with any scheduler
        PipelineSampler.__call__, " * float(self.scheduler.init_noise_sigma)", ""
    ),
    pipeline_input_not_scaled=slip(PipelineSampler.__call__, "self.scheduler.scale_model_input(x, t)", "x"),
    one_generator_for_the_batch=slip(PipelineSampler.__call__, "noise.generators", "noise.generators[0]"),
)
plant(
    support.check_gate,
    gate_on_the_estimate=slip(Bound.exceeds, "self.copies.high", "self.copies.value"),
    gate_on_the_teacher=slip(judge_gate, 'if m["role"] not in REFERENCES', ""),
    gate_blind_to_altered_copies=slip(detectors, "for d in DETECTORS", "for d in DETECTORS[:1]"),
    gate_on_the_rate_of_clean_images=slip(Detector.copies, "if self.clean is None", "if True"),
)
plant(
    support.check_copycat,
    copycat_of_images_instead_of_rows=slip(
        Auditor.control,
        "t.images[t.row_to_group[torch.randint(t.rows, (self.samples,), generator=draw)]]",
        "t.images[torch.randint(len(t.images), (self.samples,), generator=draw)]",
    ),
)
plant(
    support.check_realism_beside_the_teacher,
    realism_of_the_estimates=slip(Verdicts._as_real, 'teacher.get(f"{k}_high")', 'teacher.get(f"{k}_low")'),
    realism_in_one_extractor_suffices=slip(Verdicts._as_real, "all(known)", "any(known)"),
)
