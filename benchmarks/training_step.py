"""Time of a training step of the post's model: the fast teacher-forced pass against a plain loop over words.

    python -m benchmarks.training_step [--threads 2] [--repeats 7]

At the post's sizes (64 regions of 2048, vocabulary 5,000), batch 64, captions of 9 to 14 ids, random numbers.
Both do forward, loss and backward; repeats are interleaved and medians are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from captioning.data import Batch
from captioning.data.dataset import pad_captions
from captioning.models import CarriedState, FeatureProjection, GRUAttention
from captioning.objectives import CrossEntropy
from captioning.vocabulary import END, PAD, START


def build() -> GRUAttention:
    return GRUAttention(
        encoder=FeatureProjection(feature_dim=2048, output_dim=256, dropout=0.0),
        vocabulary_size=5000, attention_dim=512, embedding_dim=256, hidden_dim=512, dropout=0.0,
        activation=torch.nn.Tanh(), recurrence=CarriedState(),
    )  # fmt: skip


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(7, 13, (64,), generator=generator).tolist()
    captions = [[START, *torch.randint(4, 5000, (n,), generator=generator).tolist(), END] for n in lengths]
    features = torch.rand(64, 64, 2048, generator=generator).half()
    return Batch(features, None, pad_captions(captions), ["x"] * 64, [()] * 64)


def plain(model: GRUAttention, batch: Batch) -> torch.Tensor:
    """Loop over words, project everything at every word, score padding too, mask at the end."""
    tokens, memory = batch.tokens, model.encode(batch.features.float())
    state, total = torch.zeros(len(tokens), 512), torch.zeros(())
    for t in range(tokens.shape[1] - 1):
        keys = model.attention.key(memory.values)  # what a plain attention module does at every call
        step = model.step(tokens[:, t], state, memory._replace(keys=keys))
        state = step.state
        loss = functional.cross_entropy(model.head(step.hidden), tokens[:, t + 1], reduction="none")
        total = total + (loss * (tokens[:, t + 1] != PAD)).sum()
    return total / (tokens[:, 1:] != PAD).sum()


def fast(model: GRUAttention, batch: Batch) -> torch.Tensor:
    return CrossEntropy()(model, batch).loss


def seconds(
    model: GRUAttention, batch: Batch, compute_loss: Callable[..., torch.Tensor], autocast: bool
) -> float:
    model.zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):  # as the trainer opens it
        loss = compute_loss(model, batch)
    loss.backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, batch = build(), make_batch()
    difference = abs(fast(model, batch).item() - plain(model, batch).item())
    rows = [
        (f"{name}, {precision}", compute_loss, precision == "bfloat16")
        for precision in ("float32", "bfloat16")
        for name, compute_loss in (("plain", plain), ("fast", fast))
    ]
    times: dict[str, list[float]] = {name: [] for name, *_ in rows}
    for repeat in range(options.repeats + 1):
        for name, compute_loss, autocast in rows:
            taken = seconds(model, batch, compute_loss, autocast)
            if repeat:  # the first round warms up
                times[name].append(taken)
    reference = statistics.median(times["plain, float32"])
    print(f"losses differ by {difference:.1e}; {options.threads} threads, median of {options.repeats}")
    print(f"{'':18s}{'ms':>8s}{'of plain float32':>18s}")
    for name, values in times.items():
        print(
            f"{name:18s}{1000 * statistics.median(values):8.0f}{statistics.median(values) / reference:18.2f}"
        )


if __name__ == "__main__":
    main()
