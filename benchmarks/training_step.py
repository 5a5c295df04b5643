"""Time of a training step of the post's model: ours against the post's loop and an ordinary good one.

    python -m benchmarks.training_step [--threads 2] [--repeats 7] [--words 7 12]

At the post's sizes (64 regions of 2048, vocabulary 5,000), batch 64, captions of 9 to 14 ids, random numbers.
All do forward, loss and backward; the references are those of `benchmarks.references`, the post's loop also
padded to the 49 ids that the notebook behind it ships with. Repeats are interleaved, medians are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.references import OrdinaryLoop, PostLoop
from captioning.data import Batch
from captioning.data.dataset import pad_captions
from captioning.models import CarriedState, FeatureProjection, GRUAttention
from captioning.objectives import CrossEntropy
from captioning.vocabulary import END, PAD, START


def build(vocabulary_size: int = 5000) -> GRUAttention:
    return GRUAttention(
        encoder=FeatureProjection(feature_dim=2048, output_dim=256, dropout=0.0),
        vocabulary_size=vocabulary_size, attention_dim=512, embedding_dim=256, hidden_dim=512, dropout=0.0,
        activation=torch.nn.Tanh(), recurrence=CarriedState(),
    )  # fmt: skip


def make_batch(least: int, most: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(least, most + 1, (64,), generator=generator).tolist()
    captions = [[START, *torch.randint(4, 5000, (n,), generator=generator).tolist(), END] for n in lengths]
    features = torch.rand(64, 64, 2048, generator=generator).half()
    return Batch(features, None, pad_captions(captions), ["x"] * 64, [()] * 64)


def ours(batch: Batch) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    model, objective = build(), CrossEntropy()
    return model, lambda: objective(model, batch).loss


def reference(
    kind: type[torch.nn.Module], batch: Batch, width: int
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """Return a reference model and its loss of captions padded to `width` ids."""
    model, features = kind(), batch.features.float()
    tokens = functional.pad(batch.tokens, (0, width - batch.tokens.shape[1]), value=PAD)
    return model, lambda: model(features, tokens)


def seconds(model: torch.nn.Module, compute_loss: Callable[[], torch.Tensor], autocast: bool) -> float:
    model.zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):  # as the trainer opens it
        loss = compute_loss()
    loss.backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--words", type=int, nargs=2, default=(7, 12), help="least and most of a caption")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = make_batch(*options.words)
    longest = max(20, batch.tokens.shape[1])
    forms = {
        f"the post's loop, padded to {longest}": reference(PostLoop, batch, longest),
        "the post's loop, padded to 49": reference(PostLoop, batch, 49),
        "an ordinary good loop": reference(OrdinaryLoop, batch, batch.tokens.shape[1]),
        "ours": ours(batch),
    }
    cases = [(name, precision) for precision in ("float32", "bfloat16") for name in forms]
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for repeat in range(options.repeats + 1):
        for name, precision in cases:
            taken = seconds(*forms[name], precision == "bfloat16")
            if repeat:  # the first round warms up
                times[name, precision].append(taken)
    least, most = options.words
    print(f"{options.threads} threads, median of {options.repeats}, {least} to {most} words")
    print(f"{'':35s}{'float32 ms':>12s}{'/ ours':>8s}{'bfloat16 ms':>13s}{'/ ours':>8s}")
    for name in forms:
        cells = ""
        for precision, width in (("float32", 12), ("bfloat16", 13)):
            median = statistics.median(times[name, precision])
            cells += f"{1000 * median:{width}.0f}{median / statistics.median(times['ours', precision]):8.2f}"
        print(f"{name:35s}{cells}")


if __name__ == "__main__":
    main()
