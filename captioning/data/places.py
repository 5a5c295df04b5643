"""Where the things that a caption names lie in its picture, for the pointing score of attention.

`Places` are called with an image's id and the words of a caption. They return, for the position of every word
that rightly names something, the boxes of all that it may mean: (n, 4) x1 y1 x2 y2 as fractions of the
picture's width and height.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from captioning.data.records import BOX, ID, NAME, SIDE, Records, read_lists
from captioning.data.toy import Scene, read_scenes

Places = Callable[[str, Sequence[str]], dict[int, np.ndarray]]

_PLURALS = {
    "person": "people",
    "mouse": "mice",
    "knife": "knives",
}  # others add s or es


class ToyPlaces:
    """Places of drawn shapes; a colour and the kind that follows it name the shape that has both.

    Args:
        annotations: a captions file that `draw_toy` wrote; it is read when it is first needed.
    """

    def __init__(self, annotations: str | Path) -> None:
        self.annotations = annotations

    @cached_property
    def _scenes(self) -> dict[str, Scene]:
        return read_scenes(self.annotations)

    def __call__(self, image_id: str, words: Sequence[str]) -> dict[int, np.ndarray]:
        places = {}
        for position, named in enumerate(pairwise(words)):
            shapes = self._scenes[image_id].shapes
            boxes = [shape.box() for shape in shapes if (shape.colour, shape.kind) == named]
            if boxes:
                places[position] = places[position + 1] = np.array(boxes)
        return places


class InstancePlaces:
    """Places of objects in COCO's `instances_*.json`; the name of a category, or its plural, names them.

    Args:
        annotations: the file; it is read when it is first needed.

    Raises:
        InputError: when it is first called: there is no such file, or it has another form.
    """

    def __init__(self, annotations: str | Path) -> None:
        self.annotations = annotations

    @cached_property
    def _content(self) -> tuple[dict[str, dict[str, list[tuple[float, ...]]]], dict[tuple[str, ...], str]]:
        """Boxes by image id and category, and the category that each run of words names."""
        records = Records(self.annotations, "a COCO instances file (instances_*.json)")
        content = read_lists(self.annotations, records, "images", "annotations", "categories")
        names, sizes = {}, {}
        for number, category in enumerate(content["categories"]):
            key, name = records.check(("categories[%d]", number), category, {"id": ID, "name": NAME})
            names[key] = name.lower()
        for number, image in enumerate(content["images"]):
            fields = {"id": ID, "width": SIDE, "height": SIDE}
            key, width, height = records.check(("images[%d]", number), image, fields)
            sizes[key] = (width, height, width, height)
        boxes: dict[str, dict[str, list[tuple[float, ...]]]] = {}
        for number, instance in enumerate(content["annotations"]):
            place = "annotations[%d]", number
            fields = {"image_id": ID, "category_id": ID, "bbox": BOX}
            image_id, category, box = records.check(place, instance, fields)
            if image_id not in sizes or category not in names:
                found = f"image_id {image_id} and category_id {category}"
                raise records.error(place, found, "ids of an image and a category that it lists")
            fractions = tuple(edge / side for edge, side in zip(box, sizes[image_id], strict=True))
            boxes.setdefault(image_id, {}).setdefault(names[category], []).append(fractions)
        return boxes, {tuple(form.split()): name for name in names.values() for form in _forms(name)}

    def __call__(self, image_id: str, words: Sequence[str]) -> dict[int, np.ndarray]:
        all_boxes, forms = self._content
        boxes = all_boxes.get(image_id, {})
        places: dict[int, np.ndarray] = {}
        taken: set[int] = set()
        # Longest first, also where the picture has none: the dog of a hot dog is no dog.
        for named in sorted(forms, key=len, reverse=True):
            for start in range(len(words) - len(named) + 1):
                span = range(start, start + len(named))
                if tuple(words[start : span.stop]) == named and taken.isdisjoint(span):
                    taken.update(span)
                    if forms[named] in boxes:
                        places |= dict.fromkeys(span, np.array(boxes[forms[named]]))
        return places


def _forms(name: str) -> tuple[str, ...]:
    return name, _PLURALS.get(name, f"{name}s"), f"{name}es"
