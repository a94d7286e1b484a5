"""The one DataModule: teacher and student see the same deliberately subset and duplicated images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cdmem.data.pixels import PixelOptions
from cdmem.data.sources import SOURCES, load_source, noise_pool
from cdmem.data.stream import Batch, BatchStream
from cdmem.data.subset import SubsetSpec, TrainingSet, choose
from cdmem.errors import InputError
from cdmem.seeds import SAMPLES_PER_RUN, first_sample

MAX_BATCH = 2**16  # images over all devices; beyond it a mistyped number would draw indices for hours


class EveryRank(IterableDataset[Any]):
    """Ready batches that every process reads in full: Lightning would deal out a list, padded to equal shares.

    Args:
        batches: what a loader with ``batch_size=None`` yields.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        super().__init__()
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class MemorizationDataModule(LightningDataModule):
    """Training set T with multiplicities and a held-out set H disjoint from it.

    Args:
        source: ``digits``, ``cifar10``, ``celeba``, ``folder``, ``array``; or ``module.function`` of your own.
        path: folder or file of the source (not for ``digits``).
        download: fetch ``cifar10`` when it is missing.
        resolution: side in pixels to resize to; None keeps the source's.
        grayscale: one channel.
        crop: side in pixels of a centre crop before resizing.
        skip_unreadable: leave out pictures that cannot be read, and count them, instead of an error.
        classes: keep only these labels (numbers or names).
        n: unique training images; nested, so n = 64 is contained in n = 128.
        subset_seed: of the permutation that T and H come from; None derives it from ``--seed``.
        balance: equal numbers per class.
        duplication: None; groups ``[{fraction: 0.1, copies: 10}]``; ``{power_law: a, max_copies: K}``; or a file of n
            multiplicities.
        held_out: number of held-out images.
        held_out_path: take H from this array file or folder instead of the source.
        flip: train on random horizontal flips; they become part of the image's group.
        batch_size: images per step over *all* devices together (times trainer.accumulate_grad_batches).
        order_seed: of the order of examples; None derives it from ``--seed``.
        predict_samples: images made by ``predict``.
    """

    def __init__(
        self,
        source: str = "digits",
        path: str | None = None,
        download: bool = False,
        resolution: int | None = None,
        grayscale: bool = False,
        crop: int | None = None,
        skip_unreadable: bool = False,
        classes: list[int | str] | None = None,
        n: int = 64,
        subset_seed: int | None = None,
        balance: bool = False,
        duplication: list[dict[str, int | float]] | dict[str, int | float] | str | None = None,
        held_out: int = 500,
        held_out_path: str | None = None,
        flip: bool = False,
        batch_size: int = 64,
        order_seed: int | None = None,
        predict_samples: int = 64,
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= MAX_BATCH:
            problem = f"must be at least 1 and at most {MAX_BATCH}"
            raise InputError("data.batch_size", batch_size, problem, "64 is usual for small sets")
        if not 1 <= predict_samples <= SAMPLES_PER_RUN:
            problem = f"must be at least 1 and at most {SAMPLES_PER_RUN}"
            raise InputError("data.predict_samples", predict_samples, problem, "e.g. 64")
        self.source, self.path, self.download = source, path, download
        self.pixels = {
            "resolution": resolution,
            "grayscale": grayscale,
            "crop": crop,
            "skip_unreadable": skip_unreadable,
        }
        self.classes, self.held_out_path = classes, held_out_path
        self.spec = SubsetSpec(n, subset_seed or 0, balance, duplication, held_out, flip)
        self.batch_size, self.order_seed = batch_size, order_seed or 0
        self.predict_samples = predict_samples
        self._training_set: TrainingSet | None = None
        self._pool: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def training_set(self) -> TrainingSet:
        """T and H; read and chosen at first use."""
        if self._training_set is None:
            about = {"download": self.download, "classes": self.classes, "own": True}
            pool = load_source(self.source, self.path, **about, **self.pixels)
            held_out = None
            if self.held_out_path is not None:
                try:
                    held_out = load_source("folder", self.held_out_path, **self.pixels)
                except InputError as error:
                    key = "data.held_out_path" if error.key == "data.path" else error.key
                    raise InputError(key, error.value, error.problem, error.hint) from None
            self._training_set = choose(pool, self.spec, held_out)
        return self._training_set

    def stand_in(self, labels: bool) -> None:
        """Take noise of the right shape and number for T and H, where the settings fix these without the files.

        Args:
            labels: whether the number of classes matters, which only the files of a user's own images know.
        """
        count = self.spec.n + self.spec.held_out
        published = self.source in SOURCES and SOURCES[self.source].images is not None
        if (labels and not published) or (self.held_out_path is not None and self.spec.held_out == 0):
            return
        pictures_to_come = self.source == "folder" and not Path(self.path or "").expanduser().exists()
        channels = 3 if pictures_to_come else None
        pool = noise_pool(self.source, count, PixelOptions(**self.pixels), self.classes, channels)
        self._training_set = None if pool is None else choose(pool, self.spec)

    def setup(self, stage: str) -> None:
        _ = self.training_set

    # ---- what the training stream shows -------------------------------------------------------------------------

    def train_on_images(self, images: Tensor, labels: Tensor) -> None:
        """Show these uint8 images (count, C, H, W) instead of T; their ids are -1, -2, ... (no training image)."""
        ids = -1 - torch.arange(len(images))
        self._pool = (images, labels, ids, torch.arange(len(images)))

    def train_on_held_out(self) -> None:
        """Show H instead of T; ids count on from n."""
        t = self.training_set
        if len(t.held_out_images) == 0:
            hint = "set data.held_out to the size wanted"
            raise InputError("model.data.images", "heldout", "data.held_out is 0", hint)
        ids = len(t.images) + torch.arange(len(t.held_out_images))
        self._pool = (t.held_out_images, t.held_out_labels, ids, torch.arange(len(ids)))

    def _shown(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = self.training_set
        return self._pool or (t.images, t.labels, torch.arange(len(t.images)), t.row_to_group)

    def train_dataloader(self) -> DataLoader:
        """An endless stream that starts where the checkpoint stopped: no loader state to save or to lose."""
        images, labels, ids, row_to_group = self._shown()
        trainer = self.trainer
        self.stream = BatchStream(
            images,
            labels,
            ids,
            row_to_group,
            batch_size=self.batch_size,
            seed=self.order_seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            start=trainer.global_step * trainer.accumulate_grad_batches,
            flip=self.spec.flip,
        )
        return DataLoader(self.stream, batch_size=None, num_workers=0)

    def val_dataloader(self) -> list[DataLoader]:
        """Training images (loader 0) and held-out images (loader 1), each once, at most 512 of each."""
        t = self.training_set
        ids = torch.arange(len(t.images))
        held_ids = len(t.images) + torch.arange(len(t.held_out_images))
        parts = [(t.images, t.labels, ids), (t.held_out_images, t.held_out_labels, held_ids)]
        loaders = []
        for images, labels, numbers in parts:
            count = min(len(images), 512)
            batches = [Batch(images[k : k + 64], labels[k : k + 64], numbers[k : k + 64]) for k in range(0, count, 64)]
            loaders.append(DataLoader(EveryRank(batches), batch_size=None, num_workers=0))
        return loaders

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader:
        """Batches of sample seeds for ``predict``."""
        start = first_sample(self.trainer.lightning_module.sampling_seed)
        seeds = torch.arange(start, start + self.predict_samples)
        return DataLoader(EveryRank(seeds.split(64)), batch_size=None, num_workers=0)
