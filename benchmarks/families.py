"""Size and speed of every family at the sizes of the Flickr8k experiments, against the post's model.

    python -m benchmarks.families [--threads 2] [--repeats 5] [--precision bfloat16] [--json FILE]

64 regions of 2048, vocabulary 2,500, batch 64, captions of 9 to 14 ids, random numbers. A step is forward,
loss, backward and Adam under autocast as the trainer opens it; the loss is that of the family's experiment,
except for Topic-Guided's topics and attributes, which random captions do not have. An image is 12 words,
greedily and with a beam of 5 (END is never chosen, so that every family does the same work). Repeats are
interleaved, medians are printed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from captioning.data import Batch
from captioning.data.dataset import pad_captions
from captioning.decoding import beam_search, greedy
from captioning.files import CONF
from captioning.models import CaptionModel
from captioning.objectives import Objective
from captioning.vocabulary import END, START

FAMILIES = (
    "gru_attention_flickr", "mean_pooled", "show_attend_tell_flickr", "show_attend_tell_hard_flickr",
    "up_down_flickr", "attentive_translator", "adaptive", "topic_guided_flickr", "transformer",
    "meshed_memory_flickr",
)  # fmt: skip
OBJECTIVES = {
    "show_attend_tell_flickr": "doubly_stochastic",
    "show_attend_tell_hard_flickr": "reinforce",
}  # of the others: cross_entropy
VOCABULARY, FEATURE_DIM, WORDS = 2500, 2048, 12


def build(name: str) -> tuple[CaptionModel, Objective]:
    chosen = [f"model={name}", f"objective={OBJECTIVES.get(name, 'cross_entropy')}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*chosen, "features=inception_v3", "output_dir=none"])
    options = OmegaConf.to_container(config.model, resolve=True)
    encoder = {**options["encoder"], "feature_dim": FEATURE_DIM}
    model = instantiate({**options, "vocabulary_size": VOCABULARY, "encoder": encoder})
    with torch.no_grad():
        [*model.output.modules()][-1].bias[END] = -1e4
    return model, instantiate(config.objective)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(7, 13, (64,), generator=generator).tolist()
    captions = [
        [START, *torch.randint(4, VOCABULARY, (n,), generator=generator).tolist(), END] for n in lengths
    ]
    features = torch.rand(64, 64, FEATURE_DIM, generator=generator).half()
    return Batch(features, None, pad_captions(captions), ["x"] * 64, [()] * 64)


def train_step(
    model: CaptionModel, objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer
) -> None:
    optimizer.zero_grad()
    objective(model.train(), batch).loss.float().backward()
    optimizer.step()


@torch.no_grad()
def caption(model: CaptionModel, batch: Batch, decode: Callable[..., object], **options: int) -> None:
    decode(model.eval(), batch.features, None, max_words=WORDS, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write the medians to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch, built = make_batch(), {name: build(name) for name in FAMILIES}
    models = {name: model for name, (model, _) in built.items()}
    optimizers = {n: torch.optim.Adam(m.parameters(), 1e-5, fused=True) for n, m in models.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for repeat in range(options.repeats + 1):
        for name, model in models.items():
            for task, work in (
                ("step", lambda n=name: train_step(*built[n], batch, optimizers[n])),
                ("greedy", lambda m=model: caption(m, batch, greedy)),
                ("beam 5", lambda m=model: caption(m, batch, beam_search, beam_size=5)),
            ):
                # Lightning, too, lets autocast convert weights anew at every use.
                with torch.autocast(
                    "cpu", torch.bfloat16, options.precision == "bfloat16", cache_enabled=False
                ):
                    started = time.perf_counter()
                    work()
                    taken = time.perf_counter() - started
                if repeat:  # the first round warms up
                    times.setdefault((name, task), []).append(taken)
    print(f"{options.precision}, {options.threads} threads, median of {options.repeats}, {WORDS} words")
    headings = f"{'parameters':>12s}{'ms a step':>11s}{'of the first':>13s}{'ms an image, greedy':>21s}"
    print(f"{'':30s}{headings}{'beam 5':>8s}")
    rows = {}
    for name, model in models.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        step, one, five = (
            1000 * statistics.median(times[name, task]) for task in ("step", "greedy", "beam 5")
        )
        share = step / (1000 * statistics.median(times[FAMILIES[0], "step"]))
        print(f"{name:30s}{count:12,d}{step:11.0f}{share:13.2f}{one / 64:21.2f}{five / 64:8.2f}")
        rows[name] = {"ms_a_step": step, "ms_an_image_greedy": one / 64, "ms_an_image_beam5": five / 64}
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
