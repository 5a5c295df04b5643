"""Milliseconds per image of beam search: ours, batched over images and beams, against one image at a time.

    python -m benchmarks.beam [--threads 2] [--images 64] [--repeats 5]

Beam 5, 20 steps (END forbidden, so that no caption ends early), vocabulary 5,000, 64 regions of 2048, the
post's model with random weights.
"""

import argparse
import statistics
import time

import torch

from benchmarks.training_step import build
from captioning.decoding import Forbidden, average, beam_search, greedy
from captioning.vocabulary import END


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, features = build().eval(), torch.rand(options.images, 64, 2048).half()
    settings = {"max_words": 20, "beam_size": 5, "length_score": average, "rules": [Forbidden(ids=[END])]}

    def batched() -> None:
        beam_search(model, features, **settings)

    def one_by_one() -> None:
        for row in range(len(features)):
            beam_search(model, features[row : row + 1], **settings)

    cases = {
        "batched": (batched, False),
        "batched, bfloat16": (batched, True),
        "one at a time": (one_by_one, False),
        "greedy, batched": (lambda: greedy(model, features, max_words=20), False),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    with torch.no_grad():
        for repeat in range(options.repeats + 1):
            for name, (decode, autocast) in cases.items():
                started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    decode()
                if repeat:  # the first round warms up
                    times[name].append(1000 * (time.perf_counter() - started) / options.images)
    reference = statistics.median(times["one at a time"])
    print(f"{options.threads} threads, {options.images} images, median of {options.repeats}")
    print(f"{'':20s}{'ms an image':>12s}{'of one at a time':>18s}")
    for name, values in times.items():
        print(f"{name:20s}{statistics.median(values):12.1f}{statistics.median(values) / reference:18.2f}")


if __name__ == "__main__":
    main()
