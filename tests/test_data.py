"""Batches, buckets and the datamodule."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioning.data import Annotated, CaptionDataModule, CaptionDataset, ImageDataset, LengthBuckets
from captioning.data.dataset import pad_captions
from captioning.errors import InputError
from captioning.features.cache import Row
from captioning.features.images import Fingerprint, digest
from captioning.features.pictures import Pictures
from captioning.features.writer import CacheWriter
from captioning.tokenizers import Characters, Subwords, Tokenizer, Words
from captioning.vocabulary import END, PAD, SPECIAL_WORDS, START, Vocabulary

REGIONS, DIM = 4, 3


def records_of(split: str, count: int, captions: int = 5) -> list[Annotated]:
    """Records whose captions have 2 to 6 words and name their image."""
    return [
        Annotated(
            f"{split}{i}",
            Path(f"{split}{i}.jpg"),
            split,
            tuple(f"{split}{i} is " + "very " * ((i + k) % 5) + "red." for k in range(captions)),
        )
        for i in range(count)
    ]


def write_cache(
    path: Path, image_ids: Sequence[str], unreadable: Sequence[str] = (), counts: Sequence[int] = ()
) -> Path:
    """A cache of random features; images have all regions unless counts are given."""
    generator = np.random.default_rng(0)
    with CacheWriter(path, image_ids, (REGIONS, DIM), {"node": "Mixed_5d"}) as writer:
        for row, image_id in enumerate(image_ids):
            if image_id in unreadable:
                writer.mark_unreadable(row)
            else:
                features = generator.standard_normal((REGIONS, DIM), dtype=np.float32)
                writer.write(row, Row(features, counts[row] if counts else REGIONS))
        writer.finish()
    return path


def build(records: list[Annotated], features: Path, **options: Any) -> CaptionDataModule:
    defaults: dict[str, Any] = {
        "name": "mine", "vocabulary_size": 50, "min_count": 1, "max_words": 12, "batch_size": 16,
        "eval_batch_size": 4, "num_workers": 0, "seed": 0, "bucket_pool": 1,
    }  # fmt: skip
    data = CaptionDataModule(reader=lambda: records, features_path=features, **{**defaults, **options})
    data.prepare_data()
    data.setup()
    return data


RECORDS = [*records_of("train", 24), *records_of("val", 8)]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "f.h5", [record.image_id for record in RECORDS])


@pytest.fixture
def data(features: Path) -> CaptionDataModule:
    return build(RECORDS, features)


class TestBatches:
    def test_captions_are_padded_at_the_end(self) -> None:
        assert pad_captions([[1, 4, 2], [1, 2]]).tolist() == [[1, 4, 2], [1, 2, PAD]]

    def test_a_batch_holds_start_words_end_and_the_images_features(self, data: CaptionDataModule) -> None:
        batch = data.captions("train").__getitems__([7, 0])
        record = RECORDS[1]  # five captions per image: the eighth is of the second
        assert batch.image_ids[0] == record.image_id and batch.references[0] == record.captions
        assert batch.tokens[0, 0] == START and (batch.tokens[0] == END).sum() == 1
        assert data.vocabulary is not None
        assert data.vocabulary.decode(batch.tokens[0].tolist()) == record.captions[2].rstrip(".")
        assert torch.equal(batch.features[0], torch.from_numpy(data.cache.read([record.image_id])[0]))
        assert batch.features.dtype == torch.float16 and batch.mask is None

    def test_captions_can_share_the_image_that_they_describe(self, features: Path) -> None:
        data = build(RECORDS, features)
        shared = data.captions("train", share_images=True).__getitems__([7, 0, 5])
        alone = data.captions("train").__getitems__([7, 0, 5])
        assert (
            shared.image_rows is not None
            and shared.image_rows.tolist() == [0, 1, 0]
            and len(shared.features) == 2
        )
        assert torch.equal(shared.features[shared.image_rows], alone.features)
        assert torch.equal(shared.tokens, alone.tokens)
        assert (shared.image_ids, shared.references) == (alone.image_ids, alone.references)

    def test_the_mask_is_true_at_real_regions(self, tmp_path: Path) -> None:
        counts = [1 + i % REGIONS for i in range(len(RECORDS))]
        ids = [record.image_id for record in RECORDS]
        data = build(RECORDS, write_cache(tmp_path / "f.h5", ids, counts=counts))
        batch = data.images("train").__getitems__([0, 2])
        assert batch.mask is not None
        assert batch.mask.tolist() == [[True, False, False, False], [True, True, True, False]]

    def test_captions_are_cut_at_max_words_and_keep_their_end(self, features: Path) -> None:
        data = build(RECORDS, features, max_words=3)
        captions = data.captions("train")
        assert max(captions.lengths) == 5
        ends = [length - 1 for length in captions.lengths]
        tokens = captions.__getitems__(range(len(captions))).tokens
        assert tokens[range(len(captions)), ends].eq(END).all()
        assert max(build(RECORDS, features, max_words=None).captions("train").lengths) == 9

    def test_words_are_counted_as_targets(self, data: CaptionDataModule) -> None:
        counts = data.captions("train").word_counts()
        assert data.vocabulary is not None
        assert counts[END] == 24 * 5 and counts[START] == 0 and counts[data.vocabulary.id("is")] == 24 * 5

    def test_images_come_with_all_their_captions_or_with_none(self, data: CaptionDataModule) -> None:
        batch = next(iter(data.image_dataloader("val")))
        assert len(batch.references[0]) == 5
        batch = next(iter(data.image_dataloader("val", without_captions=True)))
        assert batch.references == [("",)] * 4 and batch.tokens.tolist() == [[START, END]] * 4


class TestBuckets:
    def test_they_hold_every_item_once_and_change_with_the_epoch(self) -> None:
        buckets = LengthBuckets([i % 7 for i in range(103)], 10, seed=0, pool=3)
        epochs = []
        for epoch in (0, 1, 0):
            buckets.set_epoch(epoch)
            batches = list(buckets)
            assert sorted(i for batch in batches for i in batch) == list(range(103))
            assert len(batches) == len(buckets)
            epochs.append(batches)
        assert epochs[0] == epochs[2] != epochs[1]

    def test_captions_of_an_image_stay_together(self) -> None:
        images = [0] * 7 + [1] * 5 + [2] * 2 + [3 + i // 5 for i in range(50)]
        buckets = LengthBuckets([5] * 64, 15, seed=0, pool=2, images=images, per_image=5)
        epochs = []
        for epoch in range(2):
            buckets.set_epoch(epoch)
            epochs.append(list(buckets))
            assert sorted(item for batch in epochs[-1] for item in batch) == list(range(64))
            assert len(epochs[-1]) == len(buckets) == 5  # 14 groups, three a batch
            assert all(len({images[item] for item in batch}) <= 3 for batch in epochs[-1])
        assert epochs[0] != epochs[1]
        pairs = [{item for item in batch if images[item] == 0} for epoch in epochs for batch in epoch]
        assert {len(pair) for pair in pairs} <= {0, 2, 5, 7}
        assert len({frozenset(pair) for pair in pairs if len(pair) == 5}) > 1, "always the same five of seven"

    def test_they_waste_little_padding(self) -> None:
        lengths = [8 + (i * 7919) % 13 for i in range(4000)]
        waste = [
            max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch)
            for batch in LengthBuckets(lengths, 50, seed=0)
        ]
        assert sum(waste) / sum(lengths) < 0.05

    def test_processes_share_the_batches_evenly(self) -> None:
        shares = [list(LengthBuckets([5] * 70, 10, seed=0, rank=rank, processes=2)) for rank in (0, 1)]
        assert [len(share) for share in shares] == [3, 3]
        items = [i for share in shares for batch in share for i in batch]
        assert len(items) == len(set(items))


class TestDataModule:
    def test_the_vocabulary_comes_from_training_captions_only(self, data: CaptionDataModule) -> None:
        assert data.vocabulary is not None
        words = {
            word.rstrip(".") for record in RECORDS[:24] for text in record.captions for word in text.split()
        }
        assert set(data.vocabulary.words[4:]) == words

    def test_each_validation_image_is_captioned_once(self, data: CaptionDataModule) -> None:
        captions, images = data.val_dataloader()
        ids = [image_id for batch in images for image_id in batch.image_ids]
        assert ids == [record.image_id for record in RECORDS[24:]]
        assert sum(len(batch.tokens) for batch in captions) == 5 * 8

    def test_the_loader_leaves_the_global_random_state_alone(self, data: CaptionDataModule) -> None:
        before = torch.get_rng_state()
        next(iter(data.train_dataloader()))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_resumed_epoch_has_its_batches_from_the_first_one(self, data: CaptionDataModule) -> None:
        first = next(iter(data.train_dataloader())).image_ids
        data.load_state_dict({"epoch": 3})
        resumed = next(iter(data.train_dataloader())).image_ids
        data.load_state_dict({"epoch": 0})
        assert resumed != first == next(iter(data.train_dataloader())).image_ids

    def test_training_keeps_captions_of_an_image_together(self, features: Path) -> None:
        loader = build(RECORDS, features, batch_size=20, captions_per_image=5).train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == 6  # 24 images, four a batch
        for batch in batches:
            assert batch.features.shape[0] == len(set(batch.image_ids)) == 4 and len(batch.tokens) == 20
            assert batch.image_rows is not None and len(batch.image_rows.unique()) == 4

    def test_batches_that_become_small_are_reported(
        self, features: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        few = [record._replace(captions=record.captions[:2]) for record in RECORDS]
        build(few, features, batch_size=20, captions_per_image=5).train_dataloader()
        assert "captions_per_image=5: full batches have 8 captions on average and not 20" in caplog.text

    def test_worker_processes_read_the_same(self, data: CaptionDataModule) -> None:
        alone = [batch.features for batch in data.image_dataloader("val")]
        data.num_workers = 2
        shared = [batch.features for batch in data.image_dataloader("val")]
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))

    def test_training_on_images_shows_each_once_an_epoch(self, features: Path) -> None:
        data = build(RECORDS, features, train_on="images")
        assert sum(len(batch.tokens) for batch in data.train_dataloader()) == 24

    def test_the_data_set_is_made_before_it_is_read(self, features: Path) -> None:
        made: list[str] = []
        data = build(RECORDS, features, prepare=lambda: made.append("made"))
        data.setup()  # reads nothing again
        assert made == ["made"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train_on": "words"}, "train_on is 'words'; it is captions or images"),
            ({"batch_size": 0}, "batch_size=0 and eval_batch_size=4 must be at least 1"),
            ({"language": "English"}, "language is 'English'; it is a code of ISO 639, such as en"),
            (
                {"language": False},
                "language is False; it is a code of ISO 639, such as en, or 'no' in quotes",
            ),
            (
                {"vocabulary": Vocabulary(SPECIAL_WORDS, Characters()), "tokenizer": Words()},
                "are made of characters, found words; give data/tokenizer=characters",
            ),
            (
                {"captions_per_image": 5},
                "captions_per_image is 5; it must be a whole number from 1 that divides data.batch_size=16",
            ),
            ({"captions_per_image": "five"}, "captions_per_image is five; it must be a whole number from 1"),
            (
                {"captions_per_image": 4, "train_on": "images"},
                "captions_per_image=4 goes with data.train_on=captions",
            ),
            ({"max_words": 0}, "max_words is 0; it must be at least 1, or null"),
            (
                {"provenance": {"node": "Mixed_7c"}},
                "node = 'Mixed_5d' but this run expects node = 'Mixed_7c'",
            ),
            ({"feature_splits": ["dev"]}, r"no split 'dev'; it has train \(24 images\), val \(8 images\)"),
        ],
    )
    def test_wrong_options_are_refused(self, features: Path, options: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            build(RECORDS, features, **options)


class TestWhoIsWho:
    """Every picture has its features, no picture those of another, and what is left out is reported."""

    def test_features_of_other_images_are_refused(self, features: Path) -> None:
        moved = RECORDS[-1]._replace(image_id="elsewhere")
        with pytest.raises(InputError, match="lacks 1 of the 9 val images, first elsewhere"):
            build([*RECORDS, moved], features)

    def test_an_id_of_two_pictures_is_refused(self, features: Path) -> None:
        other = RECORDS[0]._replace(path=Path("other.jpg"), split="val")
        with pytest.raises(
            InputError, match="mine: the id train0 means two pictures, train0.jpg and other.jpg"
        ):
            build([*RECORDS, other], features)

    def test_unreadable_images_are_left_out_and_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids = [record.image_id for record in RECORDS]
        data = build(RECORDS, write_cache(tmp_path / "f.h5", ids, unreadable=["val3", "val5"]))
        assert [record.image_id for record in data.split("val")] == [
            "val0",
            "val1",
            "val2",
            "val4",
            "val6",
            "val7",
        ]
        assert "mine: 2 of the 8 val images are left out" in caplog.text and "first val3.jpg" in caplog.text
        with pytest.raises(InputError, match="none of the 8 val images could be read .* first val0.jpg"):
            build(RECORDS, write_cache(tmp_path / "g.h5", ids, unreadable=ids[24:]))

    def test_images_without_captions_are_captioned_but_not_trained_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        records = [r._replace(captions=()) if r.image_id in ("train2", "val1") else r for r in RECORDS]
        data = build(records, write_cache(tmp_path / "f.h5", [record.image_id for record in RECORDS]))
        assert "mine: 1 of the 24 train images have no caption and are left out of training" in caplog.text
        assert "mine: 1 of the 8 val images have no caption and are captioned but not scored" in caplog.text
        for train_on in ("captions", "images"):
            data.train_on = train_on
            assert "train2" not in {i for batch in data.train_dataloader() for i in batch.image_ids}
        for loader in data.val_dataloader():
            assert "val1" not in {i for batch in loader for i in batch.image_ids}
        assert len(data.images("val")) == 7 and len(data.images("val", without_captions=True)) == 8

    def test_a_split_without_any_caption_is_named(self, features: Path) -> None:
        records = [r._replace(captions=()) if r.split == "val" else r for r in RECORDS]
        with pytest.raises(InputError, match="none of the 8 val images has a caption"):
            build(records, features).val_dataloader()


class TestSummary:
    def test_it_counts_images_captions_and_cut_captions(
        self, features: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        build(RECORDS, features, max_words=6)
        assert "mine: train 24 images, 120 captions; val 8 images, 40 captions" in caplog.text
        # A fifth of the captions has 7 words.
        assert "mine: 32 of 160 captions are cut at data.max_words=6" in caplog.text
        assert not [entry for entry in caplog.records if entry.levelno > logging.INFO]

    def test_a_picture_in_train_and_val_is_reported(
        self, features: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shared = [RECORDS[i]._replace(split="val", captions=("other",)) for i in (0, 3)]
        build([*RECORDS, *shared], features)
        assert "mine: 2 pictures are in train and in val, so scores on val look better" in caplog.text

    def test_a_picture_in_train_and_val_under_two_names_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = records_of("train", 6) + records_of("val", 4)
        paths = {record.image_id: tmp_path / record.path for record in records}
        records = [record._replace(path=paths[record.image_id]) for record in records]
        content = {"val1": "train2", "val3": "train5", "train1": "train0"}  # the last pair leaks nothing
        pictures = Pictures(paths)
        with CacheWriter(
            tmp_path / "f.h5", list(paths), (REGIONS, DIM), {"node": "Mixed_5d"}, pictures=pictures
        ) as writer:
            for row, image_id in enumerate(paths):
                text = content.get(image_id, image_id)
                paths[image_id].write_text(text)
                with paths[image_id].open("rb") as file:
                    state = paths[image_id].stat()
                    fingerprint = Fingerprint(state.st_size, state.st_mtime_ns, digest(file))
                writer.write(row, Row(np.zeros((REGIONS, DIM)), REGIONS), fingerprint)
            writer.finish()
        monkeypatch.setattr("captioning.features.pictures.digest", None)  # nothing is read again
        build(records, tmp_path / "f.h5")
        warnings = [entry.getMessage() for entry in caplog.records if entry.levelno > logging.INFO]
        assert warnings == [
            "mine: 2 pictures in val have the same content as pictures in train, under other names, so scores "
            f"on val look better than they are; first {paths['val1']}, which is {paths['train2']}"
        ]

    @pytest.mark.parametrize(
        ("caption", "warned"),
        [
            ("一只狗在绿色的草地上奔跑,追一个红色的球", True),
            ("一 只 狗 在 绿色 的 草地 上 奔跑", False),
            ("สุนัขวิ่งบนสนามหญ้า", True),
            ("犬 が 芝生 で スケートボード に 乗っ て いる", False),
            ("ein Donaudampfschifffahrtsgesellschaftskapitän", False),
        ],
    )
    def test_a_language_without_spaces_is_reported(
        self, features: Path, caplog: pytest.LogCaptureFixture, caption: str, warned: bool
    ) -> None:
        build([record._replace(captions=(caption,)) for record in RECORDS], features)
        assert ("a language written without spaces" in caplog.text) is warned
        assert ("give data/tokenizer=characters, or subwords" in caplog.text) is warned

    @pytest.mark.parametrize("tokenizer", [Characters(), Subwords()])
    def test_other_tokenizers_split_a_language_without_spaces(
        self, features: Path, caplog: pytest.LogCaptureFixture, tokenizer: Tokenizer
    ) -> None:
        caption = "一只狗在绿色的草地上奔跑,追一个红色的球"
        records = [record._replace(captions=(caption,)) for record in RECORDS]
        data = build(records, features, tokenizer=tokenizer, language="zh", max_words=None)
        assert data.vocabulary is not None and "without spaces" not in caplog.text
        assert data.vocabulary.decode(data.vocabulary.encode(caption)) == caption.replace(",", "")


def test_data_sets_are_built_without_a_datamodule(data: CaptionDataModule) -> None:
    assert data.vocabulary is not None
    captions = CaptionDataset(RECORDS, data.cache, data.vocabulary, max_words=None)
    images = ImageDataset(RECORDS, data.cache, data.vocabulary)
    assert len(captions) == 160 and len(images) == 32 and len(images[0].references[0]) == 5
