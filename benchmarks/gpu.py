"""What training, decoding and extraction cost on a GPU; it ends by itself.

    python -m benchmarks.gpu [--seconds 360] [--tiny] [--json FILE]

Sizes of the post: 64 regions of 2048, vocabulary 5,000, batch 64, captions of 9 to 14 ids, random numbers,
bfloat16 autocast, Adam. A step is forward, loss, backward and update. Needs this repository, torch,
torchvision and h5py. Without a GPU it runs on the CPU (`--tiny` makes that quick), which shows that it works
and nothing else.

    eager     as `captioning train` runs it: steps of captions that have ended are left out
    compiled  torch.compile of the step of one word, or of the Transformer's pass over all words
    graphed   teacher forcing recorded as CUDA graphs, as `captioning train cuda_graphs=true` runs it; of the
              references, the whole step with its update

References: the post's loop, and an ordinary good one (`benchmarks.references`). Medians are printed. Busy is
the share of the wall time in which the GPU ran kernels, from torch's profiler.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.references import FEATURES, VOCABULARY, OrdinaryLoop, PostLoop
from captioning.data import Batch
from captioning.data.dataset import pad_captions
from captioning.decoding import beam_search
from captioning.models import (
    CaptionModel,
    CarriedState,
    FeatureProjection,
    GRUAttention,
    RawFeatures,
    ShowAttendTell,
    SoftAttention,
    Transformer,
    UpDown,
)
from captioning.models.replay import ReplayedForward
from captioning.objectives import CrossEntropy, SelfCritical
from captioning.vocabulary import END, PAD, SPECIAL_WORDS, START, Vocabulary

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAMPLES, WORDS = 5, 20  # of self-critical training and of beam search


def projection(size: int) -> FeatureProjection:
    return FeatureProjection(feature_dim=FEATURES, output_dim=size, dropout=0.0)


def soft_attention(**sizes: int) -> nn.Module:
    return SoftAttention(attention_dim=512, deep_keys=True, **sizes)


MODELS: dict[str, Callable[[], CaptionModel]] = {
    "GRU + additive attention": lambda: GRUAttention(
        encoder=projection(256), vocabulary_size=VOCABULARY, attention_dim=512, embedding_dim=256,
        hidden_dim=512, dropout=0.0, activation=nn.Tanh(), recurrence=CarriedState(),
    ),
    "Show-Attend-Tell, soft": lambda: ShowAttendTell(
        encoder=projection(512), vocabulary_size=VOCABULARY, embedding_dim=512, hidden_dim=512,
        attention=soft_attention, dropout=0.0,
    ),
    "Up-Down": lambda: UpDown(
        encoder=projection(512), vocabulary_size=VOCABULARY, embedding_dim=512, hidden_dim=512,
        attention_dim=512, dropout=0.0,
    ),
    "Transformer": lambda: Transformer(
        encoder=RawFeatures(feature_dim=FEATURES), vocabulary_size=VOCABULARY, hidden_dim=512, num_layers=3,
        num_heads=8, mlp_dim=1024, dropout=0.0,
    ),
}  # fmt: skip


class Clock:
    """The time that is left, and what was measured."""

    def __init__(self, seconds: float) -> None:
        self.end, self.rows = time.monotonic() + seconds, dict[str, dict[str, float | str]]()

    def note(self, name: str, **values: float | str) -> None:
        self.rows[name] = values
        cells = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
        ]
        print(f"{name:60s}" + "   ".join(cells), flush=True)

    def measure(self, name: str, work: Callable[[], dict[str, float | str]]) -> None:
        """Note what `work` measures; a form that fails or for which no time is left says so."""
        if time.monotonic() > self.end:
            return self.note(name, result="not measured: out of time")
        try:
            values = work()
        except Exception as error:  # what one form cannot do must not cost the others
            return self.note(
                name, result=f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            )
        self.note(name, **values)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def busy(work: Callable[[], object], steps: int = 5) -> float | str:
    """The share of the wall time in which the GPU ran kernels."""
    if DEVICE.type != "cuda":
        return "-"
    wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        started = time.perf_counter()
        for _ in range(steps):
            work()
        wait()
        wall = time.perf_counter() - started
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / wall


@contextmanager
def half() -> Iterator[None]:
    # Lightning, too, lets autocast convert weights anew at every use.
    with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
        yield


def make_batch(images: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(7, 13, (images,), generator=generator).tolist()
    captions = [
        [START, *torch.randint(4, VOCABULARY, (n,), generator=generator).tolist(), END] for n in lengths
    ]
    features = torch.rand(images, 64, FEATURES, generator=generator).half().to(DEVICE)
    return Batch(features, None, pad_captions(captions).to(DEVICE), ["x"] * images, [()] * images)


def padded_loss(model: CaptionModel, batch: Batch) -> Tensor:
    """Compute the cross-entropy without leaving anything out: every shape is known beforehand."""
    inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
    if isinstance(model, Transformer):
        hidden = model(batch.features, inputs).hidden
    else:
        hidden = CaptionModel.unroll(model, model.encode(batch.features), inputs).hidden
    logits = model.head(hidden).float()  # (B, T, V)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)


def training_step(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of the trainer: forward, loss, backward, update."""
    optimizer = torch.optim.Adam(parameters, 1e-5, fused=True, capturable=DEVICE.type == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with half():
            value = loss()
        value.backward()
        optimizer.step()

    return step


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is built at the first steps must not be recorded
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def form_of(name: str, form: str, batch: Batch) -> Callable[[], None]:
    torch.manual_seed(0)
    if name in ("the post's loop", "an ordinary good loop"):
        loop = (PostLoop() if name == "the post's loop" else OrdinaryLoop()).to(DEVICE)
        features = batch.features.float()
        step = training_step([*loop.parameters()], lambda: loop(features, batch.tokens))
        return graphed(step) if form == "graphed" else step
    model = MODELS[name]().to(DEVICE).train()
    if form == "eager":
        objective = CrossEntropy()
        return training_step([*model.parameters()], lambda: objective(model, batch).loss)
    if form == "compiled":
        method = "unroll" if isinstance(model, Transformer) else "step"
        setattr(model, method, torch.compile(getattr(model, method)))
        return training_step([*model.parameters()], lambda: padded_loss(model, batch))
    objective, forward = CrossEntropy(), ReplayedForward(model)
    model.forward = forward  # type: ignore[method-assign]

    def loss() -> Tensor:
        forward.begin_step()
        return objective(model, batch).loss

    return training_step([*model.parameters()], loss)


def measure_training(clock: Clock, batch: Batch, repeats: int) -> None:
    num_words = int((batch.tokens[:, 1:] != PAD).sum())
    forms = [(name, "eager") for name in ("the post's loop", "an ordinary good loop", *MODELS)]
    if DEVICE.type == "cuda":
        forms += [(name, "graphed") for name in ("the post's loop", "an ordinary good loop", *MODELS)]
        forms += [(name, "compiled") for name in ("Transformer", *[n for n in MODELS if n != "Transformer"])]

    def measure(name: str, form: str) -> dict[str, float | str]:
        started = time.monotonic()
        step = form_of(name, form, batch)
        step()
        wait()
        start = time.monotonic() - started
        ms = milliseconds(step, repeats)
        same = "graphed" if form == "graphed" else "eager"
        reference = clock.rows.get(f"training step: the post's loop, {same}", {}).get("ms")
        ratio = float(reference) / ms if reference else 1.0 if name == "the post's loop" else "-"
        return {
            "ms": ms, "tokens/s": 1000 * num_words / ms, "busy": busy(step),
            "times the post's loop": ratio, "start s": start,
        }  # fmt: skip

    for name, form in forms:
        clock.measure(f"training step: {name}, {form}", lambda name=name, form=form: measure(name, form))


def measure_beam(clock: Clock, batch: Batch, repeats: int) -> None:
    @torch.no_grad()
    def work(model: CaptionModel) -> None:
        with half():
            beam_search(model, batch.features, None, max_words=WORDS, beam_size=5)

    for name, build in MODELS.items():
        model = build().to(DEVICE).eval()
        with torch.no_grad():
            [*model.output.modules()][-1].bias[END] = -1e4  # every caption has 20 words
        clock.measure(
            f"beam 5, {len(batch.tokens)} images, 20 words: {name}",
            lambda model=model: {
                "ms an image": milliseconds(lambda: work(model), repeats) / len(batch.tokens)
            },
        )


def measure_self_critical(clock: Clock, batch: Batch, repeats: int) -> None:
    words = [*SPECIAL_WORDS, *(f"word{n}" for n in range(VOCABULARY - len(SPECIAL_WORDS)))]
    ids = [f"image{n}" for n in range(len(batch.tokens) // 2)]
    references = {
        one: [" ".join(words[4 + (n * 7 + k) % 40] for k in range(10)) for n in range(5)] for one in ids
    }
    objective = SelfCritical(
        num_samples=SAMPLES, baseline="leave_one_out", max_words=WORDS, cross_entropy_share=0.0,
        normalisation="per_caption",
    )  # fmt: skip
    objective.prepare(references, Vocabulary(words))
    images = Batch(batch.features[: len(ids)], None, batch.tokens[: len(ids)], ids, [()] * len(ids))
    for name, build in MODELS.items():
        model = build().to(DEVICE)
        with torch.no_grad():
            [*model.output.modules()][-1].bias[END] = math.log(VOCABULARY / 10)  # captions of 10 words
        step = training_step([*model.parameters()], lambda model=model: objective(model, images).loss)
        clock.measure(
            f"self-critical step, {len(ids)} images × {SAMPLES}: {name}",
            lambda step=step: {"ms": milliseconds(step, repeats)},
        )


def measure_extraction(clock: Clock, images: int, repeats: int) -> None:
    from torchvision.models import inception_v3

    def measure(autocast: bool) -> dict[str, float | str]:
        network = inception_v3(weights=None, init_weights=False, aux_logits=False).eval().to(DEVICE)
        network = network.to(memory_format=torch.channels_last)
        pixels = torch.randint(0, 255, (images, 3, 299, 299), dtype=torch.uint8, device=DEVICE)

        @torch.no_grad()
        def work() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, autocast):
                network(pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last))

        return {"images/s": 1000 * images / milliseconds(work, repeats)}

    clock.measure("InceptionV3, ready tensors, float32", lambda: measure(False))
    clock.measure("InceptionV3, ready tensors, bfloat16", lambda: measure(True))


def machine() -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name()
        if DEVICE.type == "cuda"
        else "cpu: these figures say nothing of a GPU",
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=360, help="nothing is begun after this time")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--tiny", action="store_true", help="four images and one repeat, to see that it works"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    repeats, images = (1, 4) if options.tiny else (options.repeats, 64)
    clock = Clock(options.seconds)
    print(machine(), flush=True)
    batch = make_batch(images)
    measure_training(clock, batch, repeats)
    measure_beam(clock, batch, max(1, repeats // 4))
    measure_self_critical(clock, batch, max(1, repeats // 4))
    measure_extraction(clock, images, max(1, repeats // 4))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": clock.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
