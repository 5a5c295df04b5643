"""Milliseconds of reading a batch of 64 images from the feature cache: ours against h5py's list selection.

    python -m benchmarks.cache [--rows 512] [--repeats 5] [--features FILE]

Rows of 64 × 2048 float16 in a temporary file, the same in 8 shards, as int8, and in an array in memory. The
page cache is warm for all, and every row has been read and checked once. Half of the values are zero, as
after a ReLU; with --features they come from a feature file. Also bytes and error of int8.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from captioning.features import CacheWriter, FeatureCache, Shard
from captioning.features.cache import Row

SHAPE, SHARDS = (64, 2048), 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=Path, help="a float16 feature file, in place of drawn rows")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    content = rows_of(options.features, options.rows, generator)
    ids = [str(number) for number in range(len(content))]
    with tempfile.TemporaryDirectory() as folder:
        path, sharded, small = (Path(folder) / name for name in ("f.h5", "shards", "int8.h5"))
        write(path, ids, content)
        write(small, ids, content, store="int8")
        for number in range(SHARDS):
            write(Shard(number, SHARDS).path(sharded), ids[number::SHARDS], content[number::SHARDS])
        caches = {"one file": path, f"{SHARDS} shards": sharded, "int8": small}
        readers = {name: reader(FeatureCache(place), ids) for name, place in caches.items()}
        readers["array in memory"] = lambda chosen: content[chosen]
        with h5py.File(path, locking=False) as file:
            readers = {"dataset[list]": lambda chosen: file["features"][chosen.tolist()], **readers}
            times = compare(readers, len(ids), options.repeats, generator)
        read = FeatureCache(small).read(ids)
        sizes = [place.stat().st_size / len(ids) for place in (path, small)]
    reference_ms = statistics.median(times["dataset[list]"])
    print(f"batch of 64 out of {len(ids)} rows of {content.shape[1:]}, median of {options.repeats}")
    for name, values in times.items():
        print(f"{name:20s}{statistics.median(values):9.1f} ms{statistics.median(values) / reference_ms:9.3f}")
    error = [np.abs(one.astype(np.float32) - other) for one, other in zip(read, content, strict=True)]
    print(f"bytes an image: float16 {sizes[0]:.0f}, int8 {sizes[1]:.0f}")
    print(
        f"error of int8: largest {np.max(error):.4f}, mean {np.mean(error):.5f}; the values: largest "
        f"{np.abs(content).max():.3f}, mean magnitude {np.mean([np.abs(row).mean() for row in content]):.3f}"
    )


def rows_of(path: Path | None, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw rows, or read those of a file, spread evenly over it: (rows, R, D) float16."""
    if path is None:
        drawn = (
            generator.standard_normal(SHAPE, np.float32).clip(0).astype(np.float16) for _ in range(count)
        )
        return np.stack([*drawn])
    cache = FeatureCache(path)
    return cache.read(cache.image_ids[:: max(1, len(cache) // count)][:count])


def reader(cache: FeatureCache, ids: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that reads rows by number; all are read once, which compares their checksums."""
    for start in range(0, len(ids), 64):
        cache.read(ids[start : start + 64])
    return lambda chosen: cache.read([ids[number] for number in chosen])


def compare(
    readers: dict[str, Callable[[np.ndarray], np.ndarray]],
    rows: int,
    repeats: int,
    generator: np.random.Generator,
) -> dict[str, list[float]]:
    """Read batches of 64 by every reader in turn: milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for repeat in range(repeats + 1):
        chosen = np.sort(generator.choice(rows, 64, replace=False))
        reference = None
        for name, read in readers.items():
            started = time.perf_counter()
            found = read(chosen)
            spent = time.perf_counter() - started
            reference = found if reference is None else reference
            assert name == "int8" or np.array_equal(reference, found)
            if repeat:  # the first round warms up
                times[name].append(1000 * spent)
    return times


def write(path: Path, ids: list[str], content: np.ndarray, **provenance: str) -> None:
    """Write a file of these rows."""
    with CacheWriter(path, ids, content.shape[1:], provenance) as writer:
        for row, features in enumerate(content):
            writer.write(row, Row(features, len(features)))
        writer.finish()


if __name__ == "__main__":
    main()
