"""The toy scenes: drawn from a seed, described truly, checked."""

import random
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from captioning.data import Annotated, draw_toy, read_toy
from captioning.data.toy import (
    COLOURS,
    KINDS,
    Scene,
    Shape,
    describe,
    draw_scene,
    is_true,
    read_scenes,
    render,
)
from captioning.errors import InputError


def a_scene() -> Scene:
    shapes = (Shape("circle", "red", "", 100, 60, 40), Shape("square", "blue", "small", 120, 220, 28))
    return Scene(shapes, 100, (0, 0, 0), 0, 0)


@pytest.mark.parametrize(
    ("sentence", "verdict"),
    [
        ("a red circle above a small blue square", True),
        ("A small blue square below a red circle.", True),
        ("there is a red circle and a blue square", True),
        ("two shapes a blue square and a red circle", True),
        ("a red circle", True),
        ("a red circle left of a blue square", True),  # by 20 pixels
        ("a red circle below a blue square", False),
        ("a red square above a blue circle", False),
        ("a small red circle", False),
        ("a large blue square", False),
        ("three shapes a red circle and a blue square", False),
        ("a red circle and a red circle", False),
        ("a green circle", False),
        ("red circle a", False),
        ("", False),
    ],
)
def test_the_checker_knows_truth(sentence: str, verdict: bool) -> None:
    assert is_true(sentence, a_scene()) is verdict


def test_every_description_is_true_of_its_scene_and_rarely_of_another() -> None:
    generator = random.Random(0)
    scenes = [draw_scene(generator) for _ in range(300)]
    sentences = [describe(scene) for scene in scenes]
    assert all(len(set(five)) == 5 for five in sentences)
    assert all(is_true(s, scene) for five, scene in zip(sentences, scenes, strict=True) for s in five)
    elsewhere = [is_true(s, scene) for five, scene in zip(sentences, scenes[1:], strict=False) for s in five]
    assert sum(elsewhere) / len(elsewhere) < 0.15


def test_the_shape_that_is_named_first_can_be_seen() -> None:
    named = rf"({'|'.join(COLOURS)}) ({'|'.join(KINDS)})"
    for scene in (draw_scene(random.Random(seed)) for seed in range(50)):
        highest, *_, lowest = sorted([*scene.shapes, *scene.shapes], key=lambda shape: shape.y)
        for sentence in describe(scene):
            first = lowest if re.match("There is|(One|Two|Three) shape", sentence) else highest
            assert f"{first.colour} {first.kind}" == re.search(named, sentence)[0]


def test_shapes_are_where_the_scene_says() -> None:
    for scene in (draw_scene(random.Random(seed)) for seed in range(5)):
        top = scene.shapes[-1]  # nothing is painted over the last one
        assert render(scene).size == (299, 299)
        painted = render(scene).getpixel((round(top.x), round(top.y)))
        assert max(painted) - min(painted) > 40 or top.colour in ("black", "white")


def drawn(root: Path, scenes: dict[str, int], seed: int) -> list[Annotated]:
    draw_toy(root, scenes, seed)
    return read_toy(root, scenes, seed)


def test_the_same_seed_draws_the_same_set_and_only_once(tmp_path: Path) -> None:
    scenes = {"train": 3, "val": 2}
    one, other = drawn(tmp_path / "a", scenes, seed=1), drawn(tmp_path / "b", scenes, seed=1)
    assert [r.captions for r in one] == [r.captions for r in other]
    assert [r.path.read_bytes() for r in one] == [r.path.read_bytes() for r in other]
    time = one[0].path.stat().st_mtime_ns
    draw_toy(tmp_path / "a", scenes, seed=1)
    assert one[0].path.stat().st_mtime_ns == time
    assert [r.captions for r in drawn(tmp_path / "c", scenes, seed=2)] != [r.captions for r in one]


def test_reading_never_draws(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no toy set in .*captioning.extract data=toy"):
        read_toy(tmp_path / "a", {"train": 3}, seed=1)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_never_replaced(tmp_path: Path) -> None:
    draw_toy(tmp_path / "a", {"train": 3}, seed=1)
    for function in (draw_toy, read_toy):
        with pytest.raises(InputError, match=r"holds a toy set drawn with .* but needed is .*'seed': 2"):
            function(tmp_path / "a", {"train": 3}, seed=2)
    assert len(read_toy(tmp_path / "a", {"train": 3}, seed=1)) == 3
    (tmp_path / "a" / "made.json").write_text('{"scenes": ')
    with pytest.raises(InputError, match=r"made.json is not JSON \(line 1\)"):
        read_toy(tmp_path / "a", {"train": 3}, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds files but no toy set"):
        draw_toy(tmp_path / "mine", {"train": 3}, seed=1)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_processes_that_draw_the_same_set_at_once_agree(tmp_path: Path) -> None:
    # No multiprocessing.Pool: it ends its processes by a signal that a test before may have taught them to ignore.
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        for drawing in [pool.submit(draw_toy, tmp_path / "a", {"train": 4}, 1) for _ in range(3)]:
            drawing.result()
    assert len(read_toy(tmp_path / "a", {"train": 4}, seed=1)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_written_scenes_agree_with_their_captions(tmp_path: Path) -> None:
    records = drawn(tmp_path / "a", {"val": 5}, seed=1)
    scenes = read_scenes(tmp_path / "a" / "captions_val.json")
    assert all(is_true(caption, scenes[r.image_id]) for r in records for caption in r.captions)
    assert {shape.kind for scene in scenes.values() for shape in scene.shapes} <= set(KINDS)
