"""Exact neighbours: cdmem's integers against faiss-cpu's IndexFlatL2, both in one run.

    pip install faiss-cpu
    python benchmarks/neighbors.py --cifar10 DIR       # 10,000 test images against the 50,000 training images
    python benchmarks/neighbors.py                     # the same sizes on random images

The two take turns on blocks of queries, so that whatever else the machine does slows both. Without ``--cifar10`` the
images are random; the time does not depend on the pixels. Memory is the rise of the peak resident size while cdmem
works, which is first, beyond the images themselves.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch

from cdmem.data.sources import load_source
from cdmem.metrics.neighbors import NeighborIndex


def peak_mib() -> float:
    """Largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def images(folder: str | None, rows: int, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images and queries, uint8."""
    if folder is None:
        draw = torch.Generator().manual_seed(0)
        both = torch.randint(0, 256, (rows + queries, 3, 32, 32), dtype=torch.uint8, generator=draw)
        return both[:rows], both[rows:]
    train = load_source("cifar10", folder).images
    test = train[rows : rows + queries]
    if len(test) < queries:  # the training batches alone: mirrored training images are as good for timing
        test = train[:queries].flip(-1).contiguous()
    return train[:rows], test


def main() -> None:
    """Time both, compare their answers, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", default=None, help="folder of the official binary batches")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=4, help="turns that the two take")
    options = parser.parse_args()
    try:
        import faiss
    except ImportError:
        sys.exit("benchmarks/neighbors.py: faiss is missing; pip install faiss-cpu")
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    train, test = images(options.cifar10, options.rows, options.queries)
    before = peak_mib()
    started = time.perf_counter()
    index = NeighborIndex(train)
    build = time.perf_counter() - started
    index.query(test[:256])
    ours_peak = peak_mib() - before
    flat = faiss.IndexFlatL2(train[0].numel())
    started = time.perf_counter()
    flat.add(train.flatten(1).float().numpy())
    add = time.perf_counter() - started
    seconds, agree, ties = [0.0, 0.0], 0, 0
    for part in test.chunk(options.blocks):
        floats = part.flatten(1).float().numpy()
        started = time.perf_counter()
        ours = index.query(part)
        seconds[0] += time.perf_counter() - started
        started = time.perf_counter()
        _, theirs = flat.search(floats, 2)
        seconds[1] += time.perf_counter() - started
        same = ours.nearest == torch.from_numpy(theirs[:, 0])
        agree += int(same.sum())
        rows = train[torch.from_numpy(theirs[:, 0])].flatten(1).to(torch.int64)
        squared = (part.flatten(1).to(torch.int64) - rows).square().sum(1)
        ties += int((~same & (squared == ours.squared1)).sum())
    record = {
        "queries": len(test),
        "rows": len(train),
        "threads": options.threads,
        "cdmem_s": round(seconds[0], 2),
        "faiss_s": round(seconds[1], 2),
        "ratio": round(seconds[0] / seconds[1], 3),
        "cdmem_build_s": round(build, 2),
        "faiss_add_s": round(add, 2),
        "cdmem_extra_mib": round(ours_peak),
        "nearest_agree": agree,
        "ties": ties,
        "int8_products": index.use_int_mm,
    }
    print(f"cdmem {seconds[0]:.1f} s (+ {build:.1f} s to build), faiss {seconds[1]:.1f} s (+ {add:.1f} s to add)")
    print(
        f"ratio {record['ratio']}, extra memory {ours_peak:.0f} MiB, nearest agree {agree} + {ties} ties of {len(test)}"
    )
    print(json.dumps(record))


if __name__ == "__main__":
    main()
