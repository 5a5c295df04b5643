"""Batches: the one place where the shapes of what models are fed with are stated."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from captioning.data.records import Annotated
from captioning.features.cache import FeatureCache
from captioning.vocabulary import PAD, START, Vocabulary


class Batch(NamedTuple):
    """B pictures with one caption each, or C captions that share B pictures; C is B where none are shared.

    features: (B, R, D) float16 regions.
    mask: (B, R) True at real regions, or None where every image has all R.
    tokens: (C, T+1) word ids: START, the words, END, then PAD. Inputs are `tokens[:, :-1]`, targets
        `tokens[:, 1:]`.
    image_ids: C ids, of each caption's picture.
    references: all captions of each caption's picture as text, for rewards and scores.
    image_rows: (C,) the row of `features` and `mask` that each caption describes; None where it is its own.
    """

    features: Tensor
    mask: Tensor | None
    tokens: Tensor
    image_ids: list[str]
    references: list[tuple[str, ...]]
    image_rows: Tensor | None = None

    @property
    def caption_mask(self) -> Tensor | None:
        """The mask of each caption's picture, (C, R)."""
        return self.mask if self.mask is None or self.image_rows is None else self.mask[self.image_rows]


class _CachedDataset(Dataset):
    """Items whose features come from the cache; `__getitems__` builds a whole batch with one read."""

    def __init__(self, records: Sequence[Annotated], cache: FeatureCache, vocabulary: Vocabulary) -> None:
        self.records, self.cache, self.vocabulary = list(records), cache, vocabulary

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        raise NotImplementedError

    def _batch(
        self,
        records: Sequence[Annotated],
        captions: Sequence[Sequence[int] | np.ndarray],
        *,
        share_images: bool = False,
    ) -> Batch:
        all_ids = [record.image_id for record in records]
        image_ids = list(dict.fromkeys(all_ids)) if share_images else all_ids
        features = torch.from_numpy(self.cache.read(image_ids))  # (B, R, D)
        mask = None
        if self.cache.varies_in_count:
            counts = torch.from_numpy(self.cache.counts(image_ids))  # (B,)
            mask = torch.arange(features.shape[1]) < counts[:, None]  # (B, R)
        tokens = pad_captions(captions)  # (C, T+1)
        image_rows = None
        if share_images:
            row_of = {image_id: row for row, image_id in enumerate(image_ids)}
            image_rows = torch.tensor([row_of[image_id] for image_id in all_ids])  # (C,)
        return Batch(features, mask, tokens, all_ids, [record.captions for record in records], image_rows)


class CaptionDataset(_CachedDataset):
    """One item per caption, for teacher forcing.

    Args:
        records: pictures with their captions.
        cache: their features.
        vocabulary: turns captions into ids.
        max_words: longer captions are cut to that many words and keep their END; None cuts none.
        share_images: read an image that several captions of a batch describe once, see `Batch.image_rows`.
    """

    def __init__(
        self,
        records: Sequence[Annotated],
        cache: FeatureCache,
        vocabulary: Vocabulary,
        *,
        max_words: int | None,
        share_images: bool = False,
    ) -> None:
        super().__init__(records, cache, vocabulary)
        self.share_images = share_images
        # The ids of all captions in one array: a list for each takes four times the memory.
        words, ends = array("i"), array("q", [0])
        for text in (text for record in self.records for text in record.captions):
            words.extend(vocabulary.encode(text, max_words=max_words))
            ends.append(len(words))
        self._words, self._ends = np.array(words), np.array(ends)  # caption i ends at ends[i + 1]
        counts = np.array([len(record.captions) for record in self.records], int)
        self._rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)  # record of each caption

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Number of ids of each caption, START and END included."""
        return np.diff(self._ends).tolist()

    @property
    def images(self) -> list[int]:
        """The image of each caption, as its position among the records."""
        return self._rows.tolist()

    def word_counts(self) -> Tensor:
        """Count how often each word is a target, END included and START not: (V,) float32."""
        counts = np.bincount(self._words, minlength=len(self.vocabulary))
        counts[START] = 0
        return torch.from_numpy(counts).float()

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Build the batch of some captions."""
        records = [self.records[self._rows[i]] for i in indices]
        captions = [self._words[self._ends[i] : self._ends[i + 1]] for i in indices]
        return self._batch(records, captions, share_images=self.share_images)


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
