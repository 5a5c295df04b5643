"""Batches, buckets and the datamodule."""

from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException

from captioning.data import CaptionDataModule, CaptionDataset, ImageDataset, LengthBuckets
from captioning.data.dataset import pad_captions
from captioning.errors import InputError
from captioning.features import FeatureCache
from captioning.vocabulary import END, PAD, START
from tests.conftest import TOY_SCENES, compose_config


def test_captions_are_padded_at_the_end() -> None:
    assert pad_captions([[1, 4, 2], [1, 2]]).tolist() == [[1, 4, 2], [1, 2, PAD]]


def test_a_batch_holds_start_words_end_and_the_images_features(toy_data: CaptionDataModule) -> None:
    assert toy_data.vocabulary is not None
    data = CaptionDataset(toy_data.split("train"), toy_data.cache, toy_data.vocabulary, max_words=12)
    batch = data.__getitems__([7, 0])
    record = toy_data.split("train")[1]  # five captions an image: the eighth is of the second
    assert batch.image_ids[0] == record.image_id and batch.references[0] == record.captions
    assert batch.tokens[0, 0] == START and (batch.tokens[0] == END).sum() == 1
    assert toy_data.vocabulary.decode(batch.tokens[0].tolist()) == " ".join(
        toy_data.vocabulary.split(toy_data.vocabulary.encode(record.captions[2]))
    )
    assert torch.equal(batch.features[0], torch.from_numpy(toy_data.cache.read([record.image_id])[0]))
    assert batch.features.dtype == torch.float16 and batch.mask is None


def test_buckets_hold_every_item_once_and_change_with_the_epoch() -> None:
    buckets = LengthBuckets([i % 7 for i in range(103)], 10, seed=0, pool=3)
    epochs = []
    for epoch in (0, 1, 0):
        buckets.set_epoch(epoch)
        batches = list(buckets)
        assert sorted(i for batch in batches for i in batch) == list(range(103)) and len(batches) == len(
            buckets
        )
        epochs.append(batches)
    assert epochs[0] == epochs[2] != epochs[1]


def test_buckets_waste_little_padding() -> None:
    lengths = [8 + (i * 7919) % 13 for i in range(4000)]
    waste = [
        max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch)
        for batch in LengthBuckets(lengths, 50, seed=0)
    ]
    assert sum(waste) / sum(lengths) < 0.05


def test_the_vocabulary_comes_from_training_captions_only(toy_data: CaptionDataModule) -> None:
    assert toy_data.vocabulary is not None
    known = {
        word
        for record in toy_data.split("train")
        for caption in record.captions
        for word in caption.lower().replace(",", "").replace(".", "").split()
    }
    assert set(toy_data.vocabulary.words[4:]) == known


def test_each_validation_image_is_captioned_once(toy_data: CaptionDataModule) -> None:
    captions, images = toy_data.val_dataloader()
    ids = [image_id for batch in images for image_id in batch.image_ids]
    assert len(ids) == len(set(ids)) == TOY_SCENES["val"]
    assert sum(len(batch.tokens) for batch in captions) == 5 * TOY_SCENES["val"]


def test_the_loader_leaves_the_global_random_state_alone(toy_data: CaptionDataModule) -> None:
    before = torch.get_rng_state()
    next(iter(toy_data.train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_worker_processes_read_the_same(toy_data: CaptionDataModule) -> None:
    alone = [batch.features for batch in toy_data.image_dataloader("val")]
    toy_data.num_workers = 2
    assert all(
        torch.equal(a, b.features) for a, b in zip(alone, toy_data.image_dataloader("val"), strict=True)
    )


def test_an_unknown_split_lists_what_there_is(toy_data: CaptionDataModule) -> None:
    with pytest.raises(InputError, match=r"no split 'dev'; it has train \(24 images\)"):
        toy_data.split("dev")


def test_features_of_other_images_are_refused(toy_data: CaptionDataModule, tmp_path: Path) -> None:
    moved = toy_data.records["val"][0]._replace(image_id="elsewhere")
    toy_data.records["val"].append(moved)
    with pytest.raises(InputError, match="lacks 1 of the 9 val images, first elsewhere"):
        toy_data._check_features("val")


def test_features_of_another_kind_are_refused(toy_overrides: list[str]) -> None:
    from captioning.assembly import build_data

    with pytest.raises(InputError, match="node = 'maxpool2' but this run expects node = 'Mixed_5d'"):
        build_data(
            compose_config("train", *toy_overrides, "output_dir=none", "features.provenance.node=Mixed_5d")
        )
    with pytest.raises(
        InputError, match="holds 64 × 192 a row but features.regions × features.dim is 64 × 99"
    ):
        build_data(compose_config("train", *toy_overrides, "output_dir=none", "features.dim=99"))


def test_train_on_has_two_choices(toy_overrides: list[str]) -> None:
    from captioning.assembly import build_data

    with pytest.raises(InstantiationException, match="it is captions or images"):
        build_data(compose_config("train", *toy_overrides, "output_dir=none", "data.train_on=words"))
    data = build_data(compose_config("train", *toy_overrides, "output_dir=none", "data.train_on=images"))
    assert sum(len(batch.tokens) for batch in data.train_dataloader()) == TOY_SCENES["train"]


def test_unreadable_images_are_left_out(toy_data: CaptionDataModule) -> None:
    class Cache(FeatureCache):
        def __init__(self, other: FeatureCache, bad: str) -> None:
            self.__dict__.update(other.__dict__)
            self._index = {key: row for key, row in other._index.items() if key != bad}
            self.unreadable = [bad]

    bad = toy_data.split("val")[0].image_id
    toy_data.cache = Cache(toy_data.cache, bad)
    toy_data._check_features("val")
    assert (
        bad not in [record.image_id for record in toy_data.split("val")] and len(toy_data.split("val")) == 7
    )


def test_the_image_data_set_gives_references(toy_data: CaptionDataModule) -> None:
    assert toy_data.vocabulary is not None
    data = ImageDataset(toy_data.split("val"), toy_data.cache, toy_data.vocabulary)
    assert len(data[0].references[0]) == 5
