"""Batches: the one place where the shapes of what models are fed with are stated."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from captioning.data.annotations import Annotated
from captioning.features.cache import FeatureCache
from captioning.vocabulary import PAD, Vocabulary


class Batch(NamedTuple):
    """B pictures with one caption each.

    features: (B, R, D) float16 regions.
    mask: (B, R) True at real regions, or None where every image has all R.
    tokens: (B, T+1) word ids: START, the words, END, then PAD. Inputs are `tokens[:, :-1]`, targets
        `tokens[:, 1:]`.
    image_ids: B ids.
    references: for each image all its captions as text, for rewards and scores.
    """

    features: Tensor
    mask: Tensor | None
    tokens: Tensor
    image_ids: list[str]
    references: list[tuple[str, ...]]


class _Cached(Dataset):
    """Items whose features come from the cache; hands out whole batches, so that one read serves them."""

    def __init__(self, records: Sequence[Annotated], cache: FeatureCache, vocabulary: Vocabulary) -> None:
        self.records, self.cache, self.vocabulary = list(records), cache, vocabulary

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        raise NotImplementedError

    def _batch(self, records: Sequence[Annotated], captions: Sequence[Sequence[int]]) -> Batch:
        image_ids = [record.image_id for record in records]
        features = torch.from_numpy(self.cache.read(image_ids))
        mask = None
        if self.cache.varies_in_count:
            counts = torch.from_numpy(self.cache.counts(image_ids))
            mask = torch.arange(features.shape[1]) < counts[:, None]  # (B, R)
        tokens = pad_captions(captions)
        return Batch(features, mask, tokens, image_ids, [record.captions for record in records])


class CaptionDataset(_Cached):
    """One item a caption: what teacher forcing trains on.

    Args:
        records: pictures with their sentences.
        cache: their features.
        vocabulary: turns sentences into ids.
        max_words: longer captions are cut to that many words and keep their END.
    """

    def __init__(
        self, records: Sequence[Annotated], cache: FeatureCache, vocabulary: Vocabulary, *, max_words: int
    ) -> None:
        super().__init__(records, cache, vocabulary)
        self._items = [(row, text) for row, record in enumerate(self.records) for text in record.captions]
        self._tokens = [vocabulary.encode(text, max_words=max_words) for _, text in self._items]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def lengths(self) -> list[int]:
        """Ids in each caption, START and END included."""
        return [len(tokens) for tokens in self._tokens]

    def word_counts(self) -> Tensor:
        """Count how often each word is a target, END included and START not: (V,) float32."""
        targets = torch.tensor([word for tokens in self._tokens for word in tokens[1:]])
        return torch.bincount(targets, minlength=len(self.vocabulary)).float()

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Build the batch of some captions."""
        return self._batch(
            [self.records[self._items[i][0]] for i in indices], [self._tokens[i] for i in indices]
        )


class ImageDataset(_Cached):
    """One item an image, its first caption as `tokens`: what decoding and self-critical training run over.

    Args:
        records: pictures with their sentences.
        cache: their features.
        vocabulary: turns sentences into ids.
        sealed: hand out no captions at all, so that nothing that predicts can see a reference.
    """

    def __init__(
        self,
        records: Sequence[Annotated],
        cache: FeatureCache,
        vocabulary: Vocabulary,
        *,
        sealed: bool = False,
    ) -> None:
        if sealed:
            records = [record._replace(captions=("",), caption_ids=()) for record in records]
        super().__init__(records, cache, vocabulary)

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Build the batch of some images."""
        records = [self.records[i] for i in indices]
        return self._batch(records, [self.vocabulary.encode(record.captions[0]) for record in records])


def pad_captions(captions: Sequence[Sequence[int]]) -> Tensor:
    """Pad id sequences to the longest: (B, T) int64."""
    padded = np.full((len(captions), max(map(len, captions))), PAD, dtype=np.int64)
    for row, caption in enumerate(captions):
        padded[row, : len(caption)] = caption
    return torch.from_numpy(padded)


def collate(batch: Batch) -> Batch:
    """Pass on what `__getitems__` built: it already is a batch."""
    return batch


class LengthBuckets(Sampler[list[int]]):
    """Batches of captions of about the same length, shuffled anew each epoch and the same for the same epoch.

    Items are shuffled, sorted by length within pools of many batches, cut into batches, and the batches
    shuffled: little padding, while every batch still mixes the whole data set.

    Args:
        lengths: of each item.
        batch_size: items a batch; the last one may be smaller.
        seed: of the shuffling; combined with the epoch that Lightning sets.
        pool: batches that are sorted together.
        rank: of this process among those that train together; each takes its share of the batches.
        processes: how many train together.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        pool: int = 50,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.pool = list(lengths), batch_size, seed, pool
        self.rank, self.processes = rank, processes
        self.epoch = 0

    @property
    def sampler(self) -> "LengthBuckets":
        """Itself: Lightning sets the epoch of a batch sampler's `sampler` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        # Lazy, because Lightning makes the iterator before it sets the epoch.
        generator = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        span = self.pool * self.batch_size
        for start in range(0, len(order), span):
            order[start : start + span] = sorted(order[start : start + span], key=self.lengths.__getitem__)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        generator.shuffle(batches)
        yield from batches[self.rank :: self.processes][: len(self)]  # as many for every process
