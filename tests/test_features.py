"""The cache survives kills and damage, records how and of what it was made, and refuses what does not fit."""

import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from captioning.errors import InputError
from captioning.features import (
    Backbone,
    CacheWriter,
    FeatureCache,
    FrozenExtractor,
    RegionFeatures,
    Report,
    check_provenance,
    extract,
    extract_missing,
    layout,
    preparation,
    verify,
)
from captioning.features import extraction as extraction_module
from captioning.features import weights as weights_module
from captioning.features import writer as writer_module
from captioning.features.cache import Row
from captioning.features.frozen import calibration_images
from captioning.features.pictures import Pictures
from captioning.features.weights import build_published, read_state
from captioning.files import partial_path

SHAPE, PROVENANCE = (2, 3), {"node": "x"}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def rows(count: int, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    return [Row(generator.normal(size=SHAPE).astype(np.float16), 2) for _ in range(count)]


def write(path: Path, ids: list[str], content: list[Row], finish: bool = True) -> None:
    with CacheWriter(path, ids, SHAPE, PROVENANCE) as writer:
        for row in writer.to_do:
            if row < len(content):
                writer.write(int(row), content[row])
        writer.flush()
        if finish:
            writer.finish()


def files(folder: Path) -> list[str]:
    """Names of all files but the lock, which stays for those who wait for it."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


class TestCache:
    def test_rows_come_back_by_id_in_any_order(self, tmp_path: Path) -> None:
        content = rows(4)
        write(tmp_path / "f.h5", list("abcd"), content)
        cache = FeatureCache(tmp_path / "f.h5")
        read = cache.read(["d", "a", "d"])
        for got, row in zip(read, (3, 0, 3), strict=True):
            assert np.array_equal(got, content[row].features)
        assert cache.counts(["a"]).tolist() == [2] and not cache.varies_in_count

    def test_the_file_is_ordinary_hdf5_with_one_chunk_a_row(self, tmp_path: Path) -> None:
        content = rows(3)
        write(tmp_path / "f.h5", list("abc"), content)
        with h5py.File(tmp_path / "f.h5") as file:
            assert file["features"].chunks == (1, *SHAPE) and file["features"].dtype == np.float16
            assert np.array_equal(file["features"][:], np.stack([row.features for row in content]))
            assert json.loads(file.attrs["provenance"]) == PROVENANCE

    def test_an_unfinished_file_is_continued_and_equals_an_uninterrupted_one(self, tmp_path: Path) -> None:
        content = rows(5)
        write(tmp_path / "whole.h5", list("abcde"), content)
        write(tmp_path / "broken.h5", list("abcde"), content[:2], finish=False)
        assert not (tmp_path / "broken.h5").exists()
        with CacheWriter(tmp_path / "broken.h5", list("abcde"), SHAPE, PROVENANCE) as writer:
            assert writer.to_do.tolist() == [2, 3, 4]
        write(tmp_path / "broken.h5", list("abcde"), content)
        assert (tmp_path / "broken.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()

    def test_rows_since_the_last_flush_do_not_count(self, tmp_path: Path) -> None:
        writer = CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE)
        writer.write(0, rows(1)[0])
        writer.close()
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE) as again:
            assert again.to_do.tolist() == [0, 1]

    def test_added_images_keep_the_old_rows(self, tmp_path: Path) -> None:
        content = rows(3)
        write(tmp_path / "f.h5", ["a", "b"], content[:2])
        with CacheWriter(tmp_path / "f.h5", ["c", "b", "a"], SHAPE, PROVENANCE) as writer:
            assert [writer.image_ids[row] for row in writer.to_do] == ["c"]
            writer.write(int(writer.to_do[0]), content[2])
            writer.finish()
        read = FeatureCache(tmp_path / "f.h5").read(["a", "b", "c"])
        assert np.array_equal(read, np.stack([row.features for row in content]))
        assert len(verify(tmp_path / "f.h5").good) == 3

    def test_rows_that_are_not_requested_stay(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", list("abc"), rows(3))
        before = (tmp_path / "f.h5").read_bytes()
        with CacheWriter(tmp_path / "f.h5", ["b"], SHAPE, PROVENANCE) as writer:
            assert not writer.to_do.size
            writer.finish()
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_boxes_and_counts_are_kept(self, tmp_path: Path) -> None:
        boxes, scores = np.random.rand(2, 4).astype(np.float32), np.array([0.9, 0.0], np.float32)
        row = rows(1)[0]._replace(num_regions=1, boxes=boxes, scores=scores)
        with CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE, with_boxes=True) as writer:
            writer.write(0, row)
            writer.finish()
        cache = FeatureCache(tmp_path / "f.h5")
        assert cache.varies_in_count and cache.counts(["a"]).tolist() == [1]
        assert np.array_equal(cache.boxes("a"), boxes) and np.array_equal(cache.scores("a"), scores)
        assert verify(tmp_path / "f.h5").good == ["a"]

    def test_channel_statistics_are_over_real_regions(self, tmp_path: Path) -> None:
        content = [row._replace(num_regions=number) for row, number in zip(rows(3), (1, 2, 1), strict=True)]
        write(tmp_path / "f.h5", list("abc"), content)
        real = np.concatenate([row.features[: row.num_regions] for row in content[::2]]).astype(np.float64)
        mean, deviation = FeatureCache(tmp_path / "f.h5").channel_statistics(["a", "c"])
        np.testing.assert_allclose(mean, real.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation, real.std(0), rtol=1e-5)

    def test_an_open_cache_can_be_sent_to_another_process(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", ["a"], rows(1))
        cache = FeatureCache(tmp_path / "f.h5")
        cache.read(["a"])
        assert np.array_equal(pickle.loads(pickle.dumps(cache)).read(["a"]), cache.read(["a"]))

    def test_a_missing_file_names_the_remedy(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no feature file .* python -m captioning.extract"):
            FeatureCache(tmp_path / "none.h5")

    def test_another_kind_of_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "f.h5").write_bytes(b"not hdf5")
        with pytest.raises(InputError, match="not a feature cache"):
            FeatureCache(tmp_path / "f.h5")

    def test_a_missing_image_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", ["a"], rows(1))
        with pytest.raises(InputError, match="holds no features of image z"):
            FeatureCache(tmp_path / "f.h5").read(["z"])

    def test_features_of_another_backbone_are_refused_with_both_values(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", ["a"], rows(1))
        with pytest.raises(InputError, match="node = 'x' but this run expects node = 'y'"):
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, {"node": "y"})
        with pytest.raises(InputError, match="choose the features=... option"):
            check_provenance("f.h5", PROVENANCE, {"node": "y"})

    def test_rows_of_another_shape_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", ["a"], rows(1))
        with pytest.raises(InputError, match=r"holds rows of shape \(2, 3\), not \(2, 4\); delete it"):
            CacheWriter(tmp_path / "f.h5", ["a"], (2, 4), PROVENANCE)

    def test_the_grid_is_read_from_the_provenance(self, tmp_path: Path) -> None:
        for name, provenance, grid in (("grid", {"grid": [1, 2]}, (1, 2)), ("boxes", {}, None)):
            with CacheWriter(tmp_path / name, ["a"], SHAPE, provenance) as writer:
                writer.finish()
            cache = FeatureCache(tmp_path / name)
            assert cache.grid == grid and cache.shape == SHAPE

    def test_only_the_cache_is_left_after_images_are_added(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", ["a"], rows(1))
        write(tmp_path / "f.h5", ["a", "b"], rows(2))
        assert files(tmp_path) == ["f.h5"]

    def test_a_full_disk_keeps_the_finished_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE) as writer:
            writer.write(0, rows(1)[0])
            writer.flush()

            def full(*_: object) -> int:
                raise OSError(errno.ENOSPC, "no space")

            monkeypatch.setattr(writer_module.os, "write", full)
            with pytest.raises(InputError, match="the disk is full; finished rows are kept"):
                writer.write(1, rows(1)[0])
            monkeypatch.undo()
        assert verify(partial_path(tmp_path / "f.h5")).good == ["a"]

    def test_values_beyond_float16_are_refused(self, tmp_path: Path) -> None:
        with CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE) as writer:
            for bad in (1e6, np.nan, np.inf):
                with pytest.raises(InputError, match="float16"):
                    writer.write(0, Row(np.full(SHAPE, bad, np.float32), 2))

    def test_two_writers_of_one_file_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_module, "_LOCK_TIMEOUT", 0.1)
        for first, second in (("a", "a"), ("a", "ab"), ("ab", "a")):
            path = tmp_path / f"{first}{second}.h5"
            with (
                CacheWriter(path, list(first), SHAPE, PROVENANCE),
                pytest.raises(InputError, match="another process is writing .* wait for it to end"),
            ):
                CacheWriter(path, list(second), SHAPE, PROVENANCE)

    def test_a_disk_that_is_too_small_is_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
        with pytest.raises(InputError, match="GB free; make room"):
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE)
        assert files(tmp_path) == []

    def test_verify_finds_every_kind_of_damage(self, tmp_path: Path) -> None:
        path = tmp_path / "f.h5"
        content = rows(6)
        content[3] = Row(np.zeros(SHAPE, np.float16), 2)
        with CacheWriter(path, list("abcdef"), SHAPE, PROVENANCE) as writer:
            for row in range(4):
                writer.write(row, content[row])
            writer.mark_unreadable(5)
            writer.finish()
        with h5py.File(path, "r+") as file:
            file["features"][0, 0, 0] += np.float16(1)
            file["features"][1, 0, 0] = np.nan
        findings = verify(path)
        assert findings.good == ["c"] and findings.to_do == ["e"] and findings.unreadable == ["f"]
        assert findings.corrupt == [("a", "checksum differs"), ("b", "NaN or Inf"), ("d", "all zero")]

    def test_a_partial_creation_that_was_killed_is_replaced(self, tmp_path: Path) -> None:
        left = tmp_path / "f.h5.new.partial"
        left.write_bytes(b"x" * 100)
        write(tmp_path / "f.h5", ["a"], rows(1))
        assert files(tmp_path) == ["f.h5"]
        left.write_bytes(b"x" * 100)
        writer_module.remove_leftover(tmp_path / "f.h5")
        assert files(tmp_path) == ["f.h5"]

    def test_what_another_process_creates_is_no_leftover(self, tmp_path: Path) -> None:
        left = tmp_path / "f.h5.new.partial"
        with CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE):
            left.write_bytes(b"x")
            writer_module.remove_leftover(tmp_path / "f.h5")
            assert left.exists()

    @pytest.mark.parametrize("ids", ["a", "ab", "bca"])
    def test_writers_that_start_at_once_wait_for_each_other(self, tmp_path: Path, ids: str) -> None:
        """Subset, same set and superset, all created and written inside one second."""
        path, start, content = tmp_path / "f.h5", Barrier(2), rows(1)[0]

        def fill(image_ids: str) -> None:
            start.wait()
            with CacheWriter(path, list(image_ids), SHAPE, PROVENANCE) as writer:
                for row in writer.to_do:
                    writer.write(int(row), content)
                writer.finish()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, ["ab", ids]))
        assert sorted(verify(path).good) == sorted({*"ab", *ids}) and files(tmp_path) == ["f.h5"]

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "f.h5", tmp_path / ("x" * 300)):
            with pytest.raises(
                InputError, match=r"can't be written \(.*\); set features.path=<where you may"
            ):
                CacheWriter(path, ["a"], SHAPE, PROVENANCE)

    def test_a_file_that_cannot_be_read_is_not_called_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="can't be read: Is a directory; give features.path="):
            FeatureCache(tmp_path)
        with pytest.raises(InputError, match="can't be read: it is no regular file"):
            FeatureCache("/dev/null")

    def test_image_ids_are_kept_whatever_their_bytes(self, tmp_path: Path) -> None:
        ids = ["caf\udce9.png", "é", " a ", "\ud800", "b" * 300]
        write(tmp_path / "f.h5", ids, rows(5))
        assert FeatureCache(tmp_path / "f.h5").image_ids == ids
        for bad in ("", "a\0"):
            with pytest.raises(InputError, match="can't be an image id"):
                CacheWriter(tmp_path / "g.h5", [bad], SHAPE, PROVENANCE)

    def test_a_file_of_an_older_version_is_told_apart_from_a_damaged_one(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "f.h5", "w") as file:
            file.attrs["layout"] = 1
        with pytest.raises(
            InputError, match="has layout 1, needed is 2: .* older version .* delete it and run"
        ):
            FeatureCache(tmp_path / "f.h5")

    def test_it_imports_where_there_is_no_fcntl(self) -> None:
        for path in Path(layout.__file__).parent.glob("*.py"):
            assert "fcntl" not in path.read_text(), path


class TestDamage:
    """Nothing that is wrong in a file is read as if it were right."""

    IDS = ("p0", "p1", "p2", "p3")

    @pytest.fixture(params=[False, True], ids=["grid", "boxes"])
    def path(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        generator, path = np.random.default_rng(0), tmp_path / "f.h5"
        with CacheWriter(path, self.IDS, SHAPE, PROVENANCE, with_boxes=request.param) as writer:
            for row, content in enumerate(rows(4)):
                parts = generator.random((2, 4), np.float32), generator.random(2, np.float32)
                boxes, scores = parts if request.param else (None, None)
                writer.write(row, Row(content.features, 1 + row % 2, boxes, scores))
            writer.finish()
        return path

    def read(self, path: Path) -> list[bytes]:
        """All that a run can get out of a file."""
        cache = FeatureCache(path)
        arrays = [cache.read(self.IDS), cache.counts(self.IDS)]
        if cache.has_boxes:
            arrays += [read(image_id) for image_id in self.IDS for read in (cache.boxes, cache.scores)]
        return [array.tobytes() for array in arrays]

    def test_every_flipped_bit_is_reported_or_changes_nothing(self, path: Path) -> None:
        good, right, reported = path.read_bytes(), self.read(path), 0
        generator = np.random.default_rng(1)
        for position in generator.integers(0, 8 * len(good), 150).tolist():
            damaged = bytearray(good)
            damaged[position // 8] ^= 1 << position % 8
            path.write_bytes(damaged)
            try:
                assert self.read(path) == right, f"byte {position // 8}"
                assert not verify(path).corrupt
            except InputError as error:
                reported += 1
                assert "is damaged" in str(error) and (
                    "delete it" in str(error) or "repair=true" in str(error)
                )
        assert reported > 40

    def test_every_truncation_is_reported(self, path: Path) -> None:
        good = path.read_bytes()
        for length in np.linspace(0, len(good) - 1, 40).astype(int).tolist():
            path.write_bytes(good[:length])
            for use in (FeatureCache, verify):
                with pytest.raises(InputError, match="or it is damaged .*; delete it and run python -m"):
                    use(path)

    @pytest.mark.parametrize("field", layout.record_type([], []).names)
    def test_every_field_of_a_record_is_covered_and_made_again(self, path: Path, field: str) -> None:
        good = path.read_bytes()
        with h5py.File(path, "r+") as file:
            records = file["rows"][:]
            value = records[field][2]
            records[field][2] = b"p9" if isinstance(value, bytes) else value + 1
            file["rows"][:] = records
            has_boxes = "boxes" in file
        with pytest.raises(InputError, match="1 of its 4 records are damaged; run .* and repair=true"):
            FeatureCache(path)
        assert verify(path).corrupt[0][1] == "the record is damaged" and len(verify(path).good) == 3
        with CacheWriter(path, self.IDS, SHAPE, PROVENANCE, with_boxes=has_boxes) as writer:
            assert writer.num_damaged == 1 and writer.to_do.tolist() == [2]
            boxes, scores = (
                np.random.default_rng(0).random((2, 4)).astype(np.float32),
                np.zeros(2, np.float32),
            )
            writer.write(2, Row(rows(4)[2].features, 1, *((boxes, scores) if has_boxes else ())))
            writer.finish()
        assert len(path.read_bytes()) == len(good) and len(verify(path).good) == 4

    def test_a_damaged_record_of_an_image_that_is_not_requested_frees_its_row(self, path: Path) -> None:
        with h5py.File(path, "r+") as file:
            has_boxes, records = "boxes" in file, file["rows"][:]
            records["count"][1] += 1
            file["rows"][:] = records
        with CacheWriter(path, ["p0"], SHAPE, PROVENANCE, with_boxes=has_boxes) as writer:
            writer.finish()
        assert FeatureCache(path).image_ids == ["p0", "p2", "p3"] and not verify(path).corrupt
        with CacheWriter(path, ["q"], SHAPE, PROVENANCE, with_boxes=has_boxes) as writer:
            assert writer.to_do.tolist() == [1] and writer.image_ids == ["p0", "q", "p2", "p3"]

    def test_a_row_of_nan_is_named_as_such(self, path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["features"][1, 0, 0] = np.nan
        cache = FeatureCache(path)
        cache.read(["p0"])
        with pytest.raises(InputError, match="the row of image p1 holds NaN or Inf; .* repair=true"):
            cache.read(["p0", "p1"])

    def test_the_check_can_be_left_out(self, path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["features"][1, 0, 0] += np.float16(1)
            if "boxes" in file:
                file["boxes"][1] = 0
        with pytest.raises(InputError, match="the row of image p1 differs from its checksum"):
            FeatureCache(path).read(["p1"])
        cache = FeatureCache(path, check=False)
        assert cache.read(["p1"]).shape == (1, *SHAPE)
        if cache.has_boxes:
            assert not cache.boxes("p1").any()
            with pytest.raises(InputError, match="the boxes of image p1 differ from their checksum"):
                FeatureCache(path).boxes("p1")

    def test_a_row_is_checked_once(self, path: Path) -> None:
        cache = FeatureCache(path)
        right = cache.read(["p1"])
        with h5py.File(path, locking=False) as file:
            offset = file["features"].id.get_chunk_info(1).byte_offset
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\0\0")
        assert not np.array_equal(cache.read(["p1"]), right)

    @pytest.mark.parametrize(
        "change",
        [
            lambda file: file.attrs.__setitem__("provenance", np.bytes_("[1]")),
            lambda file: file.attrs.__delitem__("provenance"),
            lambda file: file.attrs.__setitem__("layout", 3),
            lambda file: file.__delitem__("features"),
            lambda file: (file.__delitem__("rows"), file.create_dataset("rows", data=np.zeros(4))),
            lambda file: (file.__delitem__("rows"), file.create_dataset("rows", data=np.zeros(3))),
            lambda file: (file.__delitem__("features"), file.create_dataset("features", data=np.zeros((4, 2, 3), "f2"))),
            lambda file: (file.__delitem__("features"), file.create_group("features")),
            lambda file: file.create_dataset("scores", data=np.zeros(1)) if "scores" not in file else file.__delitem__("boxes"),
        ],
    )  # fmt: skip
    def test_another_structure_is_refused(self, path: Path, change: Callable[[h5py.File], object]) -> None:
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError, match="not a feature cache of this project, or it is damaged"):
            FeatureCache(path)


class MeanColours(FrozenExtractor):
    """A user's own extractor: a constructor and `forward`."""

    def __init__(self, *, image_size: tuple[int, int], seed: int = 0) -> None:
        super().__init__(image_size=image_size, seed=seed)
        self.measure()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))[:, None]  # (B, 1, 3)


class TestFrozenExtractor:
    def test_an_extractor_of_ones_own_needs_a_constructor_and_forward(self, tmp_path: Path) -> None:
        own = MeanColours(image_size=(20, 20))
        assert (own.num_regions, own.feature_dim, own.grid, own.has_boxes) == (1, 3, None, False)
        assert own.provenance == {"image_size": [20, 20], "seed": 0}
        images = image_files(tmp_path / "in", 2)
        extract(own, images, tmp_path / "f.h5", batch_size=2, num_workers=0, autocast=False)
        cache = FeatureCache(tmp_path / "f.h5")
        with Image.open(images["p0"]) as image:
            mean = np.asarray(image).mean((0, 1))
        assert cache.grid is None and np.allclose(cache.read(["p0"])[0, 0], mean, atol=0.1)

    def test_expected_provenance_needs_no_network_and_is_part_of_the_built_ones(
        self, backbone: Backbone
    ) -> None:
        options = {"architecture": "resnet18", "node": "layer2", "image_size": (64, 64), **HALF}
        expected = Backbone.expected_provenance(**options, weights="random", seed=0)
        assert backbone.provenance == {**expected, "grid": [8, 8]}
        assert expected["image_size"] == [64, 64] and json.loads(json.dumps(expected)) == expected

    def test_weights_files_count_by_name_and_seeds_only_for_random_weights(self) -> None:
        expected = Backbone.expected_provenance
        assert expected(weights="somewhere/w.pth", seed=1) == {"weights": "w.pth"}
        assert expected(weights="IMAGENET1K_V1", seed=1) == {"weights": "IMAGENET1K_V1"}
        assert expected(weights="random", seed=1) == {"weights": "random", "seed": 1}

    def test_a_grid_of_any_shape_is_read_row_by_row(self) -> None:
        grid = torch.arange(2 * 2 * 3 * 4.0).view(2, 2, 3, 4)  # (B, H, W, D)
        wrapped = RegionFeatures.of(grid)
        assert wrapped.features.shape == (2, 6, 4) and torch.equal(wrapped.features[0, 4], grid[0, 1, 1])
        assert RegionFeatures.of(wrapped) is wrapped
        assert torch.equal(RegionFeatures.of(wrapped.features).features, wrapped.features)

    def test_calibration_images_run_from_smooth_to_fine(self) -> None:
        images = calibration_images((3, 9, 27), (32, 48), seed=0)
        assert images.shape == (3, 3, 32, 48)
        steps = images.diff(dim=-1).abs().mean((1, 2, 3))
        assert (steps.diff() > 0).all()


class TestBackbone:
    @pytest.mark.slow
    def test_inceptions_grid_is_64_regions_of_2048(self) -> None:
        backbone = Backbone(
            architecture="inception_v3", node="Mixed_7c", weights="random", image_size=[299, 299], **HALF
        )
        assert (backbone.num_regions, backbone.feature_dim, backbone.grid) == (64, 2048, (8, 8))

    def test_a_grid_has_the_aspect_ratio_of_its_images_and_a_vector_is_one_region(self) -> None:
        options = {"architecture": "resnet18", "weights": "random", "image_size": [64, 96], **HALF}
        wide, vector = Backbone(node="layer2", **options), Backbone(node="flatten", **options)
        assert wide.grid == (8, 12) and wide.num_regions == 96 and wide.provenance["grid"] == [8, 12]
        assert vector.grid == (1, 1) and (vector.num_regions, vector.feature_dim) == (1, 512)

    def test_a_node_whose_output_is_a_sequence_of_tokens_is_refused(self) -> None:
        options = {"architecture": "vit_b_32", "weights": "random", "image_size": [224, 224], **HALF}
        with pytest.raises(InputError, match="'encoder.ln' of vit_b_32 has an output of shape \\(50, 768\\)"):
            Backbone(node="encoder.ln", **options)

    def test_pixels_run_from_minus_one_to_one(self, backbone: Backbone) -> None:
        inputs = []
        handle = backbone.network.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        backbone(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 64, 64))
        handle.remove()
        assert inputs[0][0].unique().tolist() == [-1.0]
        assert inputs[0][1].unique().item() == pytest.approx(1.0)

    def test_regions_run_row_by_row_from_the_top_left(self, backbone: Backbone) -> None:
        image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        image[..., :8, -8:] = 255
        difference = backbone(image) - backbone(torch.zeros_like(image))
        changed = RegionFeatures.of(difference).features.abs().sum(-1).view(8, 8)
        assert divmod(int(changed.argmax()), 8) in [(0, 7), (0, 6), (1, 7), (1, 6)]

    def test_random_weights_are_the_same_for_the_same_seed(self, backbone: Backbone) -> None:
        again, other = Backbone(**options_of(backbone)), Backbone(**options_of(backbone), seed=1)
        image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        assert torch.equal(again(image), backbone(image))
        assert not torch.equal(other(image), backbone(image))

    def test_calibrated_random_weights_keep_activations_in_range(self) -> None:
        deep = Backbone(architecture="resnet50", node="layer4", weights="random", image_size=[96, 96], **HALF)
        patches = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(9)) * 255
        values = deep(torch.nn.functional.interpolate(patches, (96, 96), mode="bilinear").to(torch.uint8))
        assert 0.05 < values.std() < 20

    def test_loader_processes_get_its_transform_without_its_network(self, backbone: Backbone) -> None:
        """Where processes are not forked they get it pickled, which a network that was cut cannot be."""
        image = Image.new("RGB", (20, 10), (255, 0, 0))
        alone = pickle.dumps(backbone.without_network().transform)
        assert len(alone) < 3000 and torch.equal(pickle.loads(alone)(image), backbone.transform(image))
        assert backbone.network is not None and list(backbone.buffers())

    def test_it_stays_frozen(self, backbone: Backbone) -> None:
        backbone.train()
        assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())

    def test_a_state_dict_may_lack_what_the_node_does_not_need(
        self, backbone: Backbone, tmp_path: Path
    ) -> None:
        state = backbone.network.state_dict()
        torch.save(state, tmp_path / "w.pth")
        options = {**options_of(backbone), "weights": str(tmp_path / "w.pth")}
        loaded = Backbone(**options)
        assert "fc" in loaded.missing_weights and "layer3.0.conv1" in loaded.missing_weights
        assert "layer2.0.conv1" not in loaded.missing_weights
        image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        assert torch.equal(loaded(image), backbone(image))
        assert loaded.provenance["weights"] == "w.pth" and len(loaded.provenance["weights_sha256"]) == 16
        state.pop("layer1.0.conv1.weight")
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(
            InputError, match="lacks 1 of the .*layer1.0.conv1.weight; choose an earlier node"
        ):
            Backbone(**options)

    def test_weights_of_another_architecture_are_refused(self, backbone: Backbone, tmp_path: Path) -> None:
        state = backbone.network.state_dict()
        state["conv1.weight"] = torch.zeros(1)
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(InputError, match="weights of another architecture"):
            Backbone(**{**options_of(backbone), "weights": str(tmp_path / "w.pth")})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"architecture": "inceptoin"}, "torchvision has no model 'inceptoin'"),
            ({"node": "layer9"}, "has no node 'layer9'; its outermost layers are conv1"),
            ({"weights": "IMAGENET"}, "has no weights 'IMAGENET'; choose one of IMAGENET1K_V1"),
            ({"weights": "gone.pth"}, "there is no weights file gone.pth"),
            ({"weights": __file__}, "no state dict that torch.load can read"),
        ],
    )
    def test_misspelt_options_name_what_there_is(
        self, backbone: Backbone, change: dict, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            Backbone(**{**options_of(backbone), **change})

    def test_weights_that_cannot_be_downloaded_name_their_address(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(*_: object, **__: object) -> None:
            raise OSError("no network")

        monkeypatch.setattr(weights_module.torchvision.models, "get_model", offline)
        with pytest.raises(InputError, match=r"could not be downloaded \(no network\); download https://"):
            build_published("resnet18", "IMAGENET1K_V1")


def options_of(backbone: Backbone) -> dict[str, Any]:
    """Constructor options of a backbone with seed 0."""
    recorded = backbone.provenance
    return {key: recorded[key] for key in recorded if key not in ("grid", "seed")}


def image_files(folder: Path, count: int, seed: int = 0) -> dict[str, Path]:
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    paths = {f"p{index}": folder / f"p{index}.png" for index in range(count)}
    for path in paths.values():
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return paths


class TestExtraction:
    def test_a_bad_image_is_reported_and_left_out_and_tried_again_later(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        images = image_files(tmp_path / "in", 5)
        good = images["p2"].read_bytes()
        images["p2"].write_bytes(b"")
        report = extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        assert [name for name, _ in report.unreadable] == ["p2"] and report.done_now == 4
        assert "p2" not in FeatureCache(tmp_path / "f.h5")
        images["p2"].write_bytes(good)
        again = extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        assert (again.done_before, again.done_now, again.unreadable) == (4, 1, [])
        extract(backbone, images, tmp_path / "uninterrupted.h5", batch_size=2, num_workers=0)
        assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "uninterrupted.h5").read_bytes()

    def test_nothing_to_do_changes_nothing(self, tmp_path: Path, backbone: Backbone) -> None:
        images = image_files(tmp_path / "in", 3)
        extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        before = (tmp_path / "f.h5").read_bytes()
        assert extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0).done_now == 0
        assert (tmp_path / "f.h5").read_bytes() == before

    @pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (1e9, 0)])
    def test_free_memory_is_returned_now_and_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
    ) -> None:
        calls: list[None] = []
        monkeypatch.setattr(extraction_module, "_RETURN_MEMORY_EVERY", seconds)
        monkeypatch.setattr(extraction_module, "_return_free_memory", lambda: calls.append(None))
        extractor, images = MeanColours(image_size=(6, 6)), image_files(tmp_path, 3)
        report = extract(extractor, images, tmp_path / "a.h5", batch_size=1, num_workers=0)
        assert report.done_now == 3 and len(calls) == times

    def test_free_memory_is_returned_where_the_c_library_can(self) -> None:
        calls: list[int] = []
        extraction_module._return_free_memory(lambda _: SimpleNamespace(malloc_trim=calls.append))
        assert calls == [0]
        extraction_module._return_free_memory(lambda _: SimpleNamespace())

    def test_corrupt_rows_are_repaired_on_request(self, tmp_path: Path, backbone: Backbone) -> None:
        images = image_files(tmp_path / "in", 3)
        extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        before = (tmp_path / "f.h5").read_bytes()
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            file["features"][1] = 0
        extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0, repair=True)
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_only_a_cache_that_lacks_images_builds_the_extractor(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        built = []

        def build() -> Backbone:
            built.append(1)
            return backbone

        images, run = image_files(tmp_path / "in", 3), {"batch_size": 2, "num_workers": 0}
        images["p1"].write_bytes(b"")
        first = extract_missing(build, images, tmp_path / "f.h5", **run)
        assert first is not None and first.done_now == 2 and len(first.unreadable) == 1
        again = extract_missing(build, images, tmp_path / "f.h5", **run)
        assert again == (3, 2, 0, [("p1", f"{images['p1']}: the file is empty (0 bytes)")], again.seconds)
        images["p1"].write_bytes(images["p0"].read_bytes())
        assert extract_missing(build, images, tmp_path / "f.h5", **run).done_now == 1 and len(built) == 2
        assert extract_missing(build, images, tmp_path / "f.h5", **run) is None and len(built) == 2
        more = {**images, **image_files(tmp_path / "more", 1), "p9": image_files(tmp_path / "more", 1)["p0"]}
        assert extract_missing(build, more, tmp_path / "f.h5", **run) is not None and len(built) == 3
        assert "p9" in FeatureCache(tmp_path / "f.h5")

    def test_the_cache_knows_the_grid_of_its_extractor(self, tmp_path: Path, backbone: Backbone) -> None:
        extract(backbone, image_files(tmp_path / "in", 1), tmp_path / "f.h5", batch_size=1, num_workers=0)
        cache = FeatureCache(tmp_path / "f.h5")
        assert cache.grid == backbone.grid == (8, 8)
        assert cache.shape == (backbone.num_regions, backbone.feature_dim) == (64, 128)

    def test_changed_pictures_are_extracted_again_with_a_warning(
        self, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also where the size of the file stays the same."""
        images, run = image_files(tmp_path / "in", 3), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        content = images["p1"].read_bytes()
        images["p1"].write_bytes(images["p2"].read_bytes()[: len(content)].ljust(len(content), b"x"))
        with pytest.raises(
            InputError, match="1 pictures have changed .* first .*p1.png; run python -m captioning"
        ):
            FeatureCache(tmp_path / "f.h5").check_pictures(images)
        assert extract_missing(lambda: backbone, images, tmp_path / "f.h5", **run).done_now == 1
        assert "1 images have changed since their extraction, first p1" in caplog.text
        FeatureCache(tmp_path / "f.h5").check_pictures(images)
        read = FeatureCache(tmp_path / "f.h5").read(["p1", "p2"])
        assert np.array_equal(read[0], read[1])

    def test_touched_pictures_are_the_same(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "in", 2), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        os.utime(images["p1"], ns=(1, 1))
        before = Pictures(images).compare(FeatureCache(tmp_path / "f.h5").recorded(images))
        assert before.same_content.keys() == {"p1"} and not before.changed
        assert extract_missing(lambda: pytest.fail("built"), images, tmp_path / "f.h5", **run) is None
        after = Pictures(images).compare(FeatureCache(tmp_path / "f.h5").recorded(images))
        assert not after.same_content, "the new time is recorded, so that the file need not be read again"

    def test_pictures_of_another_place_with_the_same_names_are_refused(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        images, run = image_files(tmp_path / "A", 3), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        before = (tmp_path / "f.h5").read_bytes()
        others = image_files(tmp_path / "B", 3, seed=1)
        message = (
            f"holds features of other pictures: its image p0 is {images['p0']}, but here it is "
            f"{others['p0']}, which has another content .3 such pictures.; give features.path="
        )
        for use in (
            lambda: extract(backbone, others, tmp_path / "f.h5", **run),
            lambda: extract_missing(lambda: backbone, others, tmp_path / "f.h5", **run),
            lambda: FeatureCache(tmp_path / "f.h5").check_pictures(others),
        ):
            with pytest.raises(InputError, match=message):
                use()
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_a_data_set_that_has_moved_keeps_its_features(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "A", 4), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        (tmp_path / "A").rename(tmp_path / "B")
        moved = {image_id: tmp_path / "B" / path.name for image_id, path in images.items()}
        FeatureCache(tmp_path / "f.h5").check_pictures(moved)
        assert extract_missing(lambda: pytest.fail("built"), moved, tmp_path / "f.h5", **run) is None
        assert FeatureCache(tmp_path / "f.h5").recorded(moved)["p0"].path == str(moved["p0"])
        # Among pictures that have moved, one with another content has changed.
        (tmp_path / "B").rename(tmp_path / "C")
        moved = {image_id: tmp_path / "C" / path.name for image_id, path in images.items()}
        Image.new("RGB", (20, 20)).save(moved["p3"])
        assert extract(backbone, moved, tmp_path / "f.h5", **run).done_now == 1
        assert len(verify(tmp_path / "f.h5").good) == 4

    def test_a_link_is_the_same_place(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "A", 2), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        (tmp_path / "B").symlink_to(tmp_path / "A")
        linked = {image_id: tmp_path / "B" / path.name for image_id, path in images.items()}
        found = Pictures(linked).compare(FeatureCache(tmp_path / "f.h5").recorded(linked))
        assert not any(found)

    def test_a_path_that_no_longer_fits_gets_a_wider_file(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "A", 2), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        deep = tmp_path.joinpath(*["x" * 100] * 4)
        deep.parent.mkdir(parents=True)
        (tmp_path / "A").rename(deep)
        moved = {image_id: deep / path.name for image_id, path in images.items()}
        assert extract(backbone, moved, tmp_path / "f.h5", **run).done_now == 0
        FeatureCache(tmp_path / "f.h5").check_pictures(moved)
        assert len(verify(tmp_path / "f.h5").good) == 2

    def test_features_may_be_used_without_their_pictures(
        self, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
    ) -> None:
        images, run = image_files(tmp_path / "A", 2), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        rmtree(tmp_path / "A")
        FeatureCache(tmp_path / "f.h5").check_pictures(images)
        assert not caplog.records
        gone = {image_id: tmp_path / "B" / path.name for image_id, path in images.items()}
        FeatureCache(tmp_path / "f.h5").check_pictures(gone)
        assert (
            f"2 pictures are not there, first {gone['p0']}; their features, made of {images['p0']}, are used"
            in caplog.text
        )
        assert extract_missing(lambda: pytest.fail("built"), gone, tmp_path / "f.h5", **run) is None

    def test_missing_pictures_are_tried_and_reported_each_time(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        images, run = image_files(tmp_path / "in", 4), {"batch_size": 2, "num_workers": 0}
        for image_id in ("p1", "p2"):
            images[image_id].rename(tmp_path / image_id)
        built = []
        for attempt in range(3):
            report = extract_missing(lambda: built.append(1) or backbone, images, tmp_path / "f.h5", **run)
            assert [image_id for image_id, _ in report.unreadable] == ["p1", "p2"], attempt
        assert len(built) == 1
        (tmp_path / "p1").rename(images["p1"])
        report = extract_missing(lambda: backbone, images, tmp_path / "f.h5", **run)
        assert (report.done_before, report.done_now, len(report.unreadable)) == (2, 1, 1)
        (tmp_path / "p2").rename(images["p2"])
        assert extract_missing(lambda: backbone, images, tmp_path / "f.h5", **run).done_now == 1
        assert len(FeatureCache(tmp_path / "f.h5")) == 4

    def test_a_batch_of_which_only_unreadable_images_are_to_do_is_not_computed(self, tmp_path: Path) -> None:
        images, run = image_files(tmp_path / "in", 4), {"batch_size": 2, "num_workers": 0}
        images["p1"].write_bytes(b"")
        colours = MeanColours(image_size=(8, 8))
        extract(colours, images, tmp_path / "f.h5", **run)
        colours.forward = lambda images: pytest.fail("computed")
        assert len(extract(colours, images, tmp_path / "f.h5", **run).unreadable) == 1

    def test_a_complete_cache_on_a_disk_that_cannot_be_written_is_used(
        self, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, run = image_files(tmp_path / "A", 2), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        (tmp_path / "f.h5.lock").unlink()
        (tmp_path / "A").rename(tmp_path / "B")
        moved = {image_id: tmp_path / "B" / path.name for image_id, path in images.items()}
        monkeypatch.setattr(extraction_module.os, "access", lambda *_: False)
        monkeypatch.setattr(extraction_module, "CacheWriter", lambda *_, **__: pytest.fail("written"))
        assert extract(backbone, moved, tmp_path / "f.h5", **run)[:3] == (2, 2, 0)
        assert extract_missing(lambda: pytest.fail("built"), moved, tmp_path / "f.h5", **run) is None
        assert files(tmp_path) == ["B", "f.h5"] and not (tmp_path / "f.h5.lock").exists()

    def test_damaged_records_are_extracted_again_without_being_asked(
        self, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
    ) -> None:
        images, run = image_files(tmp_path / "in", 3), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        before = (tmp_path / "f.h5").read_bytes()
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            records = file["rows"][:]
            records["image_id"][1] = b"p0"
            file["rows"][:] = records
        assert extract_missing(lambda: backbone, images, tmp_path / "f.h5", **run).done_now == 1
        assert "1 records were damaged" in caplog.text
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_features_that_float16_cannot_hold_name_the_image(self, tmp_path: Path) -> None:
        class Huge(MeanColours):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return super().forward(images) * 1e6

        images = image_files(tmp_path / "in", 1)
        with pytest.raises(InputError, match="image p0: the features have values that float16 cannot hold"):
            extract(Huge(image_size=(8, 8)), images, tmp_path / "f.h5", batch_size=1, num_workers=0)

    def test_the_summary_counts_images_and_lists_the_unreadable(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        Report(9, 2, 6, [("p4", "p4.jpg: no such file")], 3.0).log("f.h5")
        assert "f.h5: 9 images, 2 were there already, 6 extracted in 3 s (2.0 per second)" in caplog.text
        assert "1 images could not be read and are left out; they are tried again each time" in caplog.text
        assert "each time:\n  p4: p4.jpg: no such file" in caplog.text
        Report(30, 0, 0, [(f"p{i}", "no such file") for i in range(25)], 3.0).log("f.h5")
        assert "p19: no such file\n  and 5 more" in caplog.text

    def test_no_images_is_an_error(self, tmp_path: Path, backbone: Backbone) -> None:
        with pytest.raises(InputError, match="no image to extract"):
            extract(backbone, {}, tmp_path / "f.h5", batch_size=2, num_workers=0)

    @pytest.mark.slow
    def test_killed_at_any_moment_it_continues_to_the_same_file(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        images = image_files(tmp_path / "in", 40)
        program = f"""
import time
from pathlib import Path
from captioning.features import Backbone, extract
backbone = Backbone(architecture="resnet18", node="layer2", weights="random", image_size=[64, 64],
                    mean=[0.5] * 3, std=[0.5] * 3)
images = {{p.stem: p for p in sorted(Path({str(tmp_path / "in")!r}).iterdir(), key=lambda p: int(p.stem[1:]))}}
def slowly(batches, total):
    for batch in batches:
        print("batch", flush=True)
        time.sleep(0.05)
        yield batch
extract(backbone, images, {str(tmp_path / "killed.h5")!r}, batch_size=4, num_workers=0, progress=slowly)
"""
        for batches in (1, 3):
            process = subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
            )
            assert process.stdout is not None
            for _ in range(batches):
                process.stdout.readline()
            time.sleep(0.02 * batches)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        assert not (tmp_path / "killed.h5").exists()
        extract(backbone, images, tmp_path / "uninterrupted.h5", batch_size=4, num_workers=0)
        report = extract(backbone, images, tmp_path / "killed.h5", batch_size=4, num_workers=0)
        assert 0 < report.done_before < 40
        assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "uninterrupted.h5").read_bytes()


def test_a_file_that_holds_a_tensor_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match="tensor.pth holds a Tensor, not a state dict"):
        read_state(tmp_path / "tensor.pth")
