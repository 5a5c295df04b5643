"""Sentences without pictures beside captions."""

import gzip
from pathlib import Path

import pytest
import torch

from captioning.errors import InputError
from captioning.objectives import CrossEntropy, WithText
from captioning.vocabulary import SPECIAL_WORDS, Vocabulary
from tests.conftest import DIM, batch_of, build

WORDS = [*SPECIAL_WORDS, "a", "dog", "runs", "cat", "sits", "red", "blue"]


def objective(file: Path, weight: float = 0.5) -> WithText:
    made = WithText(file=file, weight=weight, max_words=3, cross_entropy=CrossEntropy(label_smoothing=0.1))
    made.prepare({}, Vocabulary(WORDS))
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A dog runs.\n\na blue zebra sits here\n", encoding="utf-8")
    return path


def test_the_loss_is_that_of_the_captions_and_that_of_sentences_with_the_mean_region(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a dog runs\n")
    model, batch = build("up_down"), batch_of([[4, 5], [6]], counts=[5, 2])
    terms = objective(tmp_path / "one.txt")(model, batch)
    regions = torch.cat([batch.features[0], batch.features[1, :2]])
    alone = batch_of([[4, 5, 6]] * 2)._replace(features=regions.mean(0).expand(2, 1, DIM))
    captions, sentences = (CrossEntropy(label_smoothing=0.1)(model, part) for part in (batch, alone))
    assert terms.loss.item() == pytest.approx((captions.loss + 0.5 * sentences.loss).item(), rel=1e-5)
    assert terms.logged["text_nll"].item() == pytest.approx(sentences.logged["nll"].item(), rel=1e-5)
    assert terms.num_words == captions.num_words


def test_the_mean_region_is_that_of_the_images_however_many_captions_share_them(text: Path) -> None:
    batch = batch_of([[4], [5], [6]])
    shared = batch._replace(features=batch.features[:2], image_rows=torch.tensor([0, 1, 1]))
    made = objective(text)._without_picture(shared)
    assert made.image_rows is None and made.features.shape[:2] == (3, 1)
    torch.testing.assert_close(made.features[0, 0], batch.features[:2].mean((0, 1)))


def test_sentences_are_cut_and_all_are_drawn(text: Path) -> None:
    made = objective(text)
    drawn = {tuple(row) for row in made._without_picture(batch_of([[4]] * 50)).tokens.tolist()}
    assert drawn == {(1, 4, 5, 6, 2), (1, 4, 10, 3, 2)}


def test_a_compressed_file_reads_alike(text: Path) -> None:
    packed = text.with_suffix(".txt.gz")
    packed.write_bytes(gzip.compress(text.read_bytes()))
    assert objective(packed)._sentences == objective(text)._sentences


@pytest.mark.parametrize("family", ["transformer", "show_attend_tell", "attentive_translator"])
def test_a_family_learns_from_sentences(family: str, text: Path) -> None:
    model = build(family)
    objective(text)(model, batch_of([[4, 5]] * 30)).loss.backward()
    assert model.embedding.weight.grad[10].any()  # "blue" is in the text only


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "broken.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="empty.txt is empty; needed is a sentence a line"):
        objective(tmp_path / "empty.txt")
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(b"a dog\n" * 9)[:10] + b"\xff" * 40)
    for name in ("broken.gz", "damaged.gz", "absent.txt"):
        with pytest.raises(InputError, match=f"{name} can't be read .*; needed is a text file"):
            objective(tmp_path / name)
