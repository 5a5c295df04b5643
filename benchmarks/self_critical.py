"""Time of a self-critical step against the straightforward form: drawing words with a graph.

    python -m benchmarks.self_critical [--threads 2] [--repeats 5]

32 images, 5 samples an image of up to 20 words; sampling, CIDEr-D, loss and backward, without dropout. The
captioner in the package describes its three photographs, over and over, so that its captions have real
lengths. The other models are those of `benchmarks.families` with random weights; each word is the last with a
probability of 1/11. Repeats are interleaved. The time is that of the processor, on all its cores, which other
work on the machine changes little; medians are printed.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from benchmarks import families
from captioning.data import Batch
from captioning.decoding.decoded import Decoded, word_log_probs
from captioning.features import RegionFeatures, to_image
from captioning.files import PHOTOGRAPHS
from captioning.models import CaptionModel, pick
from captioning.objectives import SelfCritical
from captioning.predictor import load
from captioning.vocabulary import END, PAD, SPECIAL_WORDS, START, Vocabulary

MODELS = ("gru_attention_flickr", "up_down_flickr", "transformer")
IMAGES, SAMPLES, MAX_WORDS = 32, 5, 20


def bundled() -> tuple[CaptionModel, list[str], Tensor]:
    """Return the captioner in the package, its words, and the features of its photographs, repeated."""
    captioner = load()
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))
    pixels = torch.stack([captioner.extractor.transform(to_image(path)) for path in paths])
    features = RegionFeatures.of(captioner.extractor(pixels)).features.half()
    rows = torch.arange(IMAGES) % len(paths)
    return captioner.model.requires_grad_(True), captioner.vocabulary.words, features[rows]


def untrained(name: str) -> tuple[CaptionModel, list[str], Tensor]:
    """Return a model whose captions end after each word with a probability of 1/11."""
    model, _ = families.build(name)
    with torch.no_grad():
        [*model.output.modules()][-1].bias[END] = math.log(families.VOCABULARY / 10)
    words = [*SPECIAL_WORDS, *(f"word{n}" for n in range(families.VOCABULARY - len(SPECIAL_WORDS)))]
    return model, words, torch.rand(IMAGES, 64, families.FEATURE_DIM).half()


def straightforward(objective: SelfCritical, model: CaptionModel, batch: Batch) -> Tensor:
    """Draw with a graph; rows that have ended go through the model until the last one has."""
    memory = pick(model.encode(batch.features), torch.arange(IMAGES).repeat(SAMPLES))
    state, last = model.start(memory), torch.full((IMAGES * SAMPLES,), START)
    ended, tokens, total = torch.zeros(IMAGES * SAMPLES, dtype=torch.bool), [], torch.zeros(())
    for _ in range(MAX_WORDS):
        step = model.step(last, state, memory)
        scores, state = word_log_probs(model.head(step.hidden)), step.state
        chosen = torch.multinomial(scores.detach().softmax(-1), 1).squeeze(-1)
        total = total + scores.gather(-1, chosen[:, None]).squeeze(-1).masked_fill(ended, 0.0)
        last = chosen.masked_fill(ended, PAD)
        tokens.append(last)
        ended = ended | (last == END)
        if ended.all():
            break
    samples = torch.stack(tokens, 1).chunk(SAMPLES)
    rewards = torch.stack([objective.rewards(batch.image_ids, Decoded(t, total, None)) for t in samples])
    advantage = rewards - (rewards.sum(0) - rewards) / (SAMPLES - 1)
    return -(advantage.flatten() * total).mean()


def two_passes(objective: SelfCritical, model: CaptionModel, batch: Batch) -> Tensor:
    return objective(model, batch).loss


def cases(names: list[str]) -> Iterator[tuple[str, SelfCritical, CaptionModel, Batch]]:
    for name in names:
        model, words, features = bundled() if name == "bundled" else untrained(name)
        objective = SelfCritical(
            num_samples=SAMPLES,
            baseline="leave_one_out",
            max_words=MAX_WORDS,
            cross_entropy_share=0.0,
            normalisation="per_caption",
        )
        ids = [f"image{row}" for row in range(IMAGES)]
        references = {
            image: [" ".join(words[4 + (row * 5 + n * 7 + k) % 40] for k in range(10)) for n in range(5)]
            for row, image in enumerate(ids)
        }
        objective.prepare(references, Vocabulary(words))
        yield name, objective, model.eval(), Batch(features, None, torch.zeros(IMAGES, 1), ids, [()] * IMAGES)


def milliseconds(
    form: Callable[..., Tensor], objective: SelfCritical, model: CaptionModel, batch: Batch, autocast: bool
) -> float:
    model.zero_grad()
    torch.manual_seed(0)
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):  # as the trainer opens it
        loss = form(objective, model, batch)
    loss.backward()
    return 1000 * (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["bundled", *MODELS])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, CPU time, median of {options.repeats}")
    print(f"{'':24s}{'':>10s}{'straightforward ms':>20s}{'ours ms':>10s}{'times faster':>14s}")
    for (name, *case), precision in product(cases(options.models), ("float32", "bfloat16")):
        times: dict[Callable[..., Tensor], list[float]] = {straightforward: [], two_passes: []}
        for repeat in range(options.repeats + 1):
            for form, taken in times.items():
                found = milliseconds(form, *case, precision == "bfloat16")
                if repeat:  # the first round warms up
                    taken.append(found)
        plain, ours = (statistics.median(taken) for taken in times.values())
        print(f"{name:24s}{precision:>10s}{plain:20.0f}{ours:10.0f}{plain / ours:14.2f}", flush=True)


if __name__ == "__main__":
    main()
