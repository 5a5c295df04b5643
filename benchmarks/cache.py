"""Milliseconds of reading a batch of 64 images from the feature cache: ours against h5py's list selection.

    python -m benchmarks.cache [--rows 512] [--repeats 5]

Rows of 64 × 2048 float16 in a temporary file; the page cache is warm for both.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from captioning.features import CacheWriter, FeatureCache
from captioning.features.cache import Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path, ids = Path(folder) / "f.h5", [str(i) for i in range(options.rows)]
        with CacheWriter(path, ids, (64, 2048), {}) as writer:
            for row in range(options.rows):
                writer.write(row, Row(generator.random((64, 2048), np.float32).astype(np.float16), 64))
            writer.finish()
        cache = FeatureCache(path)
        times: dict[str, list[float]] = {"dataset[list]": [], "FeatureCache.read": []}
        with h5py.File(path, locking=False) as file:
            for repeat in range(options.repeats + 1):
                chosen = np.sort(generator.choice(options.rows, 64, replace=False))
                started = time.perf_counter()
                reference = file["features"][chosen.tolist()]
                middle = time.perf_counter()
                ours = cache.read([str(i) for i in chosen])
                ended = time.perf_counter()
                assert np.array_equal(reference, ours)
                if repeat:  # the first round warms up
                    times["dataset[list]"].append(1000 * (middle - started))
                    times["FeatureCache.read"].append(1000 * (ended - middle))
    reference_ms = statistics.median(times["dataset[list]"])
    print(f"batch of 64 out of {options.rows} rows, median of {options.repeats}")
    for name, values in times.items():
        print(f"{name:20s}{statistics.median(values):9.1f} ms{statistics.median(values) / reference_ms:9.3f}")


if __name__ == "__main__":
    main()
