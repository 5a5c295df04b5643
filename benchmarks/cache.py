"""Milliseconds of reading a batch of 64 images from the feature cache: ours against h5py's list selection.

    python -m benchmarks.cache [--rows 512] [--repeats 5]

Rows of 64 × 2048 float16 in a temporary file, and the same in 8 shards; the page cache is warm for both.
"""

import argparse
import statistics
import tempfile
import time
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
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path, sharded = Path(folder) / "f.h5", Path(folder) / "shards"
        ids = [str(i) for i in range(options.rows)]
        content = [generator.random(SHAPE, np.float32).astype(np.float16) for _ in ids]
        write(path, ids, content)
        for number in range(SHARDS):
            write(Shard(number, SHARDS).path(sharded), ids[number::SHARDS], content[number::SHARDS])
        del content
        caches = {"one file": FeatureCache(path), f"{SHARDS} shards": FeatureCache(sharded)}
        times: dict[str, list[float]] = {name: [] for name in ("dataset[list]", *caches)}
        with h5py.File(path, locking=False) as file:
            for repeat in range(options.repeats + 1):
                chosen = np.sort(generator.choice(options.rows, 64, replace=False))
                started = time.perf_counter()
                reference = file["features"][chosen.tolist()]
                spent = {"dataset[list]": time.perf_counter() - started}
                for name, cache in caches.items():
                    started = time.perf_counter()
                    ours = cache.read([str(i) for i in chosen])
                    spent[name] = time.perf_counter() - started
                    assert np.array_equal(reference, ours)
                if repeat:  # the first round warms up
                    for name, seconds in spent.items():
                        times[name].append(1000 * seconds)
    reference_ms = statistics.median(times["dataset[list]"])
    print(f"batch of 64 out of {options.rows} rows, median of {options.repeats}")
    for name, values in times.items():
        print(f"{name:20s}{statistics.median(values):9.1f} ms{statistics.median(values) / reference_ms:9.3f}")


def write(path: Path, ids: list[str], content: list[np.ndarray]) -> None:
    """Write a file of these rows."""
    with CacheWriter(path, ids, SHAPE, {}) as writer:
        for row, features in enumerate(content):
            writer.write(row, Row(features, SHAPE[0]))
        writer.finish()


if __name__ == "__main__":
    main()
