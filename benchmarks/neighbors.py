"""Exact neighbours: cdmem's integers against faiss-cpu's IndexFlatL2, both in one run.

    pip install faiss-cpu
    python benchmarks/neighbors.py --cifar10 DIR       # 10,000 mirrored training images against all 50,000
    python benchmarks/neighbors.py                     # the same sizes on 1/f images

The two take turns on blocks of queries, so that whatever else the machine does slows both. Memory is the rise of the
peak resident size while cdmem builds its index and answers the first block, before faiss holds anything; the images
themselves are there before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch

from cdmem.data.sources import load_source
from cdmem.metrics.neighbors.pixels import NeighborIndex


def peak_mib() -> float:
    """Largest resident size so far, on Linux since :func:`forget_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Give freed memory back and let the peak start again from what is resident now, where the system can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def one_over_f(count: int, seed: int) -> torch.Tensor:
    """Images with the spectrum of photographs, uint8 (count, 3, 32, 32): noise with amplitude 1 / frequency."""
    draw = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(32)[:, None].hypot(torch.fft.rfftfreq(32)).clamp_min(1 / 32)
    parts = []
    for size in torch.arange(count).split(1000):
        noise = torch.fft.rfft2(torch.randn(len(size), 3, 32, 32, generator=draw)) / frequency
        images = torch.fft.irfft2(noise, s=(32, 32))
        parts.append((128 + 60 * images / images.std()).clamp(0, 255).round().to(torch.uint8))
    return torch.cat(parts)


def images(folder: str | None, rows: int, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images and queries, uint8 (rows, 3, 32, 32) and (queries, 3, 32, 32)."""
    if folder is None:
        return one_over_f(rows, 0), one_over_f(queries, 1)
    pool = load_source("cifar10", folder).images
    return pool[:rows].clone(), pool[:queries].flip(-1).contiguous()


def squared_to(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Squared distances of paired images, int64."""
    return (queries.flatten(1).to(torch.int64) - rows.flatten(1).to(torch.int64)).square().sum(1)


def compare(train: torch.Tensor, queries: torch.Tensor, blocks: int, faiss: ModuleType) -> dict[str, float]:
    """Build both, let them take turns, check the nearest images against each other."""
    parts = queries.chunk(blocks)
    forget_peak()
    before, started = peak_mib(), time.perf_counter()
    index = NeighborIndex(train)
    built = time.perf_counter() - started
    index.query(parts[0])
    record = {"cdmem_build_s": round(built, 2), "cdmem_extra_mib": round(peak_mib() - before)}
    started = time.perf_counter()
    flat = faiss.IndexFlatL2(train[0].numel())
    flat.add(train.flatten(1).float().numpy())
    record["faiss_add_s"] = round(time.perf_counter() - started, 2)
    flat.search(parts[0][:64].flatten(1).float().numpy(), 2)
    seconds, agree, ties, nearer = [0.0, 0.0], 0, 0, 0
    for part in parts:
        floats = part.flatten(1).float().numpy()
        started = time.perf_counter()
        ours = index.query(part)
        seconds[0] += time.perf_counter() - started
        started = time.perf_counter()
        theirs = torch.from_numpy(flat.search(floats, 2)[1][:, 0])
        seconds[1] += time.perf_counter() - started
        same, squared = ours.nearest == theirs, squared_to(part, train[theirs])
        if bool((squared_to(part, train[ours.nearest]) != ours.squared1).any()):
            sys.exit("benchmarks/neighbors.py: a distance of cdmem is wrong")
        agree += int(same.sum())
        ties += int((~same & (squared == ours.squared1)).sum())
        nearer += int((squared > ours.squared1).sum())
    record |= {"cdmem_s": round(seconds[0], 2), "faiss_s": round(seconds[1], 2)}
    record |= {"ratio": round(seconds[0] / seconds[1], 3), "nearest_agree": agree, "ties": ties, "cdmem_nearer": nearer}
    return record | {"int8_products": index.use_int_mm}


def main() -> None:
    """Time both, compare their answers, print two lines and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", default=None, help="folder that holds cifar-10-batches-bin")
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
    train, queries = images(options.cifar10, options.rows, options.queries)
    r = compare(train, queries, options.blocks, faiss)
    print(f"cdmem {r['cdmem_s']} s (+ {r['cdmem_build_s']} s to build), extra memory {r['cdmem_extra_mib']} MiB")
    print(f"faiss {r['faiss_s']} s (+ {r['faiss_add_s']} s to add); cdmem / faiss = {r['ratio']}")
    print(f"nearest image: {r['nearest_agree']} agree, {r['ties']} ties, {r['cdmem_nearer']} where cdmem's is nearer")
    print(json.dumps({"queries": len(queries), "rows": len(train), "threads": options.threads} | r))


if __name__ == "__main__":
    main()
