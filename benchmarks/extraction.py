"""Images a second of the whole extraction, photographs to cache, over those of its bare network.

    python -m benchmarks.extraction [--pictures FOLDER] [--images 256] [--repeats 3] [--workers 1 2]
    python -m benchmarks.extraction --memory 10000

Random weights, the sizes and options of conf/features. The network gets normalised batches; the extraction is
that of `captioning extract`: reading, resizing, network, writing, and the start of its processes. Repeats are
interleaved, medians are printed; then what each part takes alone, in one process. Without a folder the
pictures are drawn: JPEG files of 640 × 480 pixels. `--memory` extracts that many small pictures and prints
the memory of all processes on the way.
"""

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from captioning.features import CacheWriter, FrozenExtractor, RegionFeatures, extract, find_images, read_image
from captioning.features.batches import FeatureBatch
from captioning.files import CONF

SIZES = {"drawn": (640, 480), "small": (96, 96)}


def build(name: str) -> tuple[FrozenExtractor, dict[str, Any]]:
    """Build the extractor of `features=name` with random weights; also return the options of `extract`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        features = compose("extract", [f"features={name}", "output_dir=none"]).features
    return instantiate(features.extractor, weights="random"), {**features.run}


def draw(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Draw pictures that are as large in bytes as photographs of their size."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).resize(size)
        pixels = np.asarray(coarse) + generator.normal(0, 8, (size[1], size[0], 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
    return sorted(folder.iterdir())


def bare_network(extractor: FrozenExtractor, files: list[Path], run: dict[str, Any]) -> Callable[[], Any]:
    """Return a call that runs the network alone over all files, decoded and normalised beforehand."""
    network = getattr(extractor.network, "forward_features", extractor.network)
    pixels = torch.stack([extractor.transform(read_image(file)) for file in files[: run["batch_size"]]])
    ready = extractor.normalise(pixels)
    sizes = [len(part) for part in torch.arange(len(files)).split(len(ready))]

    @torch.no_grad()
    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, run["autocast"]):
            for size in sizes:
                network(ready[:size])

    return work


def parts(extractor: FrozenExtractor, files: list[Path], run: dict[str, Any], folder: Path) -> Iterator[str]:
    """Time each part by itself, on one batch: lines to print."""
    files = files[: run["batch_size"]]
    path = folder / "parts.h5"
    seconds: dict[str, list[float]] = {}
    shape, ids = (extractor.num_regions, extractor.feature_dim), [str(number) for number in range(len(files))]
    with CacheWriter(path, ids, shape, {}) as writer, torch.no_grad():
        for repeat in range(4):
            times = [time.perf_counter()]
            images = [read_image(file) for file in files]
            times.append(time.perf_counter())
            pixels = torch.stack([extractor.transform(image) for image in images])
            times.append(time.perf_counter())
            with torch.autocast("cpu", torch.bfloat16, run["autocast"]):
                output = extractor(pixels)
            times.append(time.perf_counter())
            for row, content in enumerate(RegionFeatures.of(output).rows()):
                writer.write(row, content)
            writer.flush()
            times.append(time.perf_counter())
            spent = [(end - start) / len(files) for start, end in itertools.pairwise(times)]
            if repeat:  # the first round warms up
                for name, one in zip(("decode", "transform", "network", "write"), spent, strict=True):
                    seconds.setdefault(name, []).append(one)
        writer.finish()
    path.unlink()
    for name, values in seconds.items():
        yield f"    {name:12s}{1000 * statistics.median(values):8.2f} ms an image"


def compare(name: str, files: list[Path], workers: list[int], repeats: int, folder: Path) -> None:
    extractor, run = build(name)
    images = {str(number): file for number, file in enumerate(files)}

    def whole(num_workers: int) -> None:
        path = folder / f"{name}.h5"
        report = extract(extractor, images, path, **{**run, "num_workers": num_workers})
        assert report.done_now == len(files), report
        path.unlink()

    network = bare_network(extractor, files, run)
    programs = {"bare network": network}
    for number in workers:
        programs[f"extraction, {number} loader processes"] = lambda number=number: whole(number)
    network()
    seconds: dict[str, list[float]] = {label: [] for label in programs}
    processor: dict[str, list[float]] = {label: [] for label in programs}
    for _ in range(repeats):
        for label, program in programs.items():
            before, started = processor_seconds(), time.perf_counter()
            program()
            seconds[label].append(time.perf_counter() - started)
            processor[label].append(processor_seconds() - before)
    print(f"{name}, {'bfloat16' if run['autocast'] else 'float32'}, {len(files)} pictures")
    for label, found in seconds.items():
        bare = zip(seconds["bare network"], found, strict=True)
        print(
            f"    {label:34s}{len(files) / statistics.median(found):8.1f} images/s"
            f"{statistics.median(one / other for one, other in bare):8.3f}"
            f"{1000 * statistics.median(processor[label]) / len(files):10.1f} ms of processor time an image"
        )
    print(*parts(extractor, files, run, folder), sep="\n", flush=True)


def processor_seconds() -> float:
    """Return the processor time of this process and of the loader processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def memory(count: int, folder: Path) -> None:
    """Extract `count` images and print the memory of this process and its loader processes on the way."""
    extractor, run = build("toy")
    files = draw(folder / "pictures", 64, SIZES["small"])
    images = {str(number): files[number % len(files)] for number in range(count)}

    def watch(batches: Iterable[FeatureBatch], total: int) -> Iterator[FeatureBatch]:
        done, marks = 0, [count * part // 10 for part in (1, 2, 5, 8, 10)]
        for batch in batches:
            yield batch
            done += len(batch.rows)
            while marks and done >= marks[0]:
                here, loaders = _resident("self"), [_resident(str(child.pid)) for child in active_children()]
                print(f"{marks.pop(0):8d} images: {here:7.1f} MB, loader processes {loaders} MB", flush=True)

    extract(extractor, images, folder / "memory.h5", **{**run, "progress": watch})


def _resident(process: str) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * 4096 / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="a folder of photographs; drawn ones without it")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbones", nargs="+", default=["inception_v3", "efficientnet_lite2"])
    parser.add_argument("--memory", type=int, metavar="COUNT", help="only print the memory over COUNT images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        if options.memory:
            memory(options.memory, folder)
            return
        if options.pictures:
            found = find_images([str(options.pictures)]).paths
        else:
            found = draw(folder / "pictures", min(options.images, 64), SIZES["drawn"])
        files = list(itertools.islice(itertools.cycle(found), options.images))
        for backbone in options.backbones:
            compare(backbone, files, options.workers, options.repeats, folder)


if __name__ == "__main__":
    main()
