"""Time of a training step of the post's model: ours against the post's loop and an ordinary good one.

    python -m benchmarks.training_step [--threads 2] [--repeats 7] [--words 7 12] [--photographs 64 13]

At the post's sizes (64 regions of 2048, vocabulary 5,000), random numbers: 64 captions of 64 photographs and
65 of 13, as with data.captions_per_image=5 data.batch_size=65; 9 to 14 ids a caption. All do forward, loss
and backward. The references are those of `benchmarks.references`, the post's loop also padded to the 49 ids
that the notebook behind it ships with; they encode a photograph for each caption. Repeats are interleaved,
medians are printed.
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


def make_batch(least: int, most: int, photographs: int = 64) -> Batch:
    each = round(64 / photographs)  # captions of a photograph
    count, generator = each * photographs, torch.Generator().manual_seed(0)
    lengths = torch.randint(least, most + 1, (count,), generator=generator).tolist()
    captions = [[START, *torch.randint(4, 5000, (n,), generator=generator).tolist(), END] for n in lengths]
    features = torch.rand(photographs, 64, 2048, generator=generator).half()
    rows = torch.arange(photographs).repeat_interleave(each) if each > 1 else None
    return Batch(features, None, pad_captions(captions), ["x"] * count, [()] * count, rows)


def ours(batch: Batch) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    model, objective = build(), CrossEntropy()
    return model, lambda: objective(model, batch).loss


def reference(
    kind: type[torch.nn.Module], batch: Batch, width: int
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """Return a reference model and its loss of captions padded to `width` ids."""
    model, features = kind(), batch.features.float()
    if batch.image_rows is not None:
        features = features[batch.image_rows]
    tokens = functional.pad(batch.tokens, (0, width - batch.tokens.shape[1]), value=PAD)
    return model, lambda: model(features, tokens)


def seconds(model: torch.nn.Module, compute_loss: Callable[[], torch.Tensor], autocast: bool) -> float:
    model.zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):  # as the trainer opens it
        loss = compute_loss()
    loss.backward()
    return time.perf_counter() - started


def measure(batch: Batch, repeats: int) -> None:
    """Time all forms on a batch, and print their medians."""
    longest = max(20, batch.tokens.shape[1])
    forms = {
        f"the post's loop, padded to {longest}": reference(PostLoop, batch, longest),
        "the post's loop, padded to 49": reference(PostLoop, batch, 49),
        "an ordinary good loop": reference(OrdinaryLoop, batch, batch.tokens.shape[1]),
        "ours": ours(batch),
    }
    cases = [(name, precision) for precision in ("float32", "bfloat16") for name in forms]
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for repeat in range(repeats + 1):
        for name, precision in cases:
            taken = seconds(*forms[name], precision == "bfloat16")
            if repeat:  # the first round warms up
                times[name, precision].append(taken)
    print(f"{'':35s}{'float32 ms':>12s}{'/ ours':>8s}{'bfloat16 ms':>13s}{'/ ours':>8s}")
    for name in forms:
        cells = ""
        for precision, width in (("float32", 12), ("bfloat16", 13)):
            median = statistics.median(times[name, precision])
            cells += f"{1000 * median:{width}.0f}{median / statistics.median(times['ours', precision]):8.2f}"
        print(f"{name:35s}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--words", type=int, nargs=2, default=(7, 12), help="least and most of a caption")
    parser.add_argument(
        "--photographs", type=int, nargs="+", default=(64, 13), help="that about 64 captions describe"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    least, most = options.words
    print(f"{options.threads} threads, median of {options.repeats}, {least} to {most} words")
    for photographs in options.photographs:
        batch = make_batch(least, most, photographs)
        print(f"\n{len(batch.tokens)} captions of {photographs} photographs")
        measure(batch, options.repeats)


if __name__ == "__main__":
    main()
