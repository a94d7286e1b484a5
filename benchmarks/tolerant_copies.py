"""Which damaged copies the strict and the tolerant ratio still see, beside blends and images that nobody trained on.

    python benchmarks/tolerant_copies.py                                              # 60 digits
    python benchmarks/tolerant_copies.py --cifar10 DIR --images 256 --resolution 16   # DIR holds cifar-10-batches-bin
    python benchmarks/tolerant_copies.py --cifar10 DIR --images 5000

Samples are copies of random training images, damaged, then with noise of 4 grey levels. Thresholds: 1/3 of the strict
ratio, that of 1 % of the held-out images for the tolerant one. ``nearest`` is how often the copied image is the nearest
one of the tolerant search, ``found`` how often it is among the images compared at full size.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, TrainingSet, choose
from cdmem.metrics.memorization.tolerant import TolerantCopies
from cdmem.metrics.neighbors.shifts import centred

DRAW = torch.Generator().manual_seed(0)


def noise(x: Tensor, sd: float) -> Tensor:
    """Gaussian noise of so many grey levels."""
    return x + sd * torch.randn(x.shape, generator=DRAW)


def turned(x: Tensor, zoom: float = 1.0, degrees: float = 0.0) -> Tensor:
    """Zoomed and rotated about the centre, bilinear, borders reflected."""
    c, s = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    grid = F.affine_grid(torch.tensor([[[c, -s, 0], [s, c, 0]]]).expand(len(x), 2, 3), list(x.shape), False)
    return F.grid_sample(x, grid, "bilinear", "reflection", False)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Through a JPEG file of a quality."""
    parts = []
    for image in x.byte().permute(0, 2, 3, 1).squeeze(-1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        parts.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(parts)).reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2).float()


def blurred(x: Tensor, sd: float) -> Tensor:
    """Gaussian blur of so many pixels."""
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, sd, sd), mode="reflect"))


def cast(x: Tensor, gain: tuple[float, float, float]) -> Tensor:
    """A gain for every channel."""
    return x * torch.tensor(gain)[: x.shape[1], None, None]


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "mirrored": lambda x: x.flip(-1),
    "moved by 2 px (rolled)": lambda x: x.roll(2, -1),
    "moved by (2, -2) px (zeros)": lambda x: F.pad(x[..., :-2, 2:], (0, 2, 2, 0)),
    "mirrored, moved, contrast .8": lambda x: x.flip(-1).roll((1, -2), (-2, -1)) * 0.8 + 20,
    "brighter by 40": lambda x: x + 40,
    "contrast .5": lambda x: x * 0.5,
    "contrast 1.5 (clipped)": lambda x: x * 1.5,
    "colour cast 1.2, 1, .7": lambda x: cast(x, (1.2, 1.0, 0.7)),
    "gamma 1.6": lambda x: 255 * (x / 255) ** 1.6,
    "noise 20": lambda x: noise(x, 20),
    "noise 40": lambda x: noise(x, 40),
    "zoom 10 %": lambda x: turned(x, zoom=1.1),
    "rotation 5 degrees": lambda x: turned(x, degrees=5),
    "rotation 10 degrees": lambda x: turned(x, degrees=10),
    "JPEG, quality 30": lambda x: jpeg(x, 30),
    "blur .8 px": lambda x: blurred(x, 0.8),
    "blur 1.2 px": lambda x: blurred(x, 1.2),
    "moved by 3 px": lambda x: x.roll(3, -1),
    "upside down": lambda x: x.flip(-2),
}


def row(name: str, metric: TolerantCopies, samples: Tensor, truth: Tensor | None) -> str:
    """A line of the table for uint8 samples (m, C, H, W), copies of the images ``truth`` (m,)."""
    metric.reset()
    metric.update(samples, torch.arange(len(samples)))
    values, rows = metric.compute(), metric.rows()
    cells = [metric.hits(rows).double().mean(), torch.tensor(values["copied"])]
    if truth is not None:
        index, x = metric.tolerant.index, centred(samples)
        both = torch.stack([x, x.flip(-1)], 1)
        # Of the search's own steps, to see what it would have missed.
        found = None if index.small is None else torch.cat([index._candidates(part) for part in both.split(16)])
        cells.append((rows["tolerant_group"] == truth).double().mean())
        cells += [] if found is None else [(found == truth[:, None]).any(1).double().mean()]
    return f"| {name} | " + " | ".join(f"{100 * float(cell):.1f}" for cell in cells) + " |"


def table(t: TrainingSet, fresh: Tensor, samples: int) -> None:
    """Print the table."""
    started = time.process_time()
    metric = TolerantCopies().prepare(t)
    seconds, h = time.process_time() - started, len(t.held_out_images)
    print(
        f"{len(t.images)} images of {t.shape}, {metric.tolerant.index.compared} compared at full size; H: {h} images,"
    )
    print(f"{seconds:.1f} s, threshold {metric.tolerant_threshold:.3f}, {100 * metric.heldout_rate:.2f} % are copies")
    print("| % | strict | tolerant | nearest | found |\n|---|---|---|---|---|")
    chosen = torch.randint(len(t.images), (samples,), generator=DRAW)
    other = (chosen + torch.randint(1, len(t.images), (samples,), generator=DRAW)) % len(t.images)
    one, two = t.images[chosen].float(), t.images[other].float()

    def saved(x: Tensor) -> Tensor:
        return noise(x, 4).round().clamp(0, 255).byte()

    for name, damage in DAMAGE.items():
        print(row(name, metric, saved(damage(one)), chosen), flush=True)
    for share in (0.5, 0.7, 0.8):
        print(row(f"blend of two images, {share}", metric, saved(share * one + (1 - share) * two), None), flush=True)
    print(row("half another image that is not in T", metric, saved((one + fresh[chosen % len(fresh)]) / 2), None))
    print(row("unseen images", metric, fresh, None))


def main() -> None:
    """One table, on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", default=None, help="folder that holds cifar-10-batches-bin; digits without it")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--resolution", type=int, default=None)
    parser.add_argument("--held_out", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = ("digits", None) if options.cifar10 is None else ("cifar10", options.cifar10)
    pool = load_source(*source, resolution=options.resolution)
    held_out = min(options.held_out + 700, len(pool.images) - options.images)
    t = choose(pool, SubsetSpec(n=options.images, held_out=held_out, seed=0))
    kept, fresh = t.held_out_images.split([held_out - 700, 700])
    table(replace(t, held_out_images=kept), fresh, options.samples)


if __name__ == "__main__":
    main()
