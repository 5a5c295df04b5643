"""Time of the metrics against the COCO caption toolkit's own scorers, in one run, on the same captions.

    python benchmarks/metrics.py --captions PATH/captions_val2017.json

Each image's first caption is scored against its others (5,000 images, BLEU, ROUGE-L, CIDEr-D). Both sides do
each step on the same captions in turn; the medians of the repeats are compared. The toolkit's steps need the
extra `metrics`, its tokenizer also Java; where they are missing, only our times are printed. Without a path
the captions are random words.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from captioning.metrics import CiderD, DocumentFrequencies, ptb_tokenize
from captioning.metrics.bleu import score_bleu
from captioning.metrics.cider import score_cider_d
from captioning.metrics.rouge import score_rouge_l

Captions = dict[int, list[str]]
Steps = dict[str, Callable[[], object]]


def read(path: Path) -> Captions:
    captions: Captions = {}
    for annotation in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def random_captions(num_images: int) -> Captions:
    generator = random.Random(0)
    lexicon = [f"{a}{b}{c}" for a in "bdgklmprst" for b in "aeiou" for c in "lmnrst"]
    weights = [1 / rank for rank in range(1, len(lexicon) + 1)]
    return {
        image: [
            " ".join(generator.choices(lexicon, weights, k=generator.randint(8, 14))) + " ." for _ in range(5)
        ]
        for image in range(num_images)
    }


def our_steps(captions: Captions) -> Steps:
    tokens = {image: [ptb_tokenize(text) for text in texts] for image, texts in captions.items()}
    candidates = [sentences[0] for sentences in tokens.values()]
    references = [sentences[1:] for sentences in tokens.values()]
    reward = CiderD(tokens, DocumentFrequencies.of(tokens.values(), source="corpus"))
    batch = [(image, sentence) for image, sentences in list(tokens.items())[:64] for sentence in sentences]
    return {
        "tokens": lambda: [ptb_tokenize(text) for texts in captions.values() for text in texts],
        "BLEU": lambda: score_bleu(candidates, references),
        "ROUGE-L": lambda: score_rouge_l(candidates, references),
        "CIDEr-D": lambda: score_cider_d(candidates, references),
        f"reward of {len(batch)} candidates": lambda: reward.scores(batch),
    }


def toolkit_steps(captions: Captions) -> Steps:
    if find_spec("pycocoevalcap") is None:
        return {}
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    joined = {image: [" ".join(ptb_tokenize(text)) for text in texts] for image, texts in captions.items()}
    candidates = {image: texts[:1] for image, texts in joined.items()}
    references = {image: texts[1:] for image, texts in joined.items()}
    raw = {image: [{"caption": text} for text in texts] for image, texts in captions.items()}
    steps: Steps = {
        "BLEU": lambda: Bleu(4).compute_score(references, candidates, verbose=0),
        "ROUGE-L": lambda: Rouge().compute_score(references, candidates),
        "CIDEr-D": lambda: Cider().compute_score(references, candidates),
    }
    if shutil.which("java"):
        steps["tokens"] = lambda: PTBTokenizer().tokenize(raw)
    return steps


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        step()
    return time.perf_counter() - start


def print_table(ours: dict[str, float], theirs: dict[str, float]) -> None:
    print(f"{'step':28}{'ours (s)':>10}{'toolkit (s)':>13}{'ratio':>8}")
    for name, time_ in ours.items():
        other = theirs.get(name)
        columns = f"{other:13.3f}{time_ / other:8.2f}" if other else f"{'-':>13}{'-':>8}"
        print(f"{name:28}{time_:10.4f}{columns}")
    scorers = [name for name in ("BLEU", "ROUGE-L", "CIDEr-D") if name in theirs]
    if scorers:
        mine, other = sum(ours[name] for name in ("tokens", *scorers)), sum(theirs[name] for name in scorers)
        print(
            f"ours with tokens / toolkit's scorers alone: {mine:.2f} s / {other:.2f} s = {mine / other:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, help="a COCO captions file; random words without it")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    captions = read(options.captions) if options.captions else random_captions(options.images)
    captions = dict(list(captions.items())[: options.images])
    ours, theirs = our_steps(captions), toolkit_steps(captions)
    times: dict[str, dict[str, list[float]]] = {"ours": {}, "theirs": {}}
    for _ in range(options.repeats):
        for name in ours:
            for side, steps in (("ours", ours), ("theirs", theirs)):
                if name in steps:
                    times[side].setdefault(name, []).append(seconds(steps[name]))
    medians = {
        side: {name: statistics.median(t) for name, t in found.items()} for side, found in times.items()
    }
    print(f"{len(captions)} images, medians of {options.repeats} interleaved repeats, wall time")
    print_table(medians["ours"], medians["theirs"])


if __name__ == "__main__":
    main()
