"""One audit: what each model reproduces of the training set, at what quality, beside its controls.

Every number is a function of the checkpoint, the seeds and the sample count: batch size and device do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdmem.audit.distillation_curve import ERROR
from cdmem.audit.generators import Generator
from cdmem.audit.given_images import GivenImages
from cdmem.audit.pairs import Samples, Yardstick, pair_record
from cdmem.audit.result import AuditResult
from cdmem.audit.settings import SAMPLES, AuditSettings
from cdmem.audit.suite import FEATURES, extractor_record, fidelity_metrics, measure, prepared, try_own_metrics
from cdmem.audit.verdicts import Audited, Verdicts
from cdmem.data.subset import TrainingSet
from cdmem.errors import InputError
from cdmem.images import to_float, to_uint8
from cdmem.io.progress import progress
from cdmem.metrics.comparison.paired import PairedWithTeacher, adjust
from cdmem.metrics.memorization.fraction import MemorizedFraction, disk_rows, fraction, ratio_cdf, ratios
from cdmem.metrics.neighbors.tolerant import tolerant_search
from cdmem.metrics.quality.fidelity import LEAST
from cdmem.metrics.statistics import conformal_discoveries, conformal_p_values
from cdmem.metrics.whitebox.record import IMAGES, POINTS, whitebox_record
from cdmem.run.folder import RunFolder
from cdmem.seeds import first_sample

FALSE_DISCOVERIES = 0.01
WIDEST = 50  # neighbours that any metric asks for
FEWEST_INSIDE = 16  # images of the white-box part
PAIR = (
    "variance_ratio",
    "rmse_to_teacher",
    "same_basin",
    "same_basin_low",
    "same_basin_high",
    "same_basin_chance",
    "variance_ratio_unclamped",
    "rmse_unclamped",
)
PICTURES = 24  # samples of each model that a report shows with their neighbours


@dataclass
class Measured:
    """A generator's samples and rows while the audit runs.

    Attributes:
        images: uint8 (m, C, H, W), in seed order.
        floats: what the model gave, float32 (m, C, H, W).
        rows: ``seeds``, ``squared`` (m, 2), ``groups`` (m, 2).
    """

    generator: Generator
    images: Tensor
    floats: Tensor
    rows: dict[str, Tensor]


def _rounded_cdf(ratio: Tensor) -> list[float]:
    return [round(x, 6) for x in ratio_cdf(ratio).tolist()]


def sized(most: int, samples: int) -> int:
    """How many images the white-box part takes, of at most ``most``: in proportion to the samples, but at least 16."""
    return min(most, max(FEWEST_INSIDE, math.ceil(most * samples / SAMPLES)))


def _recipe(m: Measured) -> str | None:
    """How a student was made, or None where nobody knows."""
    return None if m.generator.module is None else m.generator.module.record.method


class Auditor:
    """Measures generators on the same seeds against one training set.

    Args:
        training_set: T and H.
        settings: what to measure and how.
        sampling_seed: of the samples, see :func:`cdmem.seeds.first_sample`.
        folder: where rows and images are kept; None keeps nothing.
        progress: show a bar.
        converged: students are taken as converged because the user says so.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        settings: AuditSettings | None = None,
        sampling_seed: int = 0,
        folder: RunFolder | None = None,
        progress: bool = True,
        converged: bool = False,
    ) -> None:
        self.training_set, self.settings = training_set, settings or AuditSettings()
        try_own_metrics(self.settings, training_set)
        self.samples, self.threshold = self.settings.samples or SAMPLES, self.settings.threshold
        self.near_duplicates, self.device = self.settings.near_duplicates, self.settings.torch_device
        self.first = first_sample(sampling_seed)
        names = dict.fromkeys(self.settings.features or ["pixels"])
        self.extractors = [FEATURES[name]().to(self.device) for name in names]
        self.folder, self.progress, self.converged = folder, progress, converged
        self.memorized = MemorizedFraction(self.threshold, self.near_duplicates)
        self.memorized.prepare(training_set)
        self.search = self.memorized.search
        # Prepared once: the features and moments of T and H serve every generator.
        self.fidelity = fidelity_metrics(self.settings, self.extractors)
        self.suite = prepared(self.settings, self.extractors, training_set)
        for metric in self.fidelity:
            metric.prepare(training_set)
        self._held_out = training_set.held_out_images
        self._seen: set[int] = set()
        self._shown: set[int] = set()
        self._control_rows = self._rows(self._held_out, torch.arange(len(self._held_out)))
        self._control_ratios = ratios(self._control_rows["squared"])
        self._tolerant = tolerant_search(training_set, self.near_duplicates)
        control = self._control_ratios if len(self._held_out) else None
        self.yardstick = Yardstick(self.search, self.threshold, control, self._tolerant.threshold)

    def seeds(self, generator: Generator) -> list[int]:
        """Seeds of a generator's samples, ascending: given images have their own, in any order."""
        if isinstance(generator.sampler, GivenImages):
            return sorted(generator.sampler.seeds)[: self.samples]
        return list(range(self.first, self.first + self.samples))

    def _rows(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """Neighbour rows of uint8 images, sorted by seed."""
        self.memorized.reset()
        self.memorized.update(images, seeds)
        return self.memorized.rows()

    def draw(self, generator: Generator) -> Measured:
        """All samples of a generator with their neighbours."""
        seeds, parts = self.seeds(generator), []
        name = f"audit {generator.name} {generator.sampler.nfe} NFE"
        with progress(len(seeds), name, disable=not self.progress) as bar:
            for start in range(0, len(seeds), self.settings.batch_size):
                parts.append(generator.sampler(seeds[start : start + self.settings.batch_size], self.device).cpu())
                bar.update(len(parts[-1]))
        made = torch.cat(parts)
        if made.is_floating_point() and not bool(torch.isfinite(made).all()):
            problem = "makes values that are not finite"
            raise InputError("generator", generator.name, problem, "audit another checkpoint")
        images = to_uint8(made) if made.is_floating_point() else made
        floats = made if made.is_floating_point() else to_float(made)
        if "memorization" in self.settings.metrics:
            self.search.query(images, WIDEST)  # all metrics on neighbours share this answer
        rows = self._rows(images, torch.tensor(seeds))
        if self._tolerant.threshold is not None and generator.role in ("teacher", "student"):
            near = self._tolerant.index.query(images)
            rows |= {"tolerant_ratio": near.ratio, "tolerant_group": near.groups}
        return Measured(generator, images, floats, rows)

    def measure(self, m: Measured, reference: Measured | None) -> dict[str, Any]:
        """One entry of ``models``; ``reference`` is the teacher at full cost on the same seeds, or None."""
        generator, seeds = m.generator, m.rows["seeds"]
        values, hit, ratio = self.memorized.evaluate(m.rows), self.memorized.hits(m.rows), ratios(m.rows["squared"])
        entry: dict[str, Any] = {"name": generator.name, "role": generator.role, "method": generator.method}
        entry |= {"nfe": generator.sampler.nfe, "weights": generator.weights, "step": generator.step}
        entry |= {"samples": len(seeds), "seeds": [int(seeds[0]), int(seeds[-1])], "digest": generator.digest}
        entry |= {"f_mem": fraction(hit), "unique": int(values["unique"]), "median_ratio": values["median_ratio"]}
        entry["thresholds"] = {k: values[k] for k in values if k.startswith("f_mem_1/")}
        entry["ratio_cdf"] = _rounded_cdf(ratio)
        entry["conformal"] = self._conformal(ratio, float(hit.double().mean()))
        entry["quality"] = self.quality(m.images, seeds)
        entry["metrics"] = measure(self.suite, m.images, seeds)
        pair = dict.fromkeys(PAIR) if reference is None else self._distance(m, reference)
        if self.folder is not None:
            self._keep(m)
        module, teacher = generator.module, None if reference is None else reference.generator.module
        # Once per model: at another NFE it is the same one.
        if "inside" in self.settings.metrics and module is not None and id(module) not in self._seen:
            self._seen.add(id(module))
            sizes = {"images": sized(IMAGES, len(seeds)), "points": sized(POINTS, len(seeds))}
            parts = (module, self.training_set, teacher, m.floats, seeds, hit, self.device)
            entry["inside"] = whitebox_record(*parts, **sizes, quiet=not self.progress)
        return entry | pair

    def _distance(self, m: Measured, reference: Measured) -> dict[str, Any]:
        """Amplitude, rmse and basins of the same seeds."""
        paired = PairedWithTeacher(self.near_duplicates)
        paired.prepare(self.training_set)
        paired.update(m.floats, reference.floats, m.rows["seeds"])
        distance = paired.compute()
        return {name: distance[name] for name in PAIR}

    def _conformal(self, ratio: Tensor, suspected: float) -> dict[str, Any] | None:
        """What held-out images say of the ratios, at a false-discovery rate of 1 %."""
        if len(self._held_out) < 2:
            return None
        control = self._control_ratios.numpy()
        return conformal_discoveries(ratio.numpy(), control, FALSE_DISCOVERIES, suspected)

    def _keep(self, m: Measured) -> None:
        arrays = disk_rows(m.rows)
        if len(self._held_out):
            ratio = ratios(m.rows["squared"]).numpy()
            arrays["conformal_p"] = conformal_p_values(ratio, self._control_ratios.numpy())
        nearest = self.search.query(m.images, 1).nearest
        arrays["nearest"] = nearest.numpy()
        self._shown.update(nearest[:PICTURES].tolist())
        self.folder.write_arrays(f"audit/{m.generator.file_stem}.npz", **arrays)
        pixels = m.images.permute(0, 2, 3, 1).numpy()
        self.folder.write_arrays(f"samples/{m.generator.file_stem}.npz", images=pixels, seeds=arrays["seeds"])

    def _keep_pictures(self, models: Sequence[dict[str, Any]]) -> None:
        """The training images that a report shows: neighbours of the first samples, and the most-hit ones."""
        for entry in models:
            top = entry["metrics"].get("coverage", {}).get("detail", {}).get("top", [])
            self._shown.update(hit["image"] for hit in top)
        ids = torch.tensor(sorted(self._shown), dtype=torch.int64)
        pixels = self.training_set.images[ids].permute(0, 2, 3, 1)
        self.folder.write_arrays("audit/pictures.npz", ids=ids.numpy(), images=pixels.numpy())

    def quality(self, images: Tensor, seeds: Tensor) -> dict[str, Any]:
        """Frechet and kernel distances of uint8 images (m, C, H, W) to H and to T, by extractor; ``unavailable`` says
        why there are none."""
        values: dict[str, Any] = {}
        for metric in self.fidelity:
            metric.reset()
            # Without enough images the keys are there all the same.
            values |= {metric.frechet_key: None, metric.kernel_key: None}
            if (reason := metric.unavailable(len(images))) is not None:
                values.setdefault("unavailable", []).append(reason)
            if len(images) >= metric.min_samples:
                metric.update(images, seeds)
                values |= metric.compute()
        return values

    def pair(
        self, teacher: Measured, student: Measured, cheap: Measured | None, entry: dict[str, Any], error: float = ERROR
    ) -> dict[str, Any]:
        """The student against the teacher on the same seeds, see `cdmem.audit.pairs`."""
        # Seeds belong together where they reach the same image more often than unrelated ones would.
        belong = entry["same_basin_low"] > entry["same_basin_chance"]
        samples = [None if m is None else Samples(m.images, m.rows) for m in (teacher, student, cheap)]
        return pair_record(samples[0], samples[1], self.yardstick, belong, samples[2], error)

    def control(self) -> dict[str, Any]:
        """Held-out images and T's own images in place of samples: what 'none' and 'all' look like here."""
        heldout = None
        if len(self._held_out):
            heldout = fraction(self.memorized.hits(self._control_rows)) | {"samples": len(self._held_out)}
            heldout["ratio_cdf"] = _rounded_cdf(self._control_ratios)
        # The copycat draws rows of T at random, as a perfect copier would.
        draw = torch.Generator().manual_seed(self.first)
        t = self.training_set
        copies = t.images[t.row_to_group[torch.randint(t.rows, (self.samples,), generator=draw)]]
        seeds = torch.arange(len(copies))
        # Frechet distance of T itself to H, and between two halves of H, by extractor.
        enough = len(self._held_out) >= LEAST
        return {
            "heldout_f_mem": heldout,
            "quality": {k: v for m in self.fidelity if enough for k, v in m.controls(self.samples).items()},
            "copycat": {
                "samples": self.samples,
                "f_mem": fraction(self.memorized.hits(self._rows(copies, seeds))),
                "quality": self.quality(copies, seeds),
                "metrics": measure(self.suite, copies, seeds),
            },
        }

    def run(self, generators: Sequence[Generator], distillation: dict[str, Any] | None = None) -> AuditResult:
        """Audit all generators; the first teacher, at full cost, is the reference of the paired numbers.

        Args:
            generators: teachers first.
            distillation: per student the record of `cdmem.audit.distillation_curve`, for the verdict.
        """
        audited: list[Audited] = []
        reference, cheap, control, comparisons = None, {}, self.control(), {}
        distillation = distillation or {}
        for generator in generators:
            m = self.draw(generator)
            if generator.role == "teacher" and reference is None:
                reference = m
            entry = self.measure(m, reference)
            audited.append(Audited(entry, self.yardstick.strict(m.rows), _recipe(m)))
            if generator.role == "teacher" and generator.method == "euler" and audited[-1].makes_images:
                cheap[generator.sampler.nfe] = m
            if generator.role == "student" and reference is not None:
                error = (distillation.get(generator.name) or {}).get("error", ERROR)
                entry["paired"] = self.pair(reference, m, cheap.get(generator.sampler.nfe), entry, error)
                comparisons.setdefault(generator.name, []).append(entry["paired"])
        for family in comparisons.values():
            adjust(family)
        if self.folder is not None:
            self._keep_pictures([m.entry for m in audited])
        keys = [metric.frechet_key for metric in self.fidelity]
        verdicts = Verdicts(audited, control["heldout_f_mem"], distillation, self.converged, keys)
        models = [m.entry | ({"verdict": verdicts.of(m)} if m.entry["role"] == "student" else {}) for m in audited]
        reasons = [reason for m in models for reason in m["quality"].get("unavailable", ())]
        notes = list(dict.fromkeys(reasons))
        return AuditResult(self._about(), models, control, self._settings(), distillation, notes)

    def _about(self) -> dict[str, Any]:
        t = self.training_set
        about = {"n": len(t.images), "rows": t.rows, "hash": t.hash, "held_out": len(t.held_out_images)}
        about |= {"source": t.source, "flip": t.flip, "shape": list(t.shape)}
        return about | {"groups": self.search.index.num_groups, "near_duplicates_merged": self.search.merged}

    def _settings(self) -> dict[str, Any]:
        digests = extractor_record(self.extractors)
        settings = {"samples": self.samples, "threshold": self.threshold, "features": next(iter(digests))}
        settings |= {"extractors": digests, "near_duplicates": self.near_duplicates}
        settings["converged"] = "given by the user" if self.converged else None
        # The faster of two paths on this machine; both give the same bits, so it is a record and changes no number.
        settings["neighbor_products"] = "int8" if self.search.index.use_int_mm else "float32"
        return settings | {"groups": list(self.settings.metrics), "asked": self.settings.asked()}
