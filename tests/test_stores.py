"""int8 rows are as close as their scales say, and everything a cache promises holds for them too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from captioning.errors import InputError
from captioning.features import CacheWriter, FeatureCache, Shard, extract, layout, verify
from captioning.features.cache import Row, check_provenance, kind_of
from captioning.features.stores import STORES
from captioning.files import partial_path
from tests.faults.caches import Pools, draw_images

INT8 = STORES["int8"]


def make(images: dict[str, Path], path: Path, store: str = "int8", **options: Any) -> None:
    options = {"batch_size": 2, "num_workers": 0, "autocast": False, "store": store, **options}
    extract(Pools(), images, path, **options)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return draw_images(tmp_path / "images")


@pytest.fixture
def path(tmp_path: Path, images: dict[str, Path]) -> Path:
    make(images, tmp_path / "int8.h5")
    return tmp_path / "int8.h5"


class TestValues:
    @pytest.mark.parametrize("size", [6e-8, 1e-3, 1.0, 500.0, 65504.0])
    def test_a_value_is_within_half_a_scale(self, size: float) -> None:
        values = np.random.default_rng(0).uniform(-1, 1, (81, 40))
        features = (values * size).astype(np.float16)
        read = INT8.unpack(INT8.pack(features)[None])[0]
        assert read.dtype == np.float16 and np.isfinite(read).all()
        exact = features.astype(np.float64)
        rounding = np.spacing(np.abs(read)).astype(np.float64) / 2  # of the product, to float16
        assert (np.abs(read - exact) <= np.abs(exact).max(0) / 127 / 2 * (1 + 1e-6) + rounding).all()

    def test_the_largest_of_each_channel_and_zeros_are_exact(self) -> None:
        features = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float16)
        features[:, 2] = features[7:] = 0  # a channel, and the padding of a detector's regions
        read = INT8.unpack(INT8.pack(features)[None])[0]
        assert np.array_equal(read == 0, features == 0)
        largest = np.abs(features).argmax(0), np.arange(5)
        assert np.array_equal(read[largest], features[largest])

    def test_each_row_has_its_scales(self) -> None:
        rows = [np.full((3, 4), value, np.float16) for value in (0.001, 1000)]
        assert np.array_equal(INT8.unpack(np.stack([INT8.pack(row) for row in rows])), np.stack(rows))

    def test_a_row_takes_half_of_the_bytes_and_four_a_channel(self) -> None:
        features = np.zeros((64, 2048), np.float16)
        assert INT8.pack(features).nbytes == features.nbytes // 2 + 4 * 2048

    def test_finite_is_what_numpy_calls_finite(self) -> None:
        everything = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        found = np.array([layout.is_finite(everything[at : at + 1]) for at in range(len(everything))])
        assert np.array_equal(found, np.isfinite(everything)) and layout.is_finite(everything[:0])


class TestCache:
    def test_it_reads_like_float16(self, path: Path, images: dict[str, Path], tmp_path: Path) -> None:
        make(images, tmp_path / "float16.h5", store="float16")
        ours, reference = FeatureCache(path), FeatureCache(tmp_path / "float16.h5")
        assert (ours.shape, ours.grid, ours.image_ids) == (
            reference.shape,
            reference.grid,
            reference.image_ids,
        )
        ids = ours.image_ids[::-3]
        read, expected = ours.read(ids), reference.read(ids)
        assert read.dtype == np.float16 and read.shape == expected.shape
        assert 0 < np.abs(read - expected).max() <= np.abs(expected).max() / 254 + 1e-3
        assert ours.provenance == {**reference.provenance, "store": "int8"}

    def test_boxes_and_counts_are_kept(self, tmp_path: Path) -> None:
        boxes, scores = np.arange(8, dtype="<f4").reshape(2, 4), np.array([0.5, 0], "<f4")
        features = np.array([[1, -2, 3], [0, 0, 0]], np.float16)
        with CacheWriter(tmp_path / "f.h5", ["a"], (2, 3), {"store": "int8"}, with_boxes=True) as writer:
            writer.write(0, Row(features, 1, boxes, scores))
            writer.finish()
        cache = FeatureCache(tmp_path / "f.h5")
        assert np.array_equal(cache.read(["a"])[0], features) and cache.counts(["a"]).tolist() == [1]
        assert np.array_equal(cache.boxes("a"), boxes) and np.array_equal(cache.scores("a"), scores)

    def test_stopped_half_way_it_continues_to_the_same_file(
        self, path: Path, images: dict[str, Path], tmp_path: Path
    ) -> None:
        def stop(batches: Any, total: int) -> Iterator[Any]:
            for number, batch in enumerate(batches):
                if number == 3:
                    raise KeyboardInterrupt
                yield batch

        again = tmp_path / "again.h5"
        with pytest.raises(KeyboardInterrupt):
            make(images, again, progress=stop)
        assert len(verify(partial_path(again)).good) == 6
        make(images, again)
        assert again.read_bytes() == path.read_bytes()

    def test_shards_hold_the_same_rows(self, path: Path, images: dict[str, Path], tmp_path: Path) -> None:
        for shard in (Shard(0, 2), Shard(1, 2)):
            make(shard.share(images, 2), shard.path(tmp_path / "shards"))
        whole, shards = FeatureCache(path), FeatureCache(tmp_path / "shards")
        assert np.array_equal(whole.read([*images]), shards.read([*images]))

    @pytest.mark.parametrize("line", [0, -1])  # of steps, of scales
    def test_a_flipped_bit_is_found_and_repaired(
        self, path: Path, images: dict[str, Path], line: int
    ) -> None:
        whole = path.read_bytes()
        with h5py.File(path, "r+") as file:
            file["features"][5, line, 1] ^= 4
        assert verify(path).corrupt == [("5", "checksum differs")]
        with pytest.raises(InputError, match="the row of image 5 differs from its checksum.*repair=true"):
            FeatureCache(path).read(["5"])
        make(images, path, repair=True)
        assert path.read_bytes() == whole

    @pytest.mark.parametrize(("first", "second"), [("float16", "int8"), ("int8", "float16")])
    def test_two_stores_in_one_cache_are_refused(
        self, images: dict[str, Path], tmp_path: Path, first: str, second: str
    ) -> None:
        message = f"store = '{first}' but this run expects store = '{second}'"
        few = dict(list(images.items())[:4])
        make(few, tmp_path / "f.h5", store=first)
        for wanted in (few, images):  # a complete cache, and one that lacks images
            with pytest.raises(InputError, match=message):
                make(wanted, tmp_path / "f.h5", store=second)
        folder = tmp_path / "shards"
        for number, store in enumerate((second, first)):
            shard = Shard(number, 2)
            make(shard.share(images, 2), shard.path(folder), store=store)
        with pytest.raises(InputError, match=message):
            FeatureCache(folder)

    def test_precision_and_store_make_features_no_other_kind_for_a_model(self) -> None:
        ours = {"node": "Mixed_7b", "precision": "bfloat16", "store": "int8"}
        assert kind_of(ours) == {"node": "Mixed_7b"}
        check_provenance("f.h5", ours, kind_of({"node": "Mixed_7b", "precision": "float32"}))

    def test_an_unknown_store_names_those_there_are(self, images: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="stored as 'int4'; features.run.store is one of float16, int8"):
            make(images, tmp_path / "f.h5", store="int4")


class TestCopy:
    def test_a_copy_equals_an_extraction_byte_for_byte(
        self, path: Path, images: dict[str, Path], tmp_path: Path
    ) -> None:
        few = dict(list(images.items())[:7])  # the others are computed
        make(few, tmp_path / "float16.h5", store="float16")
        make(images, tmp_path / "copy.h5", copy_from=tmp_path / "float16.h5")
        assert (tmp_path / "copy.h5").read_bytes() == path.read_bytes()

    def test_only_float16_features_of_the_same_options_are_copied(
        self, path: Path, images: dict[str, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="store = 'int8' but this run expects store = 'float16'"):
            make(images, tmp_path / "copy.h5", copy_from=path)
        make(images, tmp_path / "bfloat16.h5", store="float16", autocast=True)
        with pytest.raises(InputError, match="precision = 'bfloat16' but this run expects"):
            make(images, tmp_path / "copy.h5", copy_from=tmp_path / "bfloat16.h5")

    def test_features_of_pictures_that_have_changed_are_not_copied(
        self, images: dict[str, Path], tmp_path: Path
    ) -> None:
        make(images, tmp_path / "float16.h5", store="float16")
        Image.new("RGB", (9, 9), "red").save(images["3"])
        with pytest.raises(InputError, match="1 pictures have changed since their features were made"):
            make(images, tmp_path / "copy.h5", copy_from=tmp_path / "float16.h5")
