"""Exact nearest training images in pixel space: integers, groups, bounded memory.

Grey levels shifted by 128 fit int8, so products and squared distances are *integers*: no cancellation near a copy, and
the result is the same for any tile size, batch size, thread count or device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdmem.errors import InputError

BLOCK = 1024  # 1024 products of at most 128^2 sum to at most 2^24: exact in float32 in any order
INT_BLOCK = 2**16
FAR = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Neighbors:
    """Nearest and second-nearest *group* of each query.

    Attributes:
        squared1: squared L2 distance in grey levels to the nearest group, int64 (B,).
        squared2: the same to the nearest image of another group, int64 (B,).
        group1: id of the nearest group, int64 (B,); ties go to the lowest id.
        group2: id of the second group, int64 (B,).
    """

    squared1: Tensor
    squared2: Tensor
    group1: Tensor
    group2: Tensor

    @property
    def d1(self) -> Tensor:
        """L2 distance in grey levels, float64 (B,)."""
        return self.squared1.double().sqrt()

    @property
    def d2(self) -> Tensor:
        """L2 distance in grey levels, float64 (B,)."""
        return self.squared2.double().sqrt()

    @property
    def ratio(self) -> Tensor:
        """d1 / d2, float64 in [0, 1]; 0 for a bit-exact copy, never NaN (groups differ, so d2 > 0 where d1 = 0)."""
        return torch.where(self.squared1 == 0, torch.zeros_like(self.d1), self.d1 / self.d2.clamp_min(1e-300))


def group_ids(images: Tensor) -> Tensor:
    """Group of each row by content, numbered by first occurrence: uint8 (n, ...) -> int64 (n,)."""
    seen: dict[bytes, int] = {}
    return torch.tensor([seen.setdefault(row.tobytes(), len(seen)) for row in images.flatten(1).cpu().numpy()])


def int_mm_works(device: torch.device) -> bool:
    """Whether this build multiplies int8 matrices exactly on the device."""
    try:
        a = torch.full((32, 64), -128, dtype=torch.int8, device=device)
        return bool((torch._int_mm(a, a.t().contiguous()[:, :32].contiguous()) == 64 * 128 * 128).all())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def products(queries: Tensor, rows: Tensor, use_int_mm: bool) -> Tensor:
    """Exact inner products of shifted images: int8 (B, D) and (n, D) -> int64 (B, n)."""
    if use_int_mm:
        # CUDA wants more than 16 rows and sizes that are multiples of 8; zeros change no product.
        b, n, d = len(queries), len(rows), queries.shape[1]
        pad_b, pad_n, pad_d = max(-b % 8, 24 - b), -n % 8, -d % 8
        a = torch.nn.functional.pad(queries, (0, pad_d, 0, pad_b))
        c = torch.nn.functional.pad(rows, (0, pad_d, 0, pad_n))
        # 2^16 products of at most 2^14 still fit int32; larger images are summed in blocks.
        blocks = (torch._int_mm(x, y.t()) for x, y in zip(a.split(INT_BLOCK, 1), c.split(INT_BLOCK, 1)))
        return sum(part[:b, :n].to(torch.int64) for part in blocks)
    total = torch.zeros(len(queries), len(rows), dtype=torch.int64, device=queries.device)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    for start in range(0, queries.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        with torch.autocast(queries.device.type, enabled=False):
            total += (queries[:, part].float() @ rows[:, part].float().t()).to(torch.int64)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return total


class NeighborIndex:
    """Search over the groups of a training set.

    Args:
        images: training images, uint8 (n, C, H, W); identical rows become one group.
        flip: mirrored images belong to the group of their original.
        memory_mib: bound on temporary memory of a query.

    Raises:
        InputError: fewer than two groups, which leaves no second neighbour.
    """

    def __init__(self, images: Tensor, *, flip: bool = False, memory_mib: int = 256) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError("images", f"{images.dtype} {tuple(images.shape)}", "must be uint8 (n, C, H, W)", "round")
        self.shape, self.memory_mib = tuple(images.shape[1:]), memory_mib
        both = torch.cat([images, images.flip(-1)]) if flip else images
        content = group_ids(both)
        first = self._first_rows(content)
        groups = content[first]
        if flip:
            mirrored = content[len(images) :]
            parent = torch.arange(int(content.max()) + 1)
            parent[mirrored] = torch.minimum(parent[mirrored], content[: len(images)])
            parent[content[: len(images)]] = torch.minimum(parent[content[: len(images)]], parent[mirrored])
            # An image and its mirror image share the lower number; then number the groups without gaps.
            groups = torch.unique(parent[groups], return_inverse=True)[1]
        self.groups = groups
        self.rows = self._shifted(both[first])
        self.num_groups = int(groups.max()) + 1
        if self.num_groups < 2:
            raise InputError("data.n", self.num_groups, "a second neighbour needs two different images", "use n >= 2")
        self.squares = self.rows.to(torch.int64).square().sum(1)
        self.use_int_mm = int_mm_works(self.rows.device)

    @staticmethod
    def _first_rows(content: Tensor) -> Tensor:
        """Row of the first occurrence of every content id."""
        first = torch.full((int(content.max()) + 1,), len(content), dtype=torch.int64)
        return first.scatter_reduce(0, content, torch.arange(len(content)), "amin")

    @staticmethod
    def _shifted(images: Tensor) -> Tensor:
        return (images.flatten(1).to(torch.int16) - 128).to(torch.int8)

    def to(self, device: torch.device | str) -> NeighborIndex:
        """Move the search to a device."""
        self.rows, self.squares, self.groups = (t.to(device) for t in (self.rows, self.squares, self.groups))
        self.use_int_mm = int_mm_works(self.rows.device)
        return self

    def query(self, images: Tensor) -> Neighbors:
        """Neighbours of uint8 images (B, C, H, W).

        Raises:
            InputError: another shape or type than the training images'.
        """
        if tuple(images.shape[1:]) != self.shape or images.dtype != torch.uint8:
            given = f"{images.dtype} {tuple(images.shape[1:])}"
            raise InputError("images", given, f"the training images are uint8 {self.shape}", "resize or quantise them")
        # 32 bytes a table entry: int32 and int64 products, distances, and the copy of the selection.
        entries = max(self.memory_mib * 2**20 // 32, 2)
        tile = min(len(self.rows), max(entries // 64, 1))
        step = max(entries // tile, 1)
        parts = [self._query(images[k : k + step], tile) for k in range(0, len(images), step)]
        if not parts:
            empty = torch.zeros(0, dtype=torch.int64)
            return Neighbors(empty, empty, empty, empty)
        return Neighbors(*(torch.cat(column) for column in zip(*parts)))

    def _query(self, images: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        queries = self._shifted(images.to(self.rows.device))
        squares = queries.to(torch.int64).square().sum(1)
        best = torch.full((len(queries),), FAR, device=queries.device)
        group1 = torch.full_like(best, FAR)
        second, group2 = best.clone(), group1.clone()
        for start in range(0, len(self.rows), tile):
            part = slice(start, start + tile)
            squared = squares[:, None] + self.squares[part] - 2 * products(queries, self.rows[part], self.use_int_mm)
            for d, g in _two_best(squared, self.groups[part], self.num_groups):
                best, group1, second, group2 = _merge(best, group1, second, group2, d, g)
        return best, second, group1, group2


def _two_best(squared: Tensor, groups: Tensor, num_groups: int) -> list[tuple[Tensor, Tensor]]:
    """The best and the best of another group in one tile; ties by the lowest group."""
    # Distance and group in one integer: squared < 2^31 for 64x64x3, groups < 2^31.
    key = squared * num_groups + groups
    first = key.amin(1)
    g1 = first % num_groups
    others = key.masked_fill(groups == g1[:, None], FAR).amin(1)
    found = others < FAR
    g2 = torch.where(found, others % num_groups, FAR)
    d2 = torch.where(found, others // num_groups, FAR)
    return [(first // num_groups, g1), (d2, g2)]


def _merge(
    best: Tensor, group1: Tensor, second: Tensor, group2: Tensor, d: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Insert one candidate per query into the running two best groups."""
    ahead = (d < best) | ((d == best) & (g < group1))
    same = g == group1
    beats_second = ~ahead & ~same & ((d < second) | ((d == second) & (g < group2)))
    # A better row of the group that already leads must not push that group into second place.
    demote = ahead & ~same
    second = torch.where(demote, best, torch.where(beats_second, d, second))
    group2 = torch.where(demote, group1, torch.where(beats_second, g, group2))
    best, group1 = torch.where(ahead, d, best), torch.where(ahead, g, group1)
    return best, group1, second, group2
