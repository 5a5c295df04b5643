"""The LightningDataModule: records and the feature cache in, loaders out."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.data.dataset import CaptionDataset, ImageDataset, collate
from captioning.data.places import Places
from captioning.data.records import Annotated, one_picture_per_id
from captioning.data.samplers import LengthBuckets, SharedBatches
from captioning.data.summary import log_same_content, log_summary, log_words
from captioning.errors import InputError
from captioning.features.cache import FeatureCache, check_provenance
from captioning.processes import shield_worker
from captioning.tokenizers import Tokenizer, Words
from captioning.vocabulary import Vocabulary, printable

log = logging.getLogger(__name__)


class CaptionDataModule(LightningDataModule):
    """Loaders of training and validation captions.

    `val_dataloader` returns two loaders: all validation captions (for the loss), and each validation image
    once (to be captioned and scored).

    Args:
        name: name of the data set in file names and tables.
        reader: returns the records of all splits.
        features_path: the feature cache.
        vocabulary_size: number of ids, the four special ones included.
        min_count: words rarer than this in the training captions become unknown.
        vocabulary_splits: splits whose captions the vocabulary is built from; the training split, unless flaw
            S5 of the post is to be reproduced.
        max_words: captions are cut to that many words; None cuts none.
        tokenizer: splits captions into the words of a vocabulary that is built here; `Words` when None.
        language: of the captions, a code of ISO 639. It decides what scores count, see `captioning.metrics`.
        batch_size: captions per batch.
        eval_batch_size: images per batch in decoding.
        num_workers: loader processes.
        seed: seeds the shuffling.
        bucket_pool: batches among which captions are sorted by length; 1 for plain shuffling.
        captions_per_image: captions of an image that a batch keeps together; it encodes the image once for
            them, with one draw of the encoder's dropout; see `LengthBuckets`. Divides `batch_size`.
        train_on: `captions`, or `images` for self-critical training (each image once an epoch).
        prepare: makes the data set where it does not exist. Every process calls it, perhaps several at once
            and more than once.
        check: compare features with their checksums when they are first read.
        provenance: what the features must be made with, see `check_provenance`.
        vocabulary: of a checkpoint to start from; built from the captions when None.
        feature_splits: splits whose features must be in the cache.
        places: where the things that a validation caption names lie, for the pointing score of attention.

    Raises:
        InputError: an option out of its range, or a tokenizer of another kind than the vocabulary's.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[[], list[Annotated]],
        features_path: str | Path,
        vocabulary_size: int,
        min_count: int,
        max_words: int | None,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        bucket_pool: int,
        captions_per_image: int = 1,
        vocabulary_splits: Sequence[str] = ("train",),
        train_on: str = "captions",
        tokenizer: Tokenizer | None = None,
        language: str = "en",
        prepare: Callable[[], None] | None = None,
        check: bool = True,
        provenance: Mapping[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
        feature_splits: Sequence[str] = ("train", "val"),
        places: Places | None = None,
    ) -> None:
        super().__init__()
        self.name, self.reader, self.features_path = name, reader, Path(features_path)
        self.vocabulary_size, self.min_count, self.max_words = vocabulary_size, min_count, max_words
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.bucket_pool, self.captions_per_image = seed, bucket_pool, captions_per_image
        self.vocabulary_splits, self.train_on = tuple(vocabulary_splits), train_on
        self.prepare, self.check, self.provenance = prepare, check, provenance or {}
        self.feature_splits, self.places = tuple(feature_splits), places
        self.tokenizer, self.language = vocabulary.tokenizer if vocabulary else tokenizer or Words(), language
        self.vocabulary = vocabulary
        self.records: dict[str, list[Annotated]] = {}
        self._position: dict[str, Any] = {"epoch": 0}
        self._sampler: LengthBuckets | None = None
        self._check_options(tokenizer)

    def _check_options(self, tokenizer: Tokenizer | None) -> None:
        if self.train_on not in ("captions", "images"):
            raise InputError(f"data.train_on is {self.train_on!r}; it is captions or images")
        if self.batch_size < 1 or self.eval_batch_size < 1:
            raise InputError(
                f"data.batch_size={self.batch_size} and eval_batch_size={self.eval_batch_size} must be at "
                "least 1"
            )
        per_image = self.captions_per_image
        if type(per_image) is not int or per_image < 1 or self.batch_size % per_image:
            raise InputError(
                f"data.captions_per_image is {per_image}; it must be a whole number from 1 that divides "
                f"data.batch_size={self.batch_size}"
            )
        if self.captions_per_image > 1 and self.train_on == "images":
            raise InputError(
                f"data.captions_per_image={self.captions_per_image} goes with data.train_on=captions; with "
                "images each comes once an epoch already"
            )
        if self.max_words is not None and self.max_words < 1:
            raise InputError(
                f"data.max_words is {self.max_words}; it must be at least 1, or null to cut no caption"
            )
        if not (isinstance(self.language, str) and re.fullmatch("[a-z]{2,3}", self.language)):
            raise InputError(
                f"data.language is {self.language!r}; it is a code of ISO 639, such as en, or 'no' in quotes"
            )
        if tokenizer is not None and type(tokenizer) is not type(self.tokenizer):
            raise InputError(
                f"the checkpoint's captions are made of {self.tokenizer.unit}, found {tokenizer.unit}; give "
                f"data/tokenizer={self.tokenizer.unit}"
            )

    def prepare_data(self) -> None:
        """Make the data set where it does not exist; Lightning calls this in one process per machine."""
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read annotations, log what they hold, build the vocabulary, open the cache, compare pictures.

        Raises:
            InputError: an image has no features, they were made otherwise or of another picture, a split is
                missing, or an id means two pictures.
        """
        if self.records:
            return
        for record in one_picture_per_id(self.reader(), str(self.name)):
            self.records.setdefault(record.split, []).append(record)
        log_summary(str(self.name), self.records)
        if "train" in self.records:
            self.records["train"] = [record for record in self.records["train"] if record.captions]
        if self.vocabulary is None:
            self.vocabulary = Vocabulary.build(
                (text for split in self.vocabulary_splits for r in self.split(split) for text in r.captions),
                size=self.vocabulary_size,
                min_count=self.min_count,
                tokenizer=self.tokenizer,
            )
        log_words(str(self.name), self.records, self.tokenizer, max_words=self.max_words)
        self.cache = FeatureCache(self.features_path, check=self.check)
        check_provenance(self.features_path, self.cache.provenance, self.provenance)
        for split in self.feature_splits:
            self._check_features(split)
        used = {record.image_id for records in self.records.values() for record in records}
        log_same_content(str(self.name), self.records, self.cache.contents(used))

    def split(self, name: str) -> list[Annotated]:
        """Return the records of a split.

        Raises:
            InputError: there is no such split.
        """
        if not self.records.get(name):
            counts = ", ".join(f"{split} ({len(records)} images)" for split, records in self.records.items())
            raise InputError(f"the data set has no split {name!r}; it has {counts or 'nothing'}")
        return self.records[name]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches in buckets of similar length; the same epoch always gives the same batches."""
        data: CaptionDataset | ImageDataset
        if self.train_on == "captions":
            data = self.captions("train", share_images=self.captions_per_image > 1)
            lengths, images = data.lengths, data.images
        else:
            data = self.images("train")
            lengths, images = [0] * len(data), []
        sampler = LengthBuckets(
            lengths,
            self.batch_size,
            seed=self.seed,
            pool=self.bucket_pool,
            images=images,
            per_image=self.captions_per_image,
            **self._share(),
        )
        mean = self.batch_size / self.captions_per_image * len(lengths) / sampler.num_groups
        if mean < 0.8 * self.batch_size:
            log.warning(
                "data.captions_per_image=%d: full batches have %.0f captions on average and not %d, since "
                "images do not fill their groups; an epoch takes more steps",
                self.captions_per_image,
                mean,
                self.batch_size,
            )
        sampler.go_on(**self._position)  # workers fetch before Lightning sets a resumed run's epoch
        self._position, self._sampler = {"epoch": self._position["epoch"]}, sampler
        return self._loader(data, batch_sampler=sampler)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training, for a checkpoint; see `LengthBuckets.go_on`."""
        if self.trainer is None or self._sampler is None:
            return dict(self._position)
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        # `processed` counts whole epochs; the batches are still those of the last one between two epochs.
        inside = epochs.started > epochs.processed
        return {
            "epoch": epochs.processed,
            "batch": batches.processed if inside else 0,
            "order": self._sampler.order(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the position of a checkpoint, so that the first batches are those that come next."""
        self._position = dict(state_dict)

    def val_dataloader(self) -> list[DataLoader]:
        """Validation captions sorted by length (next to no padding), and validation images.

        Several processes share the batches, which are those that one alone would have.
        """
        captions, images = self.captions("val"), self.images("val")
        order, share = range(len(images)), self._share()
        by_length = sorted(range(len(captions)), key=captions.lengths.__getitem__)
        return [
            self._loader(captions, batch_sampler=SharedBatches(by_length, self.batch_size, **share)),
            self._loader(images, batch_sampler=SharedBatches(order, self.eval_batch_size, **share)),
        ]

    def image_dataloader(self, split: str, *, without_captions: bool = False) -> DataLoader:
        """Each image of a split once, in the records' order."""
        return self._loader(
            self.images(split, without_captions=without_captions), batch_size=self.eval_batch_size
        )

    def images(self, split: str, *, without_captions: bool = False) -> ImageDataset:
        """Return the images of a split, each once; for `without_captions` see `ImageDataset`."""
        assert self.vocabulary is not None
        return ImageDataset(self.split(split), self.cache, self.vocabulary, without_captions=without_captions)

    def captions(self, split: str, *, share_images: bool = False) -> CaptionDataset:
        """Return the captions of a split, each with its image; for `share_images` see `CaptionDataset`.

        Raises:
            InputError: there is no such split, or it has no captions.
        """
        assert self.vocabulary is not None
        data = CaptionDataset(
            self.split(split),
            self.cache,
            self.vocabulary,
            max_words=self.max_words,
            share_images=share_images,
        )
        if not len(data):
            raise InputError(f"none of the {len(self.split(split))} {split} images has a caption")
        return data

    def _share(self) -> dict[str, int]:
        """Return which of the processes that train together this is, as samplers take it."""
        if self.trainer is None:
            return {"rank": 0, "processes": 1}
        return {"rank": self.trainer.global_rank, "processes": self.trainer.world_size}

    def feature_statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and deviation of each channel of the training features, (D,) each."""
        image_ids = [record.image_id for record in self.split("train")]
        mean, deviation = self.cache.channel_statistics(image_ids)
        return torch.from_numpy(mean), torch.from_numpy(deviation)

    def _loader(self, data: CaptionDataset | ImageDataset, **options: Any) -> DataLoader:
        return DataLoader(
            data,
            num_workers=self.num_workers,
            collate_fn=collate,  # type: ignore[arg-type]  # `__getitems__` builds whole batches
            generator=torch.Generator(),  # or each iterator would draw its seed from the generator of dropout
            persistent_workers=self.num_workers > 0,
            worker_init_fn=shield_worker,
            **options,
        )

    def _check_features(self, split: str) -> None:
        """Leave out and report images that could not be read; refuse a cache that lacks others."""
        records, unreadable = self.split(split), set(self.cache.unreadable)
        missing = [record for record in records if record.image_id not in self.cache]
        unexpected = [record.image_id for record in missing if record.image_id not in unreadable]
        if unexpected:
            raise InputError(
                f"{self.features_path} lacks {len(unexpected)} of the {len(records)} {split} images, first "
                f"{unexpected[0]}; run python -m captioning.extract with the same options to add them"
            )
        if len(missing) == len(records):
            raise InputError(
                f"none of the {len(missing)} {split} images could be read when {self.features_path} was "
                f"made, first {printable(records[0].path)}; put the pictures there and extract again"
            )
        if missing:
            log.warning(
                "%s: %d of the %d %s images are left out, as they could not be read when %s was made; first "
                "%s. Mend them and run python -m captioning.extract with the same options",
                *(
                    self.name,
                    len(missing),
                    len(records),
                    split,
                    self.features_path,
                    printable(missing[0].path),
                ),
            )
        self.records[split] = [record for record in records if record.image_id not in unreadable]
        self.cache.check_pictures({record.image_id: record.path for record in self.records[split]})
