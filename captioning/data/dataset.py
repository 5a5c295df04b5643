"""Batches: the one place where the shapes of what models are fed with are stated."""

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from captioning.data.records import Annotated
from captioning.errors import InputError
from captioning.features.cache import FeatureCache
from captioning.vocabulary import PAD, START, Vocabulary


class Batch(NamedTuple):
    """B pictures with one caption each.

    features: (B, R, D) float16 regions.
    mask: (B, R) True at real regions, or None where every image has all R.
    tokens: (B, T+1) word ids: START, the words, END, then PAD. Inputs are `tokens[:, :-1]`, targets
        `tokens[:, 1:]`.
    image_ids: B ids.
    references: all captions of each image as text, for rewards and scores.
    """

    features: Tensor
    mask: Tensor | None
    tokens: Tensor
    image_ids: list[str]
    references: list[tuple[str, ...]]


class _CachedDataset(Dataset):
    """Items whose features come from the cache; `__getitems__` builds a whole batch with one read."""

    def __init__(self, records: Sequence[Annotated], cache: FeatureCache, vocabulary: Vocabulary) -> None:
        self.records, self.cache, self.vocabulary = list(records), cache, vocabulary

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        raise NotImplementedError

    def _batch(self, records: Sequence[Annotated], captions: Sequence[Sequence[int] | np.ndarray]) -> Batch:
        image_ids = [record.image_id for record in records]
        features = torch.from_numpy(self.cache.read(image_ids))  # (B, R, D)
        mask = None
        if self.cache.varies_in_count:
            counts = torch.from_numpy(self.cache.counts(image_ids))  # (B,)
            mask = torch.arange(features.shape[1]) < counts[:, None]  # (B, R)
        tokens = pad_captions(captions)  # (B, T+1)
        return Batch(features, mask, tokens, image_ids, [record.captions for record in records])


class CaptionDataset(_CachedDataset):
    """One item per caption, for teacher forcing.

    Args:
        records: pictures with their captions.
        cache: their features.
        vocabulary: turns captions into ids.
        max_words: longer captions are cut to that many words and keep their END; None cuts none.
    """

    def __init__(
        self,
        records: Sequence[Annotated],
        cache: FeatureCache,
        vocabulary: Vocabulary,
        *,
        max_words: int | None,
    ) -> None:
        super().__init__(records, cache, vocabulary)
        # The ids of all captions in one array: a list for each takes four times the memory.
        words, ends = array("i"), array("q", [0])
        for text in (text for record in self.records for text in record.captions):
            words.extend(vocabulary.encode(text, max_words=max_words))
            ends.append(len(words))
        self._words, self._ends = np.array(words), np.array(ends)  # caption i ends at ends[i + 1]
        counts = [len(record.captions) for record in self.records]
        self._rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)  # record of each caption

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Number of ids of each caption, START and END included."""
        return np.diff(self._ends).tolist()

    def word_counts(self) -> Tensor:
        """Count how often each word is a target, END included and START not: (V,) float32."""
        counts = np.bincount(self._words, minlength=len(self.vocabulary))
        counts[START] = 0
        return torch.from_numpy(counts).float()

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Build the batch of some captions."""
        captions = [self._words[self._ends[i] : self._ends[i + 1]] for i in indices]
        return self._batch([self.records[self._rows[i]] for i in indices], captions)


class ImageDataset(_CachedDataset):
    """One item per image with its first caption as `tokens`, for decoding and self-critical training.

    Args:
        records: pictures with their captions; those that have none are left out, except `without_captions`.
        cache: their features.
        vocabulary: turns captions into ids.
        without_captions: put no captions into the batches, so that no prediction can depend on a reference.
    """

    def __init__(
        self,
        records: Sequence[Annotated],
        cache: FeatureCache,
        vocabulary: Vocabulary,
        *,
        without_captions: bool = False,
    ) -> None:
        if without_captions:
            records = [record._replace(captions=("",), caption_ids=()) for record in records]
        super().__init__([record for record in records if record.captions], cache, vocabulary)

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Build the batch of some images."""
        records = [self.records[i] for i in indices]
        return self._batch(records, [self.vocabulary.encode(record.captions[0]) for record in records])


def pad_captions(captions: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Pad id sequences to the longest: (B, T) int64."""
    padded = np.full((len(captions), max(map(len, captions))), PAD, dtype=np.int64)
    for row, caption in enumerate(captions):
        padded[row, : len(caption)] = caption
    return torch.from_numpy(padded)


def collate(batch: Batch) -> Batch:
    """Return what `__getitems__` built: it already is a batch."""
    return batch


class LengthBuckets(Sampler[list[int]]):
    """Batches of captions of similar length, shuffled anew each epoch and reproducible for a given epoch.

    Items are shuffled, sorted by length within pools of many batches, cut into batches, and the batches
    shuffled: little padding, while every batch still mixes the whole data set.

    Args:
        lengths: length of each item.
        batch_size: items per batch; the last one may be smaller.
        seed: seeds the shuffling together with the epoch that Lightning sets.
        pool: number of batches that are sorted together.
        rank: index of this process among those that train together; each gets its share of the batches.
        processes: number of processes that train together.
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
        self._trained = (0, 0)  # an epoch, and how many of its batches are left out

    @property
    def sampler(self) -> "LengthBuckets":
        """Itself: Lightning sets the epoch of a batch sampler's `sampler` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def order(self) -> dict[str, int]:
        """Return what, besides the epoch, decides which captions a batch holds."""
        return {
            "items": len(self.lengths),
            "tokens": sum(self.lengths),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "bucket_pool": self.pool,
            "processes": self.processes,
        }

    def go_on(self, epoch: int, batch: int = 0, order: Mapping[str, int] | None = None) -> None:
        """Choose an epoch and leave out those of its batches that a checkpoint has trained.

        Args:
            epoch: of the checkpoint.
            batch: number of this epoch's batches that are trained.
            order: what `order` returned then.

        Raises:
            InputError: inside an epoch whose batches are others than these.
        """
        before, now = dict(order or {}), self.order()
        other = [key for key in now if before.get(key, now[key]) != now[key]]
        if batch and other:
            raise InputError(
                f"resume= goes on inside an epoch, after batch {batch}, which was shuffled with "
                f"{', '.join(f'{key} = {before[key]}' for key in other)} but this run has "
                f"{', '.join(f'{key} = {now[key]}' for key in other)}; give the same data and options, or "
                "resume=<run folder>/checkpoints/epoch<NN>.ckpt to go on after a whole epoch"
            )
        self.epoch, self._trained = epoch, (epoch, batch)

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, because Lightning creates the iterator before it sets the epoch.
        generator = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        # Sorting within pools only: sorting everything would put the same captions together every epoch.
        span = self.pool * self.batch_size
        for start in range(0, len(order), span):
            order[start : start + span] = sorted(order[start : start + span], key=self.lengths.__getitem__)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        generator.shuffle(batches)
        # Every process gets as many batches as the others, or those that have fewer would wait forever.
        epoch, trained = self._trained
        yield from batches[self.rank :: self.processes][trained if epoch == self.epoch else 0 : len(self)]


class SharedBatches(Sampler[list[int]]):
    """Batches in a fixed order, of which each process gets its share.

    All get equally many, since they wait for each other: where the batches do not go round, the first ones
    are dealt twice.

    Args:
        order: of the items.
        batch_size: items per batch; the last one may be smaller.
        rank: index of this process among those that share the batches.
        processes: number of processes.

    Attributes:
        numbers: which of all batches this process gets, in its order.
    """

    def __init__(self, order: Sequence[int], batch_size: int, *, rank: int = 0, processes: int = 1) -> None:
        self.batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
        rounds = -(-len(self.batches) // processes)
        self.numbers = [(turn * processes + rank) % len(self.batches) for turn in range(rounds)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batches[number] for number in self.numbers)
