"""Milliseconds of the two small parts that we wrote although torch has them: dropout, attention over words.

    python -m benchmarks.own_parts [--threads 2] [--repeats 15]

Forward and backward in bfloat16: dropout of 0.5 on 64 images' regions (64 × 512), and a Transformer layer's
causal attention over 64 captions of 12 and of 20 words (8 heads of 64). Repeats are interleaved, medians are
printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.models.dropout import Dropout
from captioning.models.transformer_decoder import attend


def fused(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    context = functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    return context.transpose(1, 2).flatten(2)  # (B, T, H)


def written_out(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    words = query.shape[2]
    return attend(query, keys, values, torch.ones(words, words, dtype=torch.bool).tril())[0]


def milliseconds(function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    started = time.perf_counter()
    function(*inputs).sum().backward()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)

    cases: list[tuple[str, Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = [
        ("dropout of 64 × 64 × 512", nn.Dropout(0.5), Dropout(0.5), [random(64, 64, 512)])
    ]
    for words in (12, 20):
        inputs = [random(64, 8, words, 64) for _ in range(3)]
        torch.testing.assert_close(written_out(*inputs), fused(*inputs), atol=2e-2, rtol=2e-2)
        cases.append((f"attention over {words} words", fused, written_out, inputs))
    print(f"{options.threads} threads, median of {options.repeats}: torch's, ours, ratio")
    for name, theirs, ours, inputs in cases:
        times: list[list[float]] = [[], []]
        for repeat in range(options.repeats + 1):
            for function, kept in zip((theirs, ours), times, strict=True):
                taken = milliseconds(function, inputs)
                if repeat:  # the first round warms up
                    kept.append(taken)
        reference, found = (statistics.median(kept) for kept in times)
        print(f"{name:28s}{reference:8.1f} ms{found:8.1f} ms{found / reference:8.2f}")


if __name__ == "__main__":
    main()
