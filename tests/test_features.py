"""The cache survives kills, records how it was made, and refuses what does not fit; images of every kind are read."""

import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
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
    read_image,
    verify,
)
from captioning.features import weights as weights_module
from captioning.features import writer as writer_module
from captioning.features.cache import Row
from captioning.features.frozen import calibration_images
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

    def test_a_row_is_made_again_when_its_image_file_has_another_size(self, tmp_path: Path) -> None:
        old, new = rows(2), rows(3)[2]
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE, sizes=[100, 200]) as writer:
            for row, content in enumerate(old):
                writer.write(row, content)
            writer.finish()
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE, sizes=[0, 200]) as writer:
            assert not writer.to_do.size and not writer.changed  # 0: unknown
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE, sizes=[100, 201]) as writer:
            assert writer.to_do.tolist() == [1] and writer.changed == ["b"]
            writer.write(1, new)
            writer.finish()
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE, sizes=[100, 201]) as writer:
            assert not writer.to_do.size
        read = FeatureCache(tmp_path / "f.h5").read(["a", "b"])
        assert np.array_equal(read, np.stack([old[0].features, new.features]))

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
        assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]

    def test_a_full_disk_keeps_the_finished_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, PROVENANCE) as writer:
            writer.write(0, rows(1)[0])
            writer.flush()

            def full(*_: object) -> int:
                raise OSError(errno.ENOSPC, "no space")

            monkeypatch.setattr(writer_module.os, "pwrite", full)
            with pytest.raises(InputError, match="the disk is full; finished rows are kept"):
                writer.write(1, rows(1)[0])
            monkeypatch.undo()
        assert verify(partial_path(tmp_path / "f.h5")).good == ["a"]

    def test_values_beyond_float16_are_refused(self, tmp_path: Path) -> None:
        with CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE) as writer:
            for bad in (1e6, np.nan, np.inf):
                with pytest.raises(InputError, match="float16"):
                    writer.write(0, Row(np.full(SHAPE, bad, np.float32), 2))

    def test_two_writers_of_one_file_are_refused(self, tmp_path: Path) -> None:
        with (
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE),
            pytest.raises(InputError, match="another process is writing"),
        ):
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE)

    def test_a_disk_that_is_too_small_is_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
        with pytest.raises(InputError, match="GB free; make room"):
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, PROVENANCE)
        assert not list(tmp_path.iterdir())

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


class TestImages:
    """Every kind of image file that people have."""

    def save(self, tmp_path: Path, mode: str, suffix: str, **options: object) -> Path:
        grey = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
        image = Image.fromarray(grey)
        if mode == "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 257)
        elif mode != "L":
            image = image.convert("RGB").convert(mode)
        path = tmp_path / f"{mode.replace(';', '')}{suffix}"
        image.save(path, **options)
        return path

    @pytest.mark.parametrize(
        ("mode", "suffix"),
        [("L", ".jpg"), ("CMYK", ".jpg"), ("P", ".png"), ("P", ".gif"), ("I;16", ".png"), ("I;16", ".tif"),
         ("RGBA", ".png"), ("LA", ".png"), ("1", ".png"), ("RGB", ".webp")],
    )  # fmt: skip
    def test_a_ramp_of_any_mode_becomes_the_same_rgb_ramp(
        self, tmp_path: Path, mode: str, suffix: str
    ) -> None:
        image = read_image(self.save(tmp_path, mode, suffix))
        assert image.mode == "RGB" and image.size == (40, 30)
        pixels = np.asarray(image).astype(float).mean((0, 2))
        assert pixels[:8].mean() < 60 and pixels[-8:].mean() > 195 and 90 < pixels.mean() < 165

    def test_transparent_pixels_become_white(self, tmp_path: Path) -> None:
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
        assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255

    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
        assert read_image(tmp_path / "turned.jpg").size == (20, 40)

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, "RGB", ".jpg")
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(InputError, match="not a readable image"):
            read_image(path)

    def test_empty_missing_and_foreign_files_are_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("hello")
        for name, message in (
            ("empty", "0 bytes"),
            ("text", "not a readable image"),
            ("none", "no such file"),
        ):
            with pytest.raises(InputError, match=f"{name}.jpg.*{message}"):
                read_image(tmp_path / f"{name}.jpg")


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


def image_files(folder: Path, count: int) -> dict[str, Path]:
    generator = np.random.default_rng(0)
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
        assert extract_missing(build, images, tmp_path / "f.h5", **run) is None and len(built) == 1
        more = {**images, **image_files(tmp_path / "more", 1), "p9": image_files(tmp_path / "more", 1)["p0"]}
        assert extract_missing(build, more, tmp_path / "f.h5", **run) is not None and len(built) == 2
        assert "p9" in FeatureCache(tmp_path / "f.h5")

    def test_the_cache_knows_the_grid_of_its_extractor(self, tmp_path: Path, backbone: Backbone) -> None:
        extract(backbone, image_files(tmp_path / "in", 1), tmp_path / "f.h5", batch_size=1, num_workers=0)
        cache = FeatureCache(tmp_path / "f.h5")
        assert cache.grid == backbone.grid == (8, 8)
        assert cache.shape == (backbone.num_regions, backbone.feature_dim) == (64, 128)

    def test_changed_images_are_extracted_again_with_a_warning(
        self, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
    ) -> None:
        images, run = image_files(tmp_path / "in", 2), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "f.h5", **run)
        Image.new("RGB", (20, 20)).save(images["p1"])
        assert extract(backbone, images, tmp_path / "f.h5", **run).done_now == 1
        assert "1 images have changed since their extraction, first p1" in caplog.text

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
        assert "1 images could not be read and are left out:\n  p4: p4.jpg: no such file" in caplog.text

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
