"""Pictures that show what a number hides: samples beside what they copy, students beside their teacher, curves.

All of it is made from the samples that the metrics of the same step have made anyway. Files are PNG.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.evaluation import Cadence, Evaluation, EvaluationCallback, Planned
from cdmem.data.subset import TrainingSet
from cdmem.images import grid, to_uint8
from cdmem.metrics.base import SampleMetric
from cdmem.metrics.memorization.coverage import hit_counts, hits_by_multiplicity
from cdmem.metrics.memorization.fraction import CDF_GRID, ratio_cdf
from cdmem.metrics.memorization.ratio import memorized, ratios
from cdmem.metrics.neighbors.index import GroupIndex, NearDuplicates, NeighborMetric
from cdmem.training.module import DiffusionModule

VERMILLION, BLUE = "#D55E00", "#0072B2"  # told apart from black and grey by colour-blind readers too
FRAME, GAP, STRIP, LEAST_WIDTH = 2, 1, 12, 32  # pixels; the narrowest picture still holds its ratio as text
TABLE_ROWS = 64


class Gathered(SampleMetric):
    """Gathers images uint8 (B, C, H, W), by seed: a panel shows those of *all* ranks."""

    def evaluate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Nothing: only the rows are wanted."""
        return {}


class SampleRows(Gathered, NeighborMetric):
    """Gathers with the images their squared distances and groups, int64 (B, 2)."""

    def columns(self, images: Tensor) -> dict[str, Tensor]:
        """Squared distances, groups and images."""
        return {**super().columns(images), "images": images}


@dataclass
class Triples:
    """Samples with the two nearest images of T, the worst (smallest d1 / d2) first.

    Attributes:
        seeds: int64 (k,).
        sample, nearest, second: uint8 (k, C, H, W); neighbours are mirrored where their mirror image is nearer.
        row1, row2: their rows in T, int64 (k,).
        ratio: d1 / d2, float64 (k,).
        hit: memorised, bool (k,).
    """

    seeds: Tensor
    sample: Tensor
    nearest: Tensor
    second: Tensor
    row1: Tensor
    row2: Tensor
    ratio: Tensor
    hit: Tensor


def nearest_of_group(image: Tensor, group: int, search: GroupIndex) -> tuple[int, Tensor]:
    """Row of T and picture, uint8 (C, H, W), of a group's image nearest to ``image``, mirrored if so it is nearer."""
    rows = (search.index.row_groups.cpu() == group).nonzero()[:, 0]
    shown = search.training_images[rows].cpu()
    if search.flip:
        rows, shown = torch.cat([rows, rows]), torch.cat([shown, shown.flip(-1)])
    squared = (shown.to(torch.int64) - image.to(torch.int64)).square().flatten(1).sum(1)
    best = int(squared.argmin())
    return int(rows[best]), shown[best]


def triples(rows: dict[str, Tensor], search: GroupIndex, threshold: float, count: int) -> Triples:
    """The ``count`` samples with the smallest d1 / d2 and their neighbours."""
    ratio = ratios(rows["squared"])
    worst = torch.argsort(ratio, stable=True)[:count]
    sample, groups = rows["images"][worst], rows["groups"][worst]
    pairs = [[nearest_of_group(x, int(g), search) for g in pair] for x, pair in zip(sample, groups)]
    (row1, nearest), (row2, second) = (zip(*column) for column in zip(*pairs))
    squared = rows["squared"][worst]
    return Triples(
        rows["seeds"][worst],
        sample,
        torch.stack(nearest),
        torch.stack(second),
        torch.tensor(row1),
        torch.tensor(row2),
        ratio[worst],
        memorized(squared[:, 0], squared[:, 1], threshold),
    )


def _pictures(images: Tensor, scale: int) -> np.ndarray:
    """uint8 (k, C, H, W), grey or colour -> (k, H*scale, W*scale, 3)."""
    big = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return big.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def neighbor_panel(worst: Triples, columns: int = 16) -> np.ndarray:
    """Blocks of three rows (sample, nearest, second) and a strip with d1 / d2; memorised columns are framed.

    Returns:
        (H, W, 3) uint8.
    """
    scale = max(1, -(-LEAST_WIDTH // worst.sample.shape[-1]))
    stacks = [_pictures(part, scale) for part in (worst.sample, worst.nearest, worst.second)]
    height, width = stacks[0].shape[1:3]
    tall = 3 * height + 2 * GAP + 2 * FRAME
    cell, block = width + 2 * FRAME + 2, tall + STRIP + 4
    columns = min(columns, len(worst.ratio))
    blocks = -(-len(worst.ratio) // columns)
    canvas = Image.new("RGB", (columns * cell, blocks * block), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (ratio, hit) in enumerate(zip(worst.ratio.tolist(), worst.hit.tolist())):
        left, top = (k % columns) * cell + 1, (k // columns) * block
        draw.text((left + FRAME, top), f"{ratio:.2f}", fill=VERMILLION if hit else "black")
        top += STRIP
        if hit:
            corner = (left + width + 2 * FRAME - 1, top + tall - 1)
            draw.rectangle(((left, top), corner), outline=VERMILLION, width=FRAME)
        for i, stack in enumerate(stacks):
            canvas.paste(Image.fromarray(stack[k]), (left + FRAME, top + FRAME + i * (height + GAP)))
    return np.asarray(canvas)


def pairs_panel(above: Tensor, below: Tensor, columns: int = 16) -> np.ndarray:
    """Each image above the one of the same number, uint8 (k, C, H, W) both -> (H, W, 3) uint8."""
    columns = min(columns, len(above))
    white = torch.full_like(above[:columns], 255)
    rows = [row for pair in zip(above.split(columns), below.split(columns)) for row in pair]
    whole = torch.cat([torch.cat([row, white[len(row) :]]) for row in rows])
    return grid(whole, columns, scale=max(1, LEAST_WIDTH // above.shape[-1]))


def curves_panel(cdf: Tensor, threshold: float, by_multiplicity: list[dict[str, Any]]) -> np.ndarray:
    """Left: CDF of d1 / d2 on [0, 1] x [0, 1], the threshold as a line; right: share of groups hit by multiplicity.

    Returns:
        (H, W, 3) uint8.
    """
    figure = Figure((5.2, 2.0), dpi=100)
    canvas, (left, right) = FigureCanvasAgg(figure), figure.subplots(1, 2)
    left.plot(CDF_GRID, cdf, color=BLUE)
    left.axvline(threshold, color=VERMILLION)
    left.set_xlim(0, 1)
    left.set_title("share of samples with d1/d2 below", fontsize=8)
    at = range(len(by_multiplicity))
    right.vlines(at, *zip(*(row["ci95"] for row in by_multiplicity)), color=BLUE)
    right.plot(at, [row["p_hit"] for row in by_multiplicity], "o", color=BLUE)
    right.set_xticks(at, [str(row["copies"]) for row in by_multiplicity])
    right.set_title("share of images hit, by copies in T", fontsize=8)
    for ax in (left, right):
        ax.set_ylim(0, 1)
        ax.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def table_rows(worst: Triples) -> list[list[Any]]:
    """One row per sample: seed, ratio, memorised, the three pictures as uint8 (H, W, 3), rows of T of the last two."""
    pictures = [_pictures(part, 1) for part in (worst.sample, worst.nearest, worst.second)]
    columns = (worst.seeds, worst.ratio, worst.hit)
    plain = [column.tolist() for column in (*columns, worst.row1, worst.row2)]
    return [[*row[:3], *(part[k] for part in pictures), *row[3:]] for k, row in enumerate(zip(*plain))]


class NeighborPanelCallback(EvaluationCallback):
    """Writes three pictures per evaluation of ``fit`` under ``panels/``, and to W&B with the numbers behind them:

    * ``neighbors_step=<step>.png``: sample, nearest and second-nearest training image, and d1 / d2, worst first,
      memorised ones framed;
    * ``pairs_step=<step>.png`` (students): the teacher's endpoint above the student's image of the same seed;
    * ``curves_step=<step>.png``: CDF of d1 / d2, and the share of training images hit against their multiplicity.

    Args:
        shown: columns of the neighbour panel and rows of the W&B table, at most 64.
        columns: columns side by side.
        threshold: memorised means d1 / d2 below it.
        near_duplicates: ``off``, ``auto`` or a ratio: which training images count as one.
        cadence: when, and from how many samples the worst are taken; those of `MemorizationCallback` cost nothing
            extra.
    """

    prefix = "panels"

    def __init__(
        self,
        shown: int = 32,
        columns: int = 16,
        threshold: float = 1 / 3,
        near_duplicates: NearDuplicates = "off",
        cadence: Cadence = Cadence(),
    ) -> None:
        super().__init__(cadence)
        self.shown, self.columns = max(1, min(shown, cadence.samples, TABLE_ROWS)), max(1, columns)
        self.threshold, self.near_duplicates = threshold, near_duplicates

    def planned(self, module: DiffusionModule, training_set: TrainingSet) -> Planned:
        """Samples, and the teacher's endpoints for those that are shown."""
        return replace(super().planned(module, training_set), endpoints=self.shown)

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        module, t = evaluation.module, evaluation.training_set
        # Outside fit the step is unknown to the trainer: a picture would replace that of step 0.
        if evaluation.trainer.fast_dev_run or evaluation.trainer.state.fn != "fit":
            return {}
        seeds, images = evaluation.samples(self.samples)
        metric = SampleRows(2, self.near_duplicates).to(module.device).prepare(t)
        metric.update(to_uint8(images), seeds)
        # Rows are gathered over processes: every rank must ask, also those that write nothing.
        rows, teacher = metric.rows(), self._teacher_rows(evaluation)
        if not evaluation.is_writer:
            return {}
        search = metric.search
        worst = triples(rows, search, self.threshold, self.shown)
        evaluation.send_picture("panels/neighbors", neighbor_panel(worst, self.columns), "neighbors_")
        if teacher is not None:
            student = rows["images"][torch.isin(rows["seeds"], teacher["seeds"])]
            panel = pairs_panel(teacher["images"], student, self.columns)
            evaluation.send_picture("panels/pairs", panel, "pairs_")
        cdf = ratio_cdf(ratios(rows["squared"]))
        hit = memorized(rows["squared"][:, 0], rows["squared"][:, 1], self.threshold)
        hits = hit_counts(rows["groups"][:, 0], hit, search.index.num_groups)
        table = hits_by_multiplicity(hits, search.multiplicities, len(hit))
        evaluation.send_picture("panels/curves", curves_panel(cdf, self.threshold, table), "curves_")
        self._send_data(evaluation, worst, rows, cdf, table)
        return {}

    def _teacher_rows(self, evaluation: Evaluation) -> dict[str, Tensor] | None:
        """Endpoints of the frozen teacher for the first seeds, from all ranks."""
        teacher = evaluation.teacher_endpoints(self.shown)
        if teacher is None:
            return None
        seeds, _ = evaluation.samples(self.shown)
        gathered = Gathered().to(evaluation.module.device).prepare(evaluation.training_set)
        gathered.update(to_uint8(teacher), seeds)
        return gathered.rows()

    def _send_data(
        self,
        evaluation: Evaluation,
        worst: Triples,
        rows: dict[str, Tensor],
        cdf: Tensor,
        by_multiplicity: list[dict[str, Any]],
    ) -> None:
        """The numbers behind the pictures, for loggers that take tables and histograms."""
        for logger in evaluation.trainer.loggers:
            if not hasattr(logger, "log_panel_data"):
                continue
            logger.log_panel_data(
                step=evaluation.step,
                ratio=ratios(rows["squared"]).numpy(),
                cdf=list(zip(CDF_GRID.tolist(), cdf.tolist())),
                by_multiplicity=[[r["copies"], r["groups"], r["p_hit"], *r["ci95"]] for r in by_multiplicity],
                pairs=table_rows(worst),
            )
