"""The toy data set: drawn scenes of coloured shapes, with sentences whose truth a checker can decide.

It needs no download, so tests, `make demo` and the bare `python -m captioning.train` use it. One to three
shapes of distinct colours lie on a softly shaded canvas; sizes, colours, positions, overlap and
background vary, all drawn from a seed. Each scene has five sentences. The set is written as JPEGs and COCO
captions files; only `draw_toy` writes, `read_toy` reads.
"""

import json
import logging
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from captioning.data.annotations import read_coco
from captioning.data.records import Annotated
from captioning.data.texts import parse_json, read_text
from captioning.errors import InputError
from captioning.files import atomic_write

log = logging.getLogger(__name__)

CANVAS = 299  # pixels a side, InceptionV3's input
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (31, 90, 200),
    "yellow": (245, 205, 40),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
}
KINDS = ("circle", "square", "triangle")
RADII = {"small": (34, 38), "": (48, 53), "large": (66, 74)}  # pixels; the gaps keep sizes unmistakable
RELATIONS: dict[str, tuple[int, int]] = {  # (x, y) direction from the second shape to the first
    "above": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "right of": (1, 0),
}
_SQUARE = 0.89  # half a square's side in radii: the same area as the circle's
_TRIANGLE, _LOWER = (
    1.2,
    0.15,
)  # radius of the triangle's corners, and how far its centre is moved down, in radii
_EXTENT = {  # how far a shape reaches from its centre to the left, up, right and down, in radii
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (_SQUARE,) * 4,
    "triangle": (
        _TRIANGLE * math.cos(math.pi / 6),
        _TRIANGLE - _LOWER,
        _TRIANGLE * math.cos(math.pi / 6),
        _TRIANGLE / 2 + _LOWER,
    ),
}
MARGIN = 12  # pixels by which centres must differ for a relation to be true
_MADE = "made.json"  # written last: how the set was drawn
_VERSION = 2  # of the scenes and sentences


class Shape(NamedTuple):
    """One shape: size is small, large or empty (medium); centre and radius in pixels."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    def noun(self, sized: bool = True) -> str:
        """Name the shape with its article."""
        return " ".join(filter(None, ("a", self.size if sized else "", self.colour, self.kind)))

    def box(self) -> tuple[float, float, float, float]:
        """Return the smallest box around the shape: x1 y1 x2 y2 as fractions of the picture."""
        left, up, right, down = _EXTENT[self.kind]
        x, y, radius = self.x / CANVAS, self.y / CANVAS, self.radius / CANVAS
        return x - left * radius, y - up * radius, x + right * radius, y + down * radius


class Scene(NamedTuple):
    """Shapes in drawing order, and the canvas: its mean shade and gradients, in grey levels from 0 to 255.

    The canvas gets darker downwards and colder to the right, more or less so in each scene. Like daylight in
    photographs this shows above from below; convolutions alone do not know their position.
    """

    shapes: tuple[Shape, ...]
    shade: int
    tint: tuple[int, ...]
    height_slope: int
    width_slope: int


def draw_scene(generator: random.Random) -> Scene:
    """Draw one scene at random."""
    count = generator.choice((1, 1, 2, 2, 3))
    colours, kinds = generator.sample(list(COLOURS), count), [generator.choice(KINDS) for _ in range(count)]
    shapes: list[Shape] = []
    while len(shapes) < count:
        size = generator.choice(list(RADII))
        radius = generator.uniform(*RADII[size])
        x, y = (generator.uniform(radius + 4, CANVAS - radius - 4) for _ in range(2))
        # Overlap is allowed up to a tenth, so that every shape can be recognised.
        if all(math.dist((x, y), (s.x, s.y)) > 0.9 * (radius + s.radius) for s in shapes):
            shapes.append(Shape(kinds[len(shapes)], colours[len(shapes)], size, x, y, radius))
        elif generator.random() < 0.02:
            shapes.clear()  # no room may be left: start again
    return Scene(
        tuple(shapes),
        shade=generator.randint(135, 160),
        tint=tuple(generator.randint(-8, 8) for _ in range(3)),
        height_slope=generator.randint(45, 60),
        width_slope=generator.randint(30, 40),
    )


def render(scene: Scene) -> Image.Image:
    """Paint a scene as an RGB picture of 299 × 299 pixels."""
    scale = 2  # painted at twice the size, so that edges come out smooth
    side = CANVAS * scale
    image = _canvas(scene, side)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        x, y, radius = shape.x * scale, shape.y * scale, shape.radius * scale
        paint = COLOURS[shape.colour]
        if shape.kind == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), paint)
        elif shape.kind == "square":
            half = radius * _SQUARE
            pen.rectangle((x - half, y - half, x + half, y + half), paint)
        else:
            pen.regular_polygon((x, y + radius * _LOWER, radius * _TRIANGLE), 3, fill=paint)
    return image.reduce(scale)


def _canvas(scene: Scene, side: int) -> Image.Image:
    down, right = np.mgrid[1:-1:4j, 1:-1:4j]  # from 1 at the top or left to -1; 4 × 4 points, then enlarged
    light = scene.shade + scene.height_slope * down
    warmth = scene.width_slope * right
    channels = [light + sign * warmth + tint for sign, tint in zip((1, 0, -1), scene.tint, strict=True)]
    small = Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BILINEAR)


def relation(first: Shape, second: Shape) -> str:
    """State where the first shape lies from the second, along the axis on which they are further apart."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "right of" if dx > 0 else "left of"
    return "below" if dy > 0 else "above"


def describe(scene: Scene) -> list[str]:
    """Write five true sentences about a scene.

    Which shape comes first can be seen: the highest in most sentences, the lowest after "There is" and a
    number. If chance decided it, no attention could look at the first shape before its name has begun.
    """
    shapes = sorted(scene.shapes, key=lambda shape: shape.y)
    if len(shapes) == 1:
        shape = shapes[0]
        return [
            f"{shape.noun()}.",
            f"There is {shape.noun(False)}.",
            f"A picture of {shape.noun()}.",
            f"{shape.noun(False)} on a plain background.",
            f"One shape, {shape.noun()}.",
        ]
    if len(shapes) == 2:
        a, b = shapes
        return [
            f"{a.noun()} {relation(a, b)} {b.noun()}.",
            f"A picture of {a.noun(False)} {relation(a, b)} {b.noun(False)}.",
            f"{a.noun()} and {b.noun(False)}.",
            f"There is {b.noun(False)} {relation(b, a)} {a.noun()}.",
            f"Two shapes, {b.noun(False)} and {a.noun(False)}.",
        ]
    a, b, c = shapes
    return [
        f"{a.noun()}, {b.noun()} and {c.noun(False)}.",
        f"Three shapes, {c.noun(False)}, {b.noun(False)} and {a.noun(False)}.",
        f"There is {c.noun(False)}, {b.noun(False)} and {a.noun(False)}.",
        f"A picture of {a.noun(False)}, {b.noun()} and {c.noun()}.",
        f"{a.noun()} {relation(a, b)} {b.noun(False)} and {c.noun(False)}.",
    ]


_NOUN = rf"a (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(KINDS)})"
_JOINT = rf"(?: (and|{'|'.join(RELATIONS)}))? "
_OPENING = r"(?:there is |a picture of |(one|two|three) shapes? )?"
_SENTENCE = re.compile(
    rf"{_OPENING}{_NOUN}(?:{_JOINT}{_NOUN})?(?:{_JOINT}{_NOUN})?(?: on a plain background)?"
)


def is_true(sentence: str, scene: Scene) -> bool:
    """Check that a sentence is well formed and true of the scene.

    Every named shape must exist with the named size and be named once; a stated relation must hold by a
    margin of 12 pixels; a stated number must be the number of shapes.
    """
    match = _SENTENCE.fullmatch(" ".join(re.sub(r"[^a-z ]", " ", sentence.lower()).split()))
    if match is None:
        return False
    number, *groups = match.groups()
    if number and len(scene.shapes) != ("one", "two", "three").index(number) + 1:
        return False
    # groups: size colour kind, then twice joint size colour kind
    wanted = [groups[start : start + 3] for start in (0, 4, 8) if groups[start + 1]]
    named = [shape for words in wanted for shape in _find(scene, *words)]
    if len(named) < len(wanted) or len(set(named)) < len(named):
        return False
    joints = groups[3::4]
    return all(_holds(joint, *named[i : i + 2]) for i, joint in enumerate(joints) if joint in RELATIONS)


def named_shapes(sentence: str) -> int:
    """Count the shapes that a sentence names."""
    return len(re.findall(rf"\b({'|'.join(KINDS)})\b", sentence.lower()))


def _find(scene: Scene, size: str | None, colour: str, kind: str) -> list[Shape]:
    return [s for s in scene.shapes if (s.colour, s.kind) == (colour, kind) and size in (None, s.size)]


def _holds(name: str, first: Shape, second: Shape) -> bool:
    dx, dy = RELATIONS[name]
    return (first.x - second.x) * dx + (first.y - second.y) * dy > MARGIN


def draw_toy(root: str | Path, scenes: Mapping[str, int], seed: int) -> None:
    """Draw the data set unless it exists: `images/`, and `captions_<split>.json` with the scenes' parameters.

    Args:
        root: a new folder, or an empty one; it appears under this name when the whole set is drawn.
        scenes: number of scenes of each split.
        seed: each split is drawn with a seed made of this one and the split's name.

    Raises:
        InputError: the folder holds scenes of other numbers or another seed, or other files.
    """
    root = Path(root)
    if _is_drawn(root, scenes, seed):
        return
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root} holds files but no toy set; give data.reader.root=<new folder>")
    log.info("drawing %d toy scenes into %s", sum(scenes.values()), root)
    try:
        with atomic_write(root) as folder:
            _draw(folder, scenes, seed)
    except OSError:
        # A folder with files cannot be replaced: another process may have drawn the same set meanwhile.
        if not _is_drawn(root, scenes, seed):
            raise


def _draw(folder: Path, scenes: Mapping[str, int], seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    for number, (split, count) in enumerate(scenes.items()):
        generator = random.Random(f"{seed} {split}")
        lists = _draw_split(folder / "images", split, count, 1_000_000 * number, generator)
        content = {"info": {"seed": seed}, **lists}
        (folder / f"captions_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    made = {"version": _VERSION, "scenes": dict(scenes), "seed": seed}
    (folder / _MADE).write_text(json.dumps(made), encoding="utf-8")


def _draw_split(
    folder: Path, split: str, count: int, first_id: int, generator: random.Random
) -> dict[str, list]:
    """Draw the pictures of one split and return the lists of a COCO captions file."""
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        scene, name = draw_scene(generator), f"{split}_{index:05d}.jpg"
        render(scene).save(folder / name, quality=92)
        image_id = first_id + index
        images.append({"id": image_id, "file_name": name, "scene": scene})
        for number, sentence in enumerate(describe(scene)):
            caption = sentence[0].upper() + sentence[1:]
            annotations.append({"id": image_id * 5 + number, "image_id": image_id, "caption": caption})
    return {"images": images, "annotations": annotations}


def read_toy(root: str | Path, scenes: Mapping[str, int], seed: int) -> list[Annotated]:
    """Read a data set that `draw_toy` drew.

    Raises:
        InputError: the set is not drawn, or with other numbers of scenes or another seed.
    """
    root = Path(root)
    if not _is_drawn(root, scenes, seed):
        raise InputError(
            f"there is no toy set in {root}; draw it with python -m captioning.extract data=toy features=toy "
            "or train with prepare=true"
        )
    return [
        record
        for split in scenes
        for record in read_coco(root / f"captions_{split}.json", root / "images", split)
    ]


def _is_drawn(root: Path, scenes: Mapping[str, int], seed: int) -> bool:
    made, needed = root / _MADE, {"version": _VERSION, "scenes": dict(scenes), "seed": seed}
    if not made.is_file():
        return False
    if (found := parse_json(read_text(made), made)) != needed:
        raise InputError(
            f"{root} holds a toy set drawn with {found}, but needed is {needed}; delete it and its feature "
            "file, or draw another with data.reader.root=<new folder> and features.path=<new file>"
        )
    return True


def read_scenes(annotations: str | Path) -> dict[str, Scene]:
    """Read the scenes of a toy annotation file by image id, for the checker."""
    images = parse_json(read_text(annotations), annotations)["images"]
    return {
        str(image["id"]): Scene(tuple(Shape(*shape) for shape in image["scene"][0]), *image["scene"][1:])
        for image in images
    }
