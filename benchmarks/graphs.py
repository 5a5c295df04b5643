"""Megabytes and milliseconds an image of ONNX graphs against PyTorch.

    captioning export checkpoint=captioning/bundled.captioner format=onnx output=float32
    captioning export checkpoint=captioning/bundled.captioner format=onnx precision=int8 output=int8
    python -m benchmarks.graphs float32 int8 --photographs dog.jpg …

Each system captions all photographs, one at a time, and is then closed: threads of ONNX Runtime that wait for
work keep the cores busy. Medians are printed, and how many captions are PyTorch's.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from captioning.features import RegionFeatures, to_image
from captioning.predictor import decoder, load

sys.path.append(str(Path(__file__).parents[1] / "notebooks"))
from onnx_captioner import Captioner  # noqa: E402 - the example is no part of the package


class PyTorch:
    """The methods of the example, by the captioner itself."""

    def __init__(self, checkpoint: str | None) -> None:
        loaded = load(checkpoint)
        self.extractor, self.vocabulary = loaded.extractor, loaded.vocabulary
        self.greedy: Callable[..., Any] = partial(decoder("greedy", self.vocabulary), loaded.model)
        self.beam: Callable[..., Any] = partial(decoder("beam", self.vocabulary), loaded.model)

    def features(self, path: str) -> Any:
        pixels = self.extractor.transform(to_image(path))[None]  # (1, 3, H, W)
        return RegionFeatures.of(self.extractor(pixels)).features.half()

    def text(self, decoded: Any) -> str:
        return self.vocabulary.decode(decoded.tokens[0].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--checkpoint", help="that was exported; by default the captioner in the package")
    parser.add_argument("--photographs", nargs="+", required=True)
    options = parser.parse_args()
    systems: dict[str, Callable[[], Any]] = {"PyTorch": partial(PyTorch, options.checkpoint)}
    systems |= {folder.name: partial(Captioner, folder) for folder in options.folders}
    times: dict[str, dict[str, list[float]]] = {
        name: {part: [] for part in ("features", "greedy", "beam")} for name in systems
    }
    found: dict[str, dict[str, list[str]]] = {name: {"greedy": [], "beam": []} for name in systems}
    with torch.no_grad():
        for name, build in systems.items():
            system = build()
            for path in options.photographs:
                started = time.perf_counter()
                features = system.features(path)
                times[name]["features"].append(1000 * (time.perf_counter() - started))
                for part, captions in found[name].items():
                    started = time.perf_counter()
                    decoded = getattr(system, part)(features)
                    times[name][part].append(1000 * (time.perf_counter() - started))
                    captions.append(system.text(decoded))
            del system
    report(options.folders, times, found)


def report(folders: list[Path], times: dict[str, Any], found: dict[str, Any]) -> None:
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6 for folder in folders
    }
    print(f"medians of {len(found['PyTorch']['beam'])} photographs, one at a time")
    print(f"{'':12s}{'MB':>8s}{'features':>10s}{'greedy':>10s}{'beam 5':>10s}   captions equal to PyTorch's")
    for name, parts in times.items():
        size = f"{sizes[name]:8.1f}" if name in sizes else " " * 8
        medians = "".join(f"{statistics.median(values):10.1f}" for values in parts.values())
        equal = ", ".join(
            f"{sum(a == b for a, b in zip(captions, found['PyTorch'][part], strict=True))} {part}"
            for part, captions in found[name].items()
        )
        print(f"{name:12s}{size}{medians}   {equal}")


if __name__ == "__main__":
    main()
