"""Exact nearest training images in pixel space: integers, groups, bounded memory.

Grey levels shifted by 128 fit int8, so products and squared distances are *integers*: no cancellation near a copy, and
the result is the same for any tile size, batch size, thread count or device. A tile of distances is compared with the
running K-th best first, so that only the few rows that can still matter are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cdmem.data.subset import first_rows, group_ids, numbered
from cdmem.errors import InputError

BLOCK = 1024  # 1024 products of at most 128^2 sum to at most 2^24: exact in float32 in any order
INT_BLOCK = 2**16
SMALL = 2**31 // (3 * 128**2)  # up to this many values per image |b|^2 - 2 a.b fits int32
FAR = torch.iinfo(torch.int64).max
CANDIDATE_BYTES = 160  # sorting one candidate: positions, keys, groups, and the permutations of three sorts


@dataclass(frozen=True)
class Neighbors:
    """The nearest *groups* of each query.

    Attributes:
        squared: squared L2 distances in grey levels to the K nearest groups, ascending, int64 (B, K).
        groups: ids of these groups, int64 (B, K); ties go to the lowest id.
        nearest: which of the images given to the index is the nearest one, int64 (B,): a row of the first group, the
            lowest on ties. A mirror image counts as its original.
    """

    squared: Tensor
    groups: Tensor
    nearest: Tensor

    @property
    def squared1(self) -> Tensor:
        """Squared distance to the nearest group, int64 (B,)."""
        return self.squared[:, 0]

    @property
    def squared2(self) -> Tensor:
        """Squared distance to the nearest image of another group, int64 (B,)."""
        return self.squared[:, 1]

    @property
    def group1(self) -> Tensor:
        """Id of the nearest group, int64 (B,)."""
        return self.groups[:, 0]

    @property
    def d1(self) -> Tensor:
        """L2 distance to the nearest group in grey levels, float64 (B,)."""
        return self.squared1.double().sqrt()


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper, whatever is allowed elsewhere: no TF32 on CUDA, no bfloat16 inside oneDNN, no
    autocast; everything is restored afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    # The settings of PyTorch 2.9 and later: the older ones raise an error when both kinds were used.
    saved = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, value in zip(backends, saved):
            backend.fp32_precision = value


def int_mm_works(device: torch.device) -> bool:
    """Whether this build multiplies int8 matrices exactly on the device; how fast is another question."""
    if device.type == "cpu" and not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (32, 768), generator=draw) for _ in range(2))
    # Processors without VNNI add pairs of products in int16: only large values of both signs show that they saturate.
    a[:2] = b[:2] = torch.tensor([[-128], [127]])
    try:
        product = torch._int_mm(a.to(device, torch.int8), b.to(device, torch.int8).t())
        return torch.equal(product.cpu().long(), a @ b.t())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def product_seconds(device: torch.device, use_int_mm: bool) -> float:
    """Least time of five small products on one path; the first one pays for what is made once."""
    queries, rows = (torch.ones(count, BLOCK, dtype=torch.int8, device=device) for count in (128, 256))
    least = math.inf
    for _ in range(5):
        started = perf_counter()
        products(queries, rows, use_int_mm)[0, 0].item()  # reading a value waits for the device
        least = min(least, perf_counter() - started)
    return least


@cache
def int_mm_pays(device: torch.device) -> bool:
    """Whether int8 products are exact and faster than float32 ones, timed once per process and device.

    Both give the same bits. Without the processor's int8 instructions (VNNI) the int8 product is 20 times slower.
    """
    return int_mm_works(device) and product_seconds(device, True) < product_seconds(device, False)


def products(queries: Tensor, rows: Tensor, use_int_mm: bool) -> Tensor:
    """Exact inner products of shifted images: int8 (B, D) and (n, D) -> int32 (B, n), int64 where int32 could overflow.

    Sizes are multiples of 8, as CUDA wants them (zeros change no product); so is B, at least 24.
    """
    small = queries.shape[1] <= SMALL
    if use_int_mm:
        # 2^16 products of at most 2^14 still fit int32; larger images are summed in blocks.
        pairs = zip(queries.split(INT_BLOCK, 1), rows.split(INT_BLOCK, 1))
        if small:
            return torch._int_mm(queries, rows.t())
        blocks = (torch._int_mm(a.contiguous(), b.contiguous().t()).to(torch.int64) for a, b in pairs)
        return sum(blocks, next(blocks))
    kind = torch.int32 if small else torch.int64
    total = torch.zeros(len(queries), len(rows), dtype=kind, device=queries.device)
    with full_float32(queries.device):
        for start in range(0, queries.shape[1], BLOCK):
            part = slice(start, start + BLOCK)
            total += (queries[:, part].float() @ rows[:, part].float().t()).to(kind)
    return total


def _shifted(images: Tensor, width: int) -> Tensor:
    """uint8 (B, ...) minus 128 as int8 (B, width), filled up with zeros."""
    flat = images.flatten(1).bitwise_xor(128).view(torch.int8)
    return torch.nn.functional.pad(flat, (0, width - flat.shape[1])) if width > flat.shape[1] else flat


def _padded(rows: Tensor, least: int = 24) -> Tensor:
    """Rows filled up with zero rows to a multiple of 8, at least ``least``."""
    missing = max(-len(rows) % 8, least - len(rows))
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


class NeighborIndex:
    """Search over the groups of a training set.

    Args:
        images: training images, uint8 (n, C, H, W); identical rows become one group.
        flip: mirrored images belong to the group of their original.
        labels: int64 (n,): images of equal label are one group too (near-duplicates, see
            `cdmem.metrics.neighbors.near_duplicates`).
        memory_mib: bound on what a query takes besides its answer; the smallest tile has 24 queries and 8 rows.

    Attributes:
        num_groups: G.
        row_groups: group of every given image, int64 (n,), numbered by first occurrence.
        representatives: first image of every group, int64 (G,).

    Raises:
        InputError: not uint8 (n, C, H, W), or fewer than two groups, which leaves no second neighbour.
    """

    def __init__(
        self, images: Tensor, *, flip: bool = False, labels: Tensor | None = None, memory_mib: int = 256
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError("images", f"{images.dtype} {tuple(images.shape)}", "must be uint8 (n, C, H, W)", "round")
        if memory_mib < 0:
            raise InputError("memory_mib", memory_mib, "is a size", "256 is usual; 0 takes the smallest tiles")
        self.shape, self.memory_mib = tuple(images.shape[1:]), memory_mib
        if not len(images):
            raise InputError("data.n (training_set)", 0, "there are no training images", "use n >= 2 distinct images")
        images = images.cpu()
        both = torch.cat([images, images.flip(-1)]) if flip else images
        content = group_ids(both)
        first = first_rows(content)
        of_content = _components(content, len(images), flip, labels)
        self.row_groups = of_content[content[: len(images)]]
        self.num_groups = int(of_content.max()) + 1
        if self.num_groups < 2:
            problem = "a second neighbour needs two different images"
            raise InputError("data.n (training_set)", self.num_groups, problem, "use n >= 2 distinct images")
        self.representatives = first_rows(self.row_groups)
        # Sorted by (group, image): the position of a row breaks ties between equal distances.
        original = first_rows(content, torch.arange(len(both)) % len(images))
        order = torch.argsort(of_content * len(images) + original, stable=True)
        self.groups, self.originals = of_content[order], original[order]
        width = -(-math.prod(self.shape) // 8) * 8
        self.rows = _padded(_shifted(both[first[order]], width))
        self.count = len(order)
        self.largest_group = int(torch.bincount(self.groups).max())
        self.squares = self._squares(self.rows)
        self.use_int_mm = int_mm_pays(self.rows.device)

    @property
    def _small(self) -> bool:
        return self.rows.shape[1] <= SMALL

    def _squares(self, rows: Tensor) -> Tensor:
        """|b|^2 of shifted rows, in blocks too small to count as memory: int32 where it fits, int64 otherwise."""
        parts = rows.split(max(2**15 // rows.shape[1], 1))
        total = torch.cat([part.to(torch.int32).square_().sum(1, dtype=torch.int64) for part in parts])
        return total.to(torch.int32) if self._small else total

    def to(self, device: torch.device | str) -> NeighborIndex:
        """Move the search to a device."""
        for name in ("rows", "squares", "groups", "originals"):
            setattr(self, name, getattr(self, name).to(device))
        self.use_int_mm = int_mm_pays(self.rows.device)
        return self

    def _tile(self, queries: int) -> tuple[int, int, int]:
        """Queries and rows at a time, and the candidates that may be sorted at once, within ``memory_mib``."""
        budget, width = self.memory_mib * 2**20, self.rows.shape[1]
        # Per entry: the product, its copies for the float path or for a bound, the mask; per row: int8 and, without
        # int8 products, BLOCK float32 columns on either side.
        per_entry = 16 if self._small else 40
        per_row = 3 * width + (0 if self.use_int_mm else 4 * min(BLOCK, width))
        side = 8
        while (side + 8) ** 2 * per_entry + 2 * (side + 8) * per_row <= budget // 2:
            side += 8
        b = min(side, max(-(-queries // 8) * 8, 24))
        w = max((budget // 2 - b * per_row) // (b * per_entry + per_row) // 8 * 8, 8)
        return b, min(w, len(self.rows)), max(budget // 2 // CANDIDATE_BYTES, 1)

    def query(self, images: Tensor, k: int = 2, exclude: Tensor | None = None) -> Neighbors:
        """The k nearest groups of uint8 images (B, C, H, W), or all where there are fewer than k.

        Args:
            images: queries.
            k: groups wanted, at least 1.
            exclude: a group per query to leave out, int64 (B,): its own, when T itself is asked.

        Raises:
            InputError: another shape or type than the training images'.
        """
        if tuple(images.shape[1:]) != self.shape or images.dtype != torch.uint8:
            given = f"{images.dtype} {tuple(images.shape[1:])}"
            raise InputError("images", given, f"the training images are uint8 {self.shape}", "resize or quantise them")
        if k < 1:
            raise InputError("k", k, "must be at least 1", "2 for the ratio test")
        k = min(k, self.num_groups - (exclude is not None))
        device = self.rows.device
        batch, tile, limit = self._tile(len(images))
        squared = torch.zeros(len(images), k, dtype=torch.int64, device=device)
        positions = torch.zeros_like(squared)
        for start in range(0, len(images), batch):
            part = slice(start, min(start + batch, len(images)))
            without = None if exclude is None else exclude[part].to(device)
            keys = self._query(images[part].to(device), k, without, tile, limit)
            squared[part], positions[part] = keys // self.count, keys % self.count
            shifted = _shifted(images[part].to(device), self.rows.shape[1])
            squared[part] += self._squares(shifted).to(torch.int64)[:, None]
        nearest = self.originals[positions[:, 0]] if len(images) else torch.zeros(0, dtype=torch.int64, device=device)
        return Neighbors(squared, self.groups[positions], nearest)

    def _query(self, images: Tensor, k: int, exclude: Tensor | None, tile: int, limit: int) -> Tensor:
        """Keys (|b|^2 - 2 a.b) * count + position of the k nearest groups, ascending, int64 (B, k)."""
        queries = _padded(_shifted(images, self.rows.shape[1]))
        best = torch.full((len(images), k), FAR, device=queries.device)
        # So many nearest rows hold at least k groups besides the excluded one.
        enough = (k - 1 + (exclude is not None)) * self.largest_group + 1
        for start in range(0, self.count, tile):
            rows = self.rows[start : start + tile]
            key = products(queries, rows, self.use_int_mm)[: len(images), : self.count - start]
            key.mul_(-2).add_(self.squares[start : start + key.shape[1]])
            bound = best[:, -1] // self.count  # FAR stays larger than any key
            if enough <= key.shape[1] and bool((best[:, -1] == FAR).any()):
                bound = torch.minimum(bound, key.kthvalue(enough, 1).values.to(torch.int64))
            _insert(best, key, bound.clamp_max(torch.iinfo(key.dtype).max).to(key.dtype), start, self, exclude, limit)
        return best


def _insert(
    best: Tensor, key: Tensor, bound: Tensor, start: int, index: NeighborIndex, exclude: Tensor | None, limit: int
) -> None:
    """Merge a tile's entries that are no farther than ``bound`` (B,) into the running best keys (B, k), in place."""
    near = key <= bound[:, None]
    count = int(near.count_nonzero())
    if count > limit and len(key) > 1:
        # Many equal distances: a part of the queries at a time keeps the memory bound.
        half = len(key) // 2
        for part in (slice(0, half), slice(half, None)):
            without = None if exclude is None else exclude[part]
            _insert(best[part], key[part], bound[part], start, index, without, limit)
        return
    query, column = near.nonzero(as_tuple=True)
    if exclude is not None:
        other = index.groups[column + start] != exclude[query]
        query, column = query[other], column[other]
    if not len(query):
        return
    touched, query = query.unique(return_inverse=True)
    fresh = key[touched[query], column].to(torch.int64) * index.count + column + start
    k = best.shape[1]
    known = best[touched]
    owner = torch.arange(len(touched), device=best.device).repeat_interleave(k)
    full, owner = torch.cat([known.flatten(), fresh]), torch.cat([owner, query])
    present = full < FAR
    full, owner = full[present], owner[present]
    order = full.argsort()
    order = order[owner[order].argsort(stable=True)]
    full, owner = full[order], owner[order]
    if index.largest_group > 1:
        # The first row of every group within a query is its nearest one.
        pair = owner * index.num_groups + index.groups[full % index.count]
        by_pair = pair.argsort(stable=True)
        first = torch.ones(len(pair), dtype=torch.bool, device=best.device)
        first[by_pair[1:]] = pair[by_pair][1:] != pair[by_pair][:-1]
        full, owner = full[first], owner[first]
    sizes = torch.bincount(owner, minlength=len(touched))
    rank = torch.arange(len(owner), device=best.device) - (sizes.cumsum(0) - sizes)[owner]
    kept = rank < k
    merged = torch.full_like(known, FAR)
    merged[owner[kept], rank[kept]] = full[kept]
    best[touched] = merged


def _components(content: Tensor, n: int, flip: bool, labels: Tensor | None) -> Tensor:
    """Group of every distinct content, int64: joined by mirroring and by labels, numbered by first occurrence."""
    size = int(content.max()) + 1
    edges = [(content[:n], content[n:])] if flip else []
    if labels is not None:
        if len(labels) != n:
            raise InputError("labels", len(labels), f"there are {n} images", "give one label per image")
        _, same = torch.unique(labels.cpu(), return_inverse=True)
        edges.append((content[:n], content[:n][first_rows(same)[same]]))
    if not edges:
        return torch.arange(size)
    return connected(size, *(torch.cat(side) for side in zip(*edges)))


def connected(size: int, a: Tensor, b: Tensor) -> Tensor:
    """Component of every node of the graph with edges a[k] to b[k], numbered by first occurrence, int64 (size,)."""
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a.numpy(), b.numpy())), shape=(size, size))
    return numbered(connected_components(graph, directed=False)[1].tolist())
