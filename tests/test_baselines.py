"""Baselines without a caption model."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from captioning.data import Annotated, CaptionDataModule
from captioning.errors import InputError
from captioning.evaluation.baselines import global_features, most_frequent, nearest_neighbour
from captioning.metrics import score_all
from captioning.tokenizers import Words, tokenize
from tests.test_commands import call


def record(name: str, *captions: str) -> Annotated:
    return Annotated(name, Path(name), "train", captions)


TRAINING = [
    record("dog", "a dog runs", "A dog runs.", "an animal"),
    record("cat", "a cat sleeps", "the cat sleeps", "something else entirely"),
]
KNOWN = np.array([[1.0, 0.0], [0.0, 5.0]])


def test_the_most_frequent_caption_is_counted_in_words() -> None:
    assert most_frequent(TRAINING, KNOWN, np.zeros((2, 2)), tokenizer=Words()) == ["a dog runs"] * 2


def test_the_neighbour_is_near_by_angle_and_its_caption_the_agreed_one() -> None:
    wanted = np.array([[9.0, 1.0], [0.1, 0.2]])
    assert nearest_neighbour(TRAINING, KNOWN, wanted, tokenizer=Words(), neighbours=1) == [
        "a dog runs",
        "a cat sleeps",
    ]


def test_more_neighbours_outvote_the_nearest() -> None:
    training = [record("odd", "purple ideas"), *TRAINING[:1], record("dogs", "a dog runs")]
    known = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
    assert nearest_neighbour(training, known, known[:1], tokenizer=Words(), neighbours=1) == ["purple ideas"]
    assert nearest_neighbour(training, known, known[:1], tokenizer=Words(), neighbours=3) == ["a dog runs"]


@pytest.mark.parametrize("neighbours", [0, 3])
def test_the_number_of_neighbours_is_checked(neighbours: int) -> None:
    with pytest.raises(InputError, match=f"neighbours is {neighbours}; it must be 1 to 2"):
        nearest_neighbour(TRAINING, KNOWN, KNOWN, tokenizer=Words(), neighbours=neighbours)


def test_global_features_are_means(toy_data: CaptionDataModule) -> None:
    ids = [r.image_id for r in toy_data.split("val")]
    expected = toy_data.cache.read(ids).astype(np.float32).mean(1)
    found = global_features(toy_data.image_dataloader("val", without_captions=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["most_frequent", "nearest_neighbour"])
@pytest.mark.slow
def test_the_command_writes_a_result_file(
    method: str, toy_overrides: list[str], toy_data: CaptionDataModule, tmp_path: Path
) -> None:
    done = call("baseline", *toy_overrides, f"retrieval={method}", f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "captions.json").read_text())
    references = {r.image_id: r.captions for r in toy_data.split("val")}
    captions = {str(entry["image_id"]): entry["caption"] for entry in entries}
    assert captions.keys() == references.keys()
    if method == "most_frequent":  # for every image the caption that occurs most often in training
        counts = Counter(" ".join(tokenize(t)) for r in toy_data.split("train") for t in r.captions)
        [said] = {" ".join(tokenize(caption)) for caption in captions.values()}
        assert counts[said] == max(counts.values()) > 1
        return
    assert score_all(("bleu",), captions, references)["bleu_1"].corpus > 0.2
