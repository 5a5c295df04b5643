"""What `benchmarks.growth` measures: every path as a function of a size and the folder of its files.

A path prepares what it needs and returns the action to measure.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.training_step import build
from captioning.data import Annotated, Batch, CaptionDataModule, CaptionDataset, read_coco
from captioning.decoding import Forbidden, average, beam_search
from captioning.features import CacheWriter, FeatureCache
from captioning.features.cache import Row, check_provenance
from captioning.features.images import Fingerprint, digest
from captioning.features.pictures import Pictures
from captioning.objectives import CrossEntropy
from captioning.vocabulary import END, START, Vocabulary

NUM_WORDS = 30_000  # different words, as many as COCO's captions have
SHAPE, PROVENANCE = (1, 8), {"architecture": "none"}
Action = Callable[[], object]
Prepare = Callable[[int, Path], Action]


class Axis(NamedTuple):
    """What grows.

    paths: by name.
    quick, full: the sizes.
    make: writes the files of a size.
    traced: whether memory is what tracemalloc sees, which knows nothing of torch.
    """

    paths: dict[str, Prepare]
    quick: list[int]
    full: list[int]
    make: Callable[[int, Path], None] | None = None
    traced: bool = False


# ---- captions


def make_captions(number: int, folder: Path) -> None:
    """Write a COCO file of captions of 8 to 16 words by Zipf's law, and a cache of their pictures."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 17, number)
    weights = 1 / np.arange(1, NUM_WORDS + 1)
    ranks = generator.choice(NUM_WORDS, lengths.sum(), p=weights / weights.sum())
    words = np.array([f"word{rank}" for rank in range(NUM_WORDS)])[ranks]
    ids = range(-(-number // 5))
    captions = [
        {"image_id": i % len(ids), "id": i, "caption": f"{' '.join(part)}."}
        for i, part in enumerate(np.split(words, lengths.cumsum()[:-1]))
    ]
    images = [{"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": 480} for i in ids]
    content = json.dumps({"images": images, "annotations": captions})
    (folder / "captions.json").write_text(content, encoding="utf-8")
    write_cache(folder / "features.h5", [str(i) for i in ids])


def read_captions(folder: Path) -> list[Annotated]:
    return read_coco(folder / "captions.json", folder / "pictures", "train")


def texts_of(records: list[Annotated]) -> list[str]:
    return [text for record in records for text in record.captions]


def reading(number: int, folder: Path) -> Action:
    return lambda: read_captions(folder)


def vocabulary(number: int, folder: Path) -> Action:
    texts = texts_of(read_captions(folder))
    return lambda: Vocabulary.build(texts, size=10_000)


def dataset(number: int, folder: Path) -> Action:
    records, cache = read_captions(folder), FeatureCache(folder / "features.h5")
    words = Vocabulary.build(texts_of(records), size=10_000)
    return lambda: CaptionDataset(records, cache, words, max_words=20)


def read_encoded_and_ready(number: int, folder: Path) -> Action:
    """Time what a training does before its first batch: checks and the order of an epoch included."""

    def ready() -> object:
        module = CaptionDataModule(
            name="synthetic", reader=lambda: read_captions(folder), features_path=folder / "features.h5",
            vocabulary_size=10_000, min_count=1, max_words=20, batch_size=64, eval_batch_size=64,
            num_workers=0, seed=0, bucket_pool=1, feature_splits=["train"],
        )  # fmt: skip
        module.setup()
        return module, next(iter(module.train_dataloader()))

    return ready


# ---- images


def write_cache(path: Path, image_ids: list[str], pictures: Pictures | None = None) -> None:
    row = Row(np.ones(SHAPE, np.float16), SHAPE[0])
    with CacheWriter(path, image_ids, SHAPE, PROVENANCE, pictures=pictures) as writer:
        for number, image_id in enumerate(image_ids):
            known = fingerprint(pictures.paths[image_id]) if pictures else None
            writer.write(number, row, known)
        writer.finish()


def fingerprint(path: Path) -> Fingerprint:
    state = path.stat()
    with path.open("rb") as file:
        return Fingerprint(state.st_size, state.st_mtime_ns, digest(file))


def paths_of(number: int, folder: Path) -> dict[str, Path]:
    return {str(i): folder / "pictures" / f"{i}.jpg" for i in range(number)}


def make_images(number: int, folder: Path) -> None:
    """Write pictures of a few bytes each, and their cache."""
    paths = paths_of(number, folder)
    (folder / "pictures").mkdir()
    for image_id, path in paths.items():
        path.write_text(image_id)
    write_cache(folder / "features.h5", list(paths), Pictures(paths))


def writing(number: int, folder: Path) -> Action:
    path, image_ids = folder / "written.h5", [str(i) for i in range(number)]

    def write() -> None:
        path.unlink(missing_ok=True)
        write_cache(path, image_ids)

    return write


def continuing(number: int, folder: Path) -> Action:
    """Time what `extract` does where nothing is to be extracted any more."""
    paths = paths_of(number, folder)

    def reopen() -> None:
        with CacheWriter(
            folder / "features.h5", list(paths), SHAPE, PROVENANCE, pictures=Pictures(paths)
        ) as writer:
            writer.finish()

    return reopen


def opening(number: int, folder: Path) -> Action:
    path = folder / "features.h5"
    return lambda: check_provenance(path, FeatureCache(path).provenance, PROVENANCE)


def listing(number: int, folder: Path) -> Action:
    cache = FeatureCache(folder / "features.h5")
    return lambda: cache.contents(set(cache.image_ids))


def comparing(number: int, folder: Path) -> Action:
    cache, paths = FeatureCache(folder / "features.h5"), paths_of(number, folder)
    return lambda: cache.check_pictures(paths)


def reading_a_batch(number: int, folder: Path) -> Action:
    cache, generator = FeatureCache(folder / "features.h5"), np.random.default_rng(0)
    return lambda: cache.read([str(i) for i in generator.integers(0, number, 64)])


# ---- the model


def features_of(batch: int, regions: int) -> torch.Tensor:
    return torch.rand(batch, regions, 2048, dtype=torch.float16)


def training_step(*, vocabulary: int, words: int, regions: int, batch: int, **_: int) -> Action:
    model, objective = build(vocabulary), CrossEntropy()
    ends = torch.full((batch, 1), START), torch.full((batch, 1), END)
    tokens = torch.cat([ends[0], torch.randint(4, vocabulary, (batch, words)), ends[1]], 1)
    content = Batch(features_of(batch, regions), None, tokens, ["x"] * batch, [()] * batch)

    def step() -> None:
        model.zero_grad()
        objective(model, content).loss.backward()

    return step


def beam(*, vocabulary: int, words: int, regions: int, batch: int, beams: int) -> Action:
    model, features = build(vocabulary).eval(), features_of(batch, regions)
    settings: dict[str, Any] = {"length_score": average, "rules": [Forbidden(ids=[END])]}

    def search() -> None:
        with torch.no_grad():
            beam_search(model, features, max_words=words, beam_size=beams, **settings)

    return search


def with_size(prepare: Callable[..., Action], axis: str, size: int, folder: Path) -> Action:
    """Prepare a path of the model at the post's sizes, one of which is another."""
    sizes = {"vocabulary": 5000, "words": 12, "regions": 64, "batch": 16, "beams": 5}
    return prepare(**{**sizes, axis: size})


def of_model(axis: str, *paths: Callable[..., Action]) -> dict[str, Prepare]:
    return {path.__name__: functools.partial(with_size, path, axis) for path in paths}


def halves(largest: int) -> list[int]:
    return [largest >> shift for shift in (4, 3, 2, 1, 0)]


AXES = {
    "captions": Axis(
        {p.__name__: p for p in (reading, vocabulary, dataset, read_encoded_and_ready)},
        *(halves(8_000), halves(414_113), make_captions),
        traced=True,
    ),
    "images": Axis(
        {p.__name__: p for p in (writing, continuing, opening, listing, comparing, reading_a_batch)},
        *(halves(4_000), halves(123_287), make_images),
        traced=True,
    ),
    "vocabulary": Axis(of_model("vocabulary", training_step, beam), halves(8_000), halves(80_000)),
    "words": Axis(of_model("words", training_step, beam), halves(32), halves(80)),
    "beams": Axis(of_model("beams", beam), halves(16), halves(16)),
    "regions": Axis(of_model("regions", training_step, beam), halves(64), halves(256)),
    "batch": Axis(of_model("batch", training_step, beam), halves(16), halves(128)),
}
