"""Teachers and students whose truth is known: what each student did to its teacher's copies, on synthetic pictures.

Truths:

``same``      it copies what the teacher copies, plainly
``more``      it copies more
``less``      it copies less
``fewer``     it copies more often, but far fewer images
``damaged``   its copies are altered beyond d1/d2 < 1/3, but plain to see
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from cdmem.data.subset import TrainingSet
from support.parts import make_training_set

SIDE, IMAGES, HELD_OUT, SEEDS = 12, 100, 400, 500


class Student(NamedTuple):
    """Samples of a pair, row k of both from one seed: float64 (m, H, W, 3) in grey levels, and the truth."""

    teacher: np.ndarray
    student: np.ndarray
    truth: str


def pictures(count: int, r: np.random.Generator) -> np.ndarray:
    """Dead leaves, which have the statistics of photographs (Lee, Mumford and Huang 2001): opaque discs of all sizes,
    of colours near one of the image's own; float64 (count, SIDE, SIDE, 3), whole numbers from 0 to 255."""
    fine, leaves = 2 * SIDE, 30
    y, x = np.mgrid[:fine, :fine].astype(np.float32) / fine
    own = r.uniform(50, 205, (count, 1)) + r.normal(0, 25, (count, 3))
    colours = own + r.normal(0, 50, (leaves, count, 1)) + r.normal(0, 15, (leaves, count, 3))
    radii = 0.06 * (1 - r.random((leaves, count)) * (1 - (0.06 / 0.5) ** 1.5)) ** (-1 / 1.5)
    places = r.uniform(-0.1, 1.1, (leaves, 2, count))
    top = np.full((count, fine, fine), leaves)
    for leaf in range(leaves):
        cx, cy, radius = (v.astype(np.float32)[:, None, None] for v in (*places[leaf], radii[leaf]))
        top[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = leaf
    palette = np.concatenate([colours, own[None]])
    image = palette[top, np.arange(count)[:, None, None]]
    return np.rint(np.clip(image.reshape(count, SIDE, 2, SIDE, 2, 3).mean((2, 4)), 0, 255))


def saved(x: np.ndarray) -> Tensor:
    """uint8 (m, 3, H, W)."""
    return torch.from_numpy(np.clip(np.rint(x), 0, 255).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


# ---- what may happen to a copy --------------------------------------------------------------------------------------


def blurred(x: np.ndarray, sd: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (0, sd, sd, 0), mode="reflect")


def warped(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Every image turned or zoomed about its centre."""
    centre = (np.array(x.shape[1:3]) - 1) / 2
    full, offset = np.eye(4), np.zeros(4)
    full[1:3, 1:3], offset[1:3] = matrix, centre - matrix @ centre
    return ndimage.affine_transform(x, full, offset, order=1, mode="nearest")


def turned(x: np.ndarray, degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    return warped(x, np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]))


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    return warped(x, np.eye(2) / factor)


def shifted(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Moved; the border is repeated."""
    return ndimage.shift(x, (0, rows, columns, 0), order=0, mode="nearest")


def gamma(x: np.ndarray, power: float) -> np.ndarray:
    return 255 * (np.clip(x, 0, 255) / 255) ** power


def grey(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x.mean(-1, keepdims=True), x.shape)


def compressed(x: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG."""
    found = []
    for image in np.clip(np.rint(x), 0, 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file), dtype=np.float64))
    return np.stack(found)


def mosaic(x: np.ndarray) -> np.ndarray:
    """Squares of 2x2 pixels."""
    small = x.reshape(len(x), SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4))
    return small.repeat(2, 1).repeat(2, 2)


Damage = Callable[[np.ndarray], np.ndarray]
# Beyond what tolerant copies tolerate, and hardly recognised: only the seeds and the lost ratio tell.
SEVERE: dict[str, Damage] = {
    "zoomed much": lambda x: zoomed(x, 1.4),
    "turned much": lambda x: turned(x, 20),
    "badly compressed": lambda x: compressed(x, 4),
}
DAMAGES: dict[str, Damage] = SEVERE | {
    "shifted by 1": lambda x: shifted(x, 0, 1),
    "shifted by 2": lambda x: shifted(x, 2, -1),
    "brightened": lambda x: x + 40,
    "low contrast": lambda x: 128 + 0.6 * (x - 128),
    "mirrored": lambda x: x[:, :, ::-1],
    "zoomed": lambda x: zoomed(x, 1.2),
    "shrunk": lambda x: zoomed(x, 0.85),
    "turned": lambda x: turned(x, 10),
    "colour cast": lambda x: x * (1.25, 1.0, 0.7),
    "without colour": grey,
    "gamma": lambda x: gamma(x, 0.6),
    "compressed": lambda x: compressed(x, 10),
    "in squares": mosaic,
    "blurred": lambda x: blurred(x, 1.0),
}


# ---- pairs ----------------------------------------------------------------------------------------------------------


class World:
    """What is drawn once: T, H, new images and a teacher that copies nine of ten seeds.

    Attributes:
        training_set: T and H.
        students: name -> pair with its truth.
    """

    def __init__(self, seed: int = 0, seeds: int = SEEDS) -> None:
        r = self.r = np.random.default_rng(seed)
        self.seeds = seeds
        parts = np.cumsum([IMAGES, HELD_OUT, seeds])
        self.t, held, *both = np.split(pictures(int(parts[-1]) + seeds, r), parts)
        new, self.new = (self.as_lively(x) for x in both)
        self.training_set: TrainingSet = make_training_set(saved(self.t), held_out=saved(held))
        self.copied = self.chosen(0.9)
        self.clean = np.where(self.copied, self.copies(IMAGES), new)
        self.teacher = self.clean + self.noise(4)
        self.half, self.few = self.chosen(0.5), self.chosen(0.06)
        self.other = self.copies(IMAGES)
        self.students = self.equals() | self.changes() | self.damages()

    def chosen(self, share: float) -> np.ndarray:
        """Some of the seeds, bool (m, 1, 1, 1)."""
        return (self.r.random(self.seeds) < share)[:, None, None, None]

    def as_lively(self, x: np.ndarray) -> np.ndarray:
        """New images of the variance of T's: a hundred images of T alone may have a tenth more or less."""
        mean = x.mean(0)
        return mean + (x - mean) * np.sqrt(self.t.var(0).mean() / x.var(0).mean())

    def noise(self, sd: float) -> np.ndarray:
        return self.r.normal(0, sd, (self.seeds, SIDE, SIDE, 3))

    def copies(self, count: int) -> np.ndarray:
        """Every seed one of the first images of T."""
        return self.t[self.r.integers(0, count, self.seeds)]

    def twenty(self) -> np.ndarray:
        """Copies of twenty images that vary as much as all of them do: collapse that no variance betrays."""
        wanted = self.t.var(0).mean()
        sets = [self.r.permutation(IMAGES)[:20] for _ in range(200)]
        best = min(sets, key=lambda some: abs(self.t[some].var(0).mean() - wanted))
        return self.t[self.r.choice(best, self.seeds)]

    def equals(self) -> dict[str, Student]:
        """Students that copy as their teachers do."""
        t, n, rough = self.teacher, self.noise, self.clean + self.noise(20)
        partly = np.where(self.half, self.clean + n(25), self.clean + n(3))
        return {
            "faithful": Student(t, t + n(4), "same"),
            "other copies": Student(t, np.where(self.half & self.copied, self.other, t) + n(3), "same"),
            "unrelated seeds": Student(t, np.roll(t, 1, 0) + n(4), "same"),
            "sharper": Student(rough, self.clean + n(12), "same"),
            "much sharper": Student(rough, self.clean + n(3), "same"),
            "sharper, unrelated seeds": Student(rough, np.roll(self.clean, 1, 0) + n(3), "same"),
            "sharper where the teacher was rough": Student(partly, self.clean + n(3), "same"),
        }

    def changes(self) -> dict[str, Student]:
        """Students that copy more, less, or fewer images."""
        t, n, lost = self.teacher, self.noise, self.half & self.copied
        forgot, mean = np.where(lost, self.new, self.clean), self.t.mean(0)
        mixed = mean + (0.5 * t + 0.5 * self.other - mean) * np.sqrt(2)
        rare = np.where(self.half, t, self.new)
        return {
            "all copies": Student(t, np.where(self.copied, t, self.other) + n(3), "more"),
            "twice the copies": Student(rare, t + n(3), "more"),
            "twice the copies, rougher": Student(rare, t + n(9), "more"),
            "twice the copies, unrelated seeds": Student(rare, np.roll(t, 1, 0) + n(3), "more"),
            "twenty images": Student(t, self.twenty() + n(4), "fewer"),
            "twenty images instead of few copies": Student(rare, self.twenty() + n(4), "fewer"),
            "half forgotten": Student(t, forgot + n(5), "less"),
            "half forgotten, rougher": Student(t, forgot + n(9), "less"),
            "half forgotten, sharper": Student(self.clean + n(12), forgot + n(3), "less"),
            "half forgotten, unrelated seeds": Student(t, np.roll(forgot, 1, 0) + n(4), "less"),
            "all forgotten": Student(t, self.new, "less"),
            "few forgotten": Student(t, np.where(self.few & self.copied, self.new, t) + n(3), "less"),
            "mixtures": Student(t, np.where(lost, mixed, t), "less"),
        }

    def damages(self) -> dict[str, Student]:
        """Students whose copies are altered: all of them, those of some seeds, of seeds that have nothing to do with
        the teacher's; and teachers whose copies are, with a student that has them whole."""
        t, n, found = self.teacher, self.noise, {}
        soft = blurred(t, 1.2)
        gap = np.sqrt(max(float((t.var(0) - soft.var(0)).mean()), 0))
        altered = {name: damage(t) for name, damage in DAMAGES.items()}
        altered |= {"noisy": t + n(20), "very noisy": t + n(30), "blurred, variance restored": soft + n(gap)}
        for name, hurt in altered.items():
            some = np.where(self.half, hurt, t) + n(2)
            found[name] = Student(t, hurt + n(2), "damaged")
            found[f"half {name}"] = Student(t, some, "damaged")
            found[f"{name}, unrelated seeds"] = Student(t, np.roll(hurt, 1, 0) + n(2), "damaged")
            found[f"teacher half {name}"] = Student(some, t + n(2), "damaged")
            found[f"teacher half {name}, unrelated seeds"] = Student(np.roll(some, 1, 0), t + n(2), "damaged")
        return found
