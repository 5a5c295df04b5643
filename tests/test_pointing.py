"""The pointing score: attention on what a word names counts, and only where the place is known."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from captioning.data import InstancePlaces, ToyPlaces, draw_toy
from captioning.data.toy import draw_scene, read_scenes, render
from captioning.errors import InputError
from captioning.features.grid import cell_boxes
from captioning.metrics.pointing import Pointing, pool_pointing, score_pointing
from captioning.training import assemble
from tests.conftest import compose_config

QUARTERS = cell_boxes((2, 2), (2, 2))
UPPER_LEFT = np.array([[0.0, 0.0, 0.4, 0.4]])


def test_cells_lie_row_by_row_and_leave_out_what_the_network_did_not_see() -> None:
    assert QUARTERS.tolist()[1] == [0.5, 0.0, 1.0, 0.5]  # second cell: the upper right
    margin = (299 - 256) / 2 / 299
    cells = cell_boxes((299, 299), (8, 8))
    assert cells[0, :2] == pytest.approx(margin) and cells[-1, 2:] == pytest.approx(1 - margin)
    assert cell_boxes((4, 6), (2, 3)).shape == (6, 4)


def test_a_word_hits_where_the_centre_of_its_most_attended_region_lies_in_a_box() -> None:
    attention = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.5, 0.2, 0.2], [0.0, 0.0, 0.0, 1.0]])
    assert score_pointing(attention, QUARTERS, {0: UPPER_LEFT, 1: UPPER_LEFT}) == Pointing(1, 2)
    two = np.array([[0.0, 0.0, 0.4, 0.4], [0.6, 0.0, 0.9, 0.3]])  # either of two will do
    assert score_pointing(attention, QUARTERS, {1: two}) == Pointing(1, 1)
    assert score_pointing(attention, QUARTERS, {}) == Pointing(0, 0)


def test_captions_are_pooled_by_words() -> None:
    pooled = pool_pointing([Pointing(1, 1), Pointing(0, 3), Pointing(0, 0)])
    assert pooled == (1, 4) and pooled.score == 0.25
    assert math.isnan(pool_pointing([]).score)


def test_boxes_of_shapes_hold_what_is_painted_and_no_more() -> None:
    for seed in range(30):
        scene = draw_scene(random.Random(seed))
        top = scene.shapes[-1]  # nothing is painted over the last one
        without = render(scene._replace(shapes=scene.shapes[:-1]))
        painted = np.abs(np.asarray(render(scene), int) - np.asarray(without, int)).sum(-1) > 30
        rows, columns = np.nonzero(painted)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert [edge * 299 for edge in top.box()] == pytest.approx(edges, abs=2)


def test_a_colour_and_its_kind_name_the_shape_that_has_both(tmp_path: Path) -> None:
    draw_toy(tmp_path / "toy", {"val": 20}, seed=0)
    file = tmp_path / "toy" / "captions_val.json"
    places = ToyPlaces(file)
    scenes = {key: scene for key, scene in read_scenes(file).items() if len(scene.shapes) == 2}
    image_id, scene = next(iter(scenes.items()))
    first, second = scene.shapes
    words = f"there is a {first.colour} {first.kind} and a {second.colour} {second.kind}".split()
    found = places(image_id, words)
    assert list(found) == [3, 4, 7, 8]
    assert found[3].tolist() == found[4].tolist() == [list(first.box())]
    assert found[8].tolist() == [list(second.box())]
    other = next(kind for kind in ("circle", "square", "triangle") if kind != first.kind)
    assert places(image_id, ["a", first.colour, other]) == {}  # names nothing that is there


def instances(**changes: object) -> dict:
    content = {
        "images": [{"id": 7, "width": 200, "height": 100}],
        "categories": [
            {"id": 1, "name": "person"},
            {"id": 2, "name": "fire hydrant"},
            {"id": 3, "name": "bus"},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 50, 100]},
            {"image_id": 7, "category_id": 1, "bbox": [100, 50, 100, 50]},
            {"image_id": 7, "category_id": 2, "bbox": [20, 10, 20, 10]},
            {"image_id": 7, "category_id": 3, "bbox": [20, 10, 20, 10]},
        ],
    }
    return content | changes


def written(tmp_path: Path, content: object) -> InstancePlaces:
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return InstancePlaces(tmp_path / "instances.json")


def test_names_of_categories_and_their_plurals_name_all_their_instances(tmp_path: Path) -> None:
    places = written(tmp_path, instances())
    found = places("7", ["two", "people", "by", "buses", "and", "a", "fire", "hydrant", "of", "fire"])
    assert sorted(found) == [1, 3, 6, 7]
    assert found[1].tolist() == [[0, 0, 0.25, 1], [0.5, 0.5, 1, 1]]
    assert found[6].tolist() == found[7].tolist() == [[0.1, 0.1, 0.2, 0.2]]
    assert places("8", ["person"]) == {}  # an image without instances


def test_a_word_inside_the_name_of_another_category_does_not_name_its_own(tmp_path: Path) -> None:
    categories = [
        {"id": number, "name": name} for number, name in enumerate(("hot dog", "dog", "bear", "teddy bear"))
    ]
    boxes = [
        {"image_id": 7, "category_id": 0, "bbox": [0, 0, 100, 100]},
        {"image_id": 7, "category_id": 1, "bbox": [100, 0, 100, 100]},
        {"image_id": 7, "category_id": 2, "bbox": [0, 0, 200, 100]},
    ]
    places = written(tmp_path, instances(categories=categories, annotations=boxes))
    found = places("7", ["a", "dog", "eats", "two", "hot", "dogs", "by", "a", "teddy", "bear"])
    assert {position: box.tolist() for position, box in found.items()} == {
        1: [[0.5, 0, 1, 1]],
        4: [[0, 0, 0.5, 1]],
        5: [[0, 0, 0.5, 1]],
    }  # and the teddy bear, of which there is none, is no bear


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "COCO instances file.*needs a list 'categories'"),
        ({"images": [{"id": 7, "width": 0, "height": 1}]}, r"images\[0\].*width.*pixels above 0"),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [1, 2]}]},
            r"bbox = \[1, 2\].*four numbers",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, None]}]},
            r"annotations\[0\].*four numbers",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 10**400]}]},
            r"annotations\[0\].*four numbers",
        ),
        ({"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "image_id 9.*it lists"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        written(tmp_path, instances(**changes))("7", ["person"])


def test_training_logs_the_score_where_the_data_know_places(toy_overrides: list[str], tmp_path: Path) -> None:
    run = assemble(compose_config("train", *toy_overrides, f"output_dir={tmp_path}"))
    assert isinstance(run.data.places, ToyPlaces)
    nowhere, everywhere = np.array([[2.0, 2.0, 3.0, 3.0]]), np.array([[0.0, 0.0, 1.0, 1.0]])
    for box, score in ((everywhere, 1.0), (nowhere, 0.0)):
        run.data.places = lambda _, words, box=box: dict.fromkeys(range(len(words)), box)
        assert run.trainer.validate(run.module, run.data, verbose=False)[0]["val/attention_pointing"] == score
    run.data.places = None
    assert "val/attention_pointing" not in run.trainer.validate(run.module, run.data, verbose=False)[0]
