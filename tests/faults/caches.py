"""Flipped bits, overwritten blocks and truncations of feature caches: noticed at the first reading, and mended."""

import base64
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.features import BottomUpFiles, FeatureCache, FrozenExtractor, extract, verify
from captioning.files import partial_path
from tests.faults.children import in_children
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Tally

NUM_IMAGES, NUM_REGIONS = 12, 4


class Pools(FrozenExtractor):
    """Mean colours of a 2 × 2 grid: an extractor that costs nothing."""

    def __init__(self, *, weights: str = "none", image_size: tuple[int, int] = (8, 8)) -> None:
        super().__init__(weights=weights, image_size=image_size)
        self.set_normalisation([0.5] * 3, [0.5] * 3)
        self.network = nn.AdaptiveAvgPool2d(2)
        self.num_regions, self.feature_dim, self.grid = 4, 3, (2, 2)
        self.provenance["grid"] = [2, 2]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images)).permute(0, 2, 3, 1)  # (B, 2, 2, 3)


def draw_images(folder: Path) -> dict[str, Path]:
    """Draw the pictures of a cache."""
    generator, images = np.random.default_rng(0), {}
    folder.mkdir(exist_ok=True)
    for number in range(NUM_IMAGES):
        path = folder / f"{number}.png"
        pixels = generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        if not path.exists():
            Image.fromarray(pixels).save(path)
        images[str(number)] = path
    return images


def write_tsv(path: Path) -> Path:
    """Write published features of a varying number of boxes."""
    generator = np.random.default_rng(1)
    with open(path, "wb") as file:
        for number in range(NUM_IMAGES):
            count = 1 + number % NUM_REGIONS
            boxes = generator.random((count, 4)).astype("<f4") * 8
            features = generator.standard_normal((count, 5)).astype("<f4")
            encoded = (base64.b64encode(values.tobytes()) for values in (boxes, features))
            file.write(b"\t".join([b"%d" % number, b"8", b"8", b"%d" % count, *encoded]) + b"\n")
    return path


class Kind:
    """One kind of cache: how it is made, its bytes, and what is read from it.

    Args:
        name: of the kind.
        extractor: makes it.
        folder: for the pictures and for the sound file.
        store: of its rows.
    """

    def __init__(self, name: str, extractor: Any, folder: Path, store: str = "float16") -> None:
        self.name, self.extractor, self.store = name, extractor, store
        self.images = draw_images(folder / "images")
        path = folder / f"{name}.h5"
        self.make(path)
        self.content, self.values = path.read_bytes(), read_all(path)
        self.half = self._half(folder / f"{name}-half.h5")

    def make(self, path: Path, **options: Any) -> None:
        """Extract, or complete, or repair."""
        options |= {"batch_size": 2, "num_workers": 0, "autocast": False, "store": self.store}
        extract(self.extractor, self.images, path, **options)

    def _half(self, path: Path) -> bytes:
        """Return the bytes of a partial file whose writer was stopped half-way."""

        def stop(batches: Any, total: int) -> Iterator[Any]:
            for number, batch in enumerate(batches):
                if number == 3:
                    raise KeyboardInterrupt
                yield batch

        try:
            self.make(path, progress=stop)
        except KeyboardInterrupt:
            return partial_path(path).read_bytes()
        raise AssertionError("the extraction was not stopped")


def read_all(path: Path) -> dict[str, Any]:
    """Read everything that training and drawing read from a cache."""
    cache = FeatureCache(path)
    ids = cache.image_ids
    values: dict[str, Any] = {
        "ids": ids, "shape": tuple(cache.shape), "grid": cache.grid, "unreadable": cache.unreadable,
        "provenance": cache.provenance, "varies": cache.varies_in_count,
    }  # fmt: skip
    for image_id in ids:
        values[f"features {image_id}"] = cache.read([image_id]).tobytes()
        values[f"count {image_id}"] = int(cache.counts([image_id])[0])
        if cache.has_boxes:
            values[f"boxes {image_id}"] = cache.boxes(image_id).tobytes()
            values[f"scores {image_id}"] = cache.scores(image_id).tobytes()
    return values


def flip(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 3))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def overwrite(content: bytes, generator: random.Random) -> bytes:
    """Lose a sector, or find another file's there."""
    start, length = generator.randrange(len(content)), generator.choice((8, 64, 512, 4096))
    block = generator.choice((bytes(length), generator.randbytes(length), b"\xff" * length))
    return content[:start] + block[: len(content) - start] + content[start + length :]


def truncate(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


MUTATIONS = {"flipped bits": flip, "overwritten blocks": overwrite, "truncations": truncate}


def run(settings: Settings) -> Iterator[Tally]:
    """Damage finished and half-finished caches."""
    folder = settings.room("caches")
    tsv = write_tsv(folder / "boxes.tsv")
    boxes = BottomUpFiles(files=[str(tsv)], num_regions=NUM_REGIONS, feature_dim=5)
    kinds = [
        Kind("grid", Pools(), folder),
        Kind("boxes", boxes, folder),
        Kind("int8", Pools(), folder, "int8"),
    ]
    for fault, number in (("flipped bits", 1000), ("overwritten blocks", 300), ("truncations", 200)):

        def check(case: int, fault: str = fault) -> tuple[Outcome, str]:
            kind, generator = kinds[case % 3], settings.generator(fault, case)
            path = folder / f"{kind.name}-damaged.h5"
            for old in (path, partial_path(path)):
                old.unlink(missing_ok=True)
            if case % 8 < 6:
                path.write_bytes(MUTATIONS[fault](kind.content, generator))
                return judge(kind, path)
            partial_path(path).write_bytes(MUTATIONS[fault](kind.half, generator))
            return judge_partial(kind, path)

        def describe(case: int) -> str:
            return f"{case} {kinds[case % 3].name}{', partial' if case % 8 >= 6 else ''}"

        cases = settings.cases(number)
        yield Tally(f"cache: {fault}").take(in_children(cases, check, name=describe, fresh=True))


def judge(kind: Kind, path: Path) -> tuple[Outcome, str]:
    """Read a damaged file; what is reported must also be found by `verify`, and mended by what is advised."""
    try:
        values = read_all(path)
    except InputError as error:
        message = str(error)
    else:
        return _compare(kind.values, values)
    try:
        findings = verify(path)
    except InputError:
        pass
    else:
        if not (findings.corrupt or findings.to_do or findings.unreadable):
            return Outcome.LOST, f"verify finds nothing, reading says: {message}"
    if "repair" in message:
        kind.make(path, repair=True)
    elif "delete" in message:
        path.unlink()
        kind.make(path)
    else:
        return Outcome.LOST, f"no remedy is named: {message}"
    outcome, difference = _compare(kind.values, read_all(path))
    if outcome == Outcome.SURVIVED:
        return Outcome.REPORTED, message
    return outcome, f"after the remedy: {difference} ({message})"


def judge_partial(kind: Kind, path: Path) -> tuple[Outcome, str]:
    """Complete a damaged half of a file, then read it."""
    try:
        kind.make(path)
    except InputError as error:
        if "delete" not in str(error) and "repair" not in str(error):
            return Outcome.LOST, f"no remedy is named: {error}"
        return Outcome.REPORTED, str(error)
    return judge(kind, path)


def _compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Outcome, str]:
    for key in {**expected, **found}:
        if expected.get(key) != found.get(key):
            return Outcome.LOST, f"{key.rstrip(' 0123456789')} differ, and nothing says so"
    return Outcome.SURVIVED, ""
