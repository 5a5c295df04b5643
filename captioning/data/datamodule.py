"""The LightningDataModule: records and the feature cache in, loaders out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from captioning.data.annotations import Annotated
from captioning.data.dataset import CaptionDataset, ImageDataset, LengthBuckets, collate
from captioning.errors import InputError
from captioning.features.cache import FeatureCache, check_provenance
from captioning.vocabulary import Vocabulary


class CaptionDataModule(LightningDataModule):
    """Loaders of training and validation captions.

    `val_dataloader` gives two loaders: all validation captions (for the loss), and each validation image once
    (to be captioned and scored).

    Args:
        name: of the data set, as files and tables call it.
        reader: gives the records of all splits.
        features_path: the feature cache.
        feature_shape: (R, D) that the model was built for.
        vocabulary_size: ids, the four special ones included.
        min_count: words rarer than that in the training captions become unknown.
        vocabulary_splits: splits whose captions the vocabulary is built from; the training split, unless flaw
            S5 of the seed is to be reproduced.
        max_words: captions are cut to that many words; None takes the longest training caption.
        batch_size: captions a batch.
        eval_batch_size: images a batch in decoding.
        num_workers: loader processes.
        seed: of the shuffling.
        bucket_pool: batches among which captions are sorted by length; 1 for plain shuffling.
        train_on: `captions`, or `images` for self-critical training (each image once an epoch).
        provenance: what the features must say of themselves, see `check_provenance`.
        words: the vocabulary of a checkpoint to start from; built from the captions when None.
        feature_splits: splits whose features must be there.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[[], list[Annotated]],
        features_path: str | Path,
        feature_shape: Sequence[int],
        vocabulary_size: int,
        min_count: int,
        max_words: int | None,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        bucket_pool: int,
        vocabulary_splits: Sequence[str] = ("train",),
        train_on: str = "captions",
        provenance: Mapping[str, Any] | None = None,
        words: Sequence[str] | None = None,
        feature_splits: Sequence[str] = ("train", "val"),
    ) -> None:
        super().__init__()
        if train_on not in ("captions", "images"):
            raise InputError(f"data.train_on is {train_on!r}; it is captions or images")
        if batch_size < 1 or eval_batch_size < 1:
            raise InputError(
                f"data.batch_size={batch_size} and eval_batch_size={eval_batch_size} must be from 1"
            )
        self.name = name
        self.reader, self.features_path, self.feature_shape = (
            reader,
            Path(features_path),
            tuple(feature_shape),
        )
        self.vocabulary_size, self.min_count, self.max_words = vocabulary_size, min_count, max_words
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.bucket_pool = bucket_pool
        self.seed, self.vocabulary_splits, self.train_on = seed, tuple(vocabulary_splits), train_on
        self.provenance, self.feature_splits = provenance or {}, tuple(feature_splits)
        self.vocabulary: Vocabulary | None = Vocabulary(words) if words is not None else None
        self.records: dict[str, list[Annotated]] = {}
        self._epoch = 0

    def setup(self, stage: str | None = None) -> None:
        """Read annotations, build the vocabulary, open the cache.

        Raises:
            InputError: no features for an image, features of another kind, or no training captions.
        """
        if self.records:
            return
        for record in self.reader():
            self.records.setdefault(record.split, []).append(record)
        if self.vocabulary is None:
            self.vocabulary = Vocabulary.build(
                (text for split in self.vocabulary_splits for r in self.split(split) for text in r.captions),
                size=self.vocabulary_size,
                min_count=self.min_count,
            )
        self.cache = FeatureCache(self.features_path)
        check_provenance(self.features_path, self.cache.provenance, self.provenance)
        if self.cache.shape != self.feature_shape:
            found, needed = (f"{r} × {d}" for r, d in (self.cache.shape, self.feature_shape))
            raise InputError(
                f"{self.features_path} holds {found} a row but features.regions × features.dim is {needed}; "
                "give features.regions= and features.dim= as the file has them, or another features.path="
            )
        for split in self.feature_splits:
            self._check_features(split)

    def split(self, name: str) -> list[Annotated]:
        """Give the records of a split.

        Raises:
            InputError: there is no such split.
        """
        if not self.records.get(name):
            counts = ", ".join(f"{split} ({len(records)} images)" for split, records in self.records.items())
            raise InputError(f"the data set has no split {name!r}; it has {counts or 'nothing'}")
        return self.records[name]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches in buckets of like length; the same epoch always gives the same batches."""
        data = self.captions("train") if self.train_on == "captions" else self.images("train")
        lengths = data.lengths if isinstance(data, CaptionDataset) else [0] * len(data)
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = LengthBuckets(
            lengths,
            self.batch_size,
            seed=self.seed,
            pool=self.bucket_pool,
            rank=rank,
            processes=processes,
        )
        sampler.set_epoch(self._epoch)  # workers fetch before Lightning sets a resumed run's epoch
        return self._loader(data, batch_sampler=sampler)

    def state_dict(self) -> dict[str, int]:
        """Say for a checkpoint how many epochs are behind it."""
        return {"epoch": self.trainer.current_epoch if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up the epoch of a checkpoint, so that the first batches are that epoch's."""
        self._epoch = state_dict["epoch"]

    def val_dataloader(self) -> list[DataLoader]:
        """Validation captions sorted by length (no padding to speak of), and validation images."""
        data = self.captions("val")
        order = sorted(range(len(data)), key=data.lengths.__getitem__)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [self._loader(data, batch_sampler=batches), self.image_dataloader("val")]

    def image_dataloader(self, split: str, *, sealed: bool = False) -> DataLoader:
        """Each image of a split once, in the records' order; `sealed` without any of its captions."""
        return self._loader(self.images(split, sealed=sealed), batch_size=self.eval_batch_size)

    def images(self, split: str, *, sealed: bool = False) -> ImageDataset:
        """Give the images of a split, each once; `sealed` without any of their captions."""
        assert self.vocabulary is not None
        return ImageDataset(self.split(split), self.cache, self.vocabulary, sealed=sealed)

    def captions(self, split: str) -> CaptionDataset:
        """Give the captions of a split, each with its image."""
        assert self.vocabulary is not None
        max_words = self.max_words or 10**6
        return CaptionDataset(self.split(split), self.cache, self.vocabulary, max_words=max_words)

    def _loader(self, data: CaptionDataset | ImageDataset, **options: Any) -> DataLoader:
        return DataLoader(
            data,
            num_workers=self.num_workers,
            collate_fn=collate,  # type: ignore[arg-type]  # `__getitems__` hands out whole batches
            generator=torch.Generator(),  # or each iterator would draw its seed from dropout's
            persistent_workers=self.num_workers > 0,
            **options,
        )

    def _check_features(self, split: str) -> None:
        """Leave out images that the extraction could not read; refuse a cache that lacks others."""
        missing = [record.image_id for record in self.split(split) if record.image_id not in self.cache]
        if len(missing) == len(self.split(split)) and set(missing) <= set(self.cache.unreadable):
            raise InputError(
                f"none of the {len(missing)} {split} images could be read when {self.features_path} was "
                f"made, first {self.split(split)[0].path}; put the pictures there and extract again"
            )
        unreadable = set(self.cache.unreadable)
        unexpected = [image_id for image_id in missing if image_id not in unreadable]
        if unexpected:
            counts = Counter(record.split for group in self.records.values() for record in group)
            raise InputError(
                f"{self.features_path} lacks {len(unexpected)} of the {counts[split]} {split} images, first "
                f"{unexpected[0]}; run python -m captioning.extract with the same options to add them"
            )
        self.records[split] = [record for record in self.records[split] if record.image_id not in unreadable]
