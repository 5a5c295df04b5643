"""Samplers: which captions or images go together in a batch."""

import random
from collections.abc import Iterator, Mapping, Sequence

from torch.utils.data import Sampler

from captioning.errors import InputError


class LengthBuckets(Sampler[list[int]]):
    """Batches of captions of similar length, shuffled anew each epoch and reproducible for a given epoch.

    Items are shuffled, sorted by length within pools of many batches, cut into batches, and the batches
    shuffled: little padding, while every batch still mixes the whole data set.

    Captions of an image can be kept together, so that a batch encodes each image once for all of them. A
    batch then has `batch_size / per_image` images; an image with more captions than `per_image` comes more
    than once an epoch, one with fewer makes its batch smaller.

    Args:
        lengths: length of each item.
        batch_size: items per batch; the last one may be smaller.
        images: the image of each item; not needed where `per_image` is 1.
        per_image: how many items of an image are kept together; divides `batch_size`.
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
        images: Sequence[int] = (),
        per_image: int = 1,
    ) -> None:
        self._items_of_image: dict[int, list[int]] = {}
        for item, image in enumerate(images if per_image > 1 else ()):
            self._items_of_image.setdefault(image, []).append(item)
        self.per_image, self.groups_per_batch = per_image, batch_size // per_image
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
            "captions_per_image": self.per_image,
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
        if before:
            before.setdefault("captions_per_image", 1)  # in checkpoints from before there was a choice
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
        return -(-self.num_groups // self.groups_per_batch) // self.processes

    @property
    def num_groups(self) -> int:
        """Number of groups of items that stay together."""
        if self.per_image == 1:
            return len(self.lengths)
        return sum(-(-len(items) // self.per_image) for items in self._items_of_image.values())

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, because Lightning creates the iterator before it sets the epoch.
        generator = random.Random(f"{self.seed} {self.epoch}")
        groups = self._groups(generator)
        generator.shuffle(groups)
        # Sorting within pools only: sorting everything would put the same captions together every epoch.
        size = self.groups_per_batch
        for start in range(0, len(groups), self.pool * size):
            pool = slice(start, start + self.pool * size)
            groups[pool] = sorted(groups[pool], key=self._length)
        batches = [
            [item for group in groups[start : start + size] for item in group]
            for start in range(0, len(groups), size)
        ]
        generator.shuffle(batches)
        # Every process gets as many batches as the others, or those that have fewer would wait forever.
        epoch, trained = self._trained
        yield from batches[self.rank :: self.processes][trained if epoch == self.epoch else 0 : len(self)]

    def _length(self, group: list[int]) -> int:
        return max(self.lengths[item] for item in group)

    def _groups(self, generator: random.Random) -> list[list[int]]:
        """Return the items that stay together; which items of an image do is drawn anew each epoch."""
        if self.per_image == 1:
            return [[item] for item in range(len(self.lengths))]
        groups = []
        for items in self._items_of_image.values():
            if len(items) > self.per_image:
                items = generator.sample(items, len(items))
            groups += [items[i : i + self.per_image] for i in range(0, len(items), self.per_image)]
        return groups


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
