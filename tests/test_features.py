"""The cache survives kills, tells what it holds, and refuses what does not fit; pictures of every kind are read."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    check_provenance,
    extract,
    read_image,
    verify,
)
from captioning.features import writer as writer_module
from captioning.features.cache import Row
from captioning.features.weights import read_state

SHAPE, MADE = (2, 3), {"node": "x"}


def rows(count: int, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    return [Row(generator.normal(size=SHAPE).astype(np.float16), 2) for _ in range(count)]


def write(path: Path, ids: list[str], content: list[Row], finish: bool = True) -> None:
    with CacheWriter(path, ids, SHAPE, MADE) as writer:
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
            assert json.loads(file.attrs["provenance"]) == MADE

    def test_an_unfinished_file_goes_on_and_equals_an_unbroken_one(self, tmp_path: Path) -> None:
        content = rows(5)
        write(tmp_path / "whole.h5", list("abcde"), content)
        write(tmp_path / "broken.h5", list("abcde"), content[:2], finish=False)
        assert not (tmp_path / "broken.h5").exists()
        with CacheWriter(tmp_path / "broken.h5", list("abcde"), SHAPE, MADE) as writer:
            assert writer.to_do.tolist() == [2, 3, 4]
        write(tmp_path / "broken.h5", list("abcde"), content)
        assert (tmp_path / "broken.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()

    def test_rows_since_the_last_flush_do_not_count(self, tmp_path: Path) -> None:
        writer = CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, MADE)
        writer.write(0, rows(1)[0])
        writer.close()
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, MADE) as again:
            assert again.to_do.tolist() == [0, 1]

    def test_added_images_keep_the_old_rows(self, tmp_path: Path) -> None:
        content = rows(3)
        write(tmp_path / "f.h5", ["a", "b"], content[:2])
        with CacheWriter(tmp_path / "f.h5", ["c", "b", "a"], SHAPE, MADE) as writer:
            assert [writer.image_ids[row] for row in writer.to_do] == ["c"]
            writer.write(int(writer.to_do[0]), content[2])
            writer.finish()
        read = FeatureCache(tmp_path / "f.h5").read(["a", "b", "c"])
        assert np.array_equal(read, np.stack([row.features for row in content]))
        assert len(verify(tmp_path / "f.h5").good) == 3

    def test_rows_that_are_not_asked_for_stay(self, tmp_path: Path) -> None:
        write(tmp_path / "f.h5", list("abc"), rows(3))
        before = (tmp_path / "f.h5").read_bytes()
        with CacheWriter(tmp_path / "f.h5", ["b"], SHAPE, MADE) as writer:
            assert not writer.to_do.size
            writer.finish()
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_a_picture_of_another_size_is_another_picture(self, tmp_path: Path) -> None:
        old, new = rows(2), rows(3)[2]
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, MADE, sizes=[100, 200]) as writer:
            for row, content in enumerate(old):
                writer.write(row, content)
            writer.finish()
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, MADE, sizes=[0, 200]) as writer:
            assert not writer.to_do.size and not writer.changed  # 0: not known
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, MADE, sizes=[100, 201]) as writer:
            assert writer.to_do.tolist() == [1] and writer.changed == ["b"]
            writer.write(1, new)
            writer.finish()
        with CacheWriter(tmp_path / "f.h5", ["a", "b"], SHAPE, MADE, sizes=[100, 201]) as writer:
            assert not writer.to_do.size
        read = FeatureCache(tmp_path / "f.h5").read(["a", "b"])
        assert np.array_equal(read, np.stack([old[0].features, new.features]))

    def test_boxes_and_counts_are_kept(self, tmp_path: Path) -> None:
        boxes, scores = np.random.rand(2, 4).astype(np.float32), np.array([0.9, 0.0], np.float32)
        row = rows(1)[0]._replace(num_regions=1, boxes=boxes, scores=scores)
        with CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, MADE, with_boxes=True) as writer:
            writer.write(0, row)
            writer.finish()
        cache = FeatureCache(tmp_path / "f.h5")
        assert cache.varies_in_count and cache.counts(["a"]).tolist() == [1]
        assert np.array_equal(cache.boxes("a"), boxes) and np.array_equal(cache.scores("a"), scores)
        assert verify(tmp_path / "f.h5").good == ["a"]

    def test_it_can_be_sent_to_another_process(self, tmp_path: Path) -> None:
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
            check_provenance("f.h5", MADE, {"node": "y"})

    def test_values_beyond_float16_are_refused(self, tmp_path: Path) -> None:
        with CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, MADE) as writer:
            for bad in (1e6, np.nan, np.inf):
                with pytest.raises(InputError, match="float16"):
                    writer.write(0, Row(np.full(SHAPE, bad, np.float32), 2))

    def test_two_writers_of_one_file_are_refused(self, tmp_path: Path) -> None:
        with (
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, MADE),
            pytest.raises(InputError, match="another process is writing"),
        ):
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, MADE)

    def test_a_disk_that_is_too_small_is_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
        with pytest.raises(InputError, match="GB free; make room"):
            CacheWriter(tmp_path / "f.h5", ["a"], SHAPE, MADE)
        assert not list(tmp_path.iterdir())

    def test_verify_finds_every_kind_of_damage(self, tmp_path: Path) -> None:
        path = tmp_path / "f.h5"
        content = rows(6)
        content[3] = Row(np.zeros(SHAPE, np.float16), 2)
        with CacheWriter(path, list("abcdef"), SHAPE, MADE) as writer:
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


class TestPictures:
    """Every kind of file that people have."""

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


class TestBackbone:
    def test_the_seeds_grid_is_64_regions_of_2048(self) -> None:
        backbone = Backbone(
            architecture="inception_v3", node="Mixed_7c", weights="random", image_size=[299, 299], mean=[0.5] * 3, std=[0.5] * 3
        )  # fmt: skip
        assert backbone.shape() == (64, 2048)

    def test_pixels_run_from_minus_one_to_one(self, backbone: Backbone) -> None:
        seen = []
        handle = backbone.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        backbone(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 64, 64))
        handle.remove()
        assert seen[0][0].unique().tolist() == [-1.0] and seen[0][1].unique().item() == pytest.approx(1.0)

    def test_regions_run_row_by_row_from_the_top_left(self, backbone: Backbone) -> None:
        picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        picture[..., :8, -8:] = 255
        blank = backbone(torch.zeros_like(picture))
        changed = (backbone(picture) - blank).abs().sum(-1).view(8, 8)
        assert divmod(int(changed.argmax()), 8) in [(0, 7), (0, 6), (1, 7), (1, 6)]

    def test_random_weights_are_the_same_for_the_same_seed(self, backbone: Backbone) -> None:
        config = {
            k: backbone.provenance[k]
            for k in ("architecture", "node", "weights", "image_size", "mean", "std")
        }
        again, other = Backbone(**config), Backbone(**config, seed=1)
        picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        assert torch.equal(again(picture), backbone(picture)) and not torch.equal(
            other(picture), backbone(picture)
        )

    def test_calibrated_random_weights_keep_activations_in_range(self) -> None:
        deep = Backbone(
            architecture="resnet50", node="layer4", weights="random", image_size=[96, 96], mean=[0.5] * 3, std=[0.5] * 3
        )  # fmt: skip
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
        config = {k: backbone.provenance[k] for k in ("architecture", "node", "image_size", "mean", "std")}
        loaded = Backbone(**config, weights=str(tmp_path / "w.pth"))
        assert "fc" in loaded.missing_weights and "layer3.0.conv1" in loaded.missing_weights
        assert "layer2.0.conv1" not in loaded.missing_weights
        picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        assert torch.equal(loaded(picture), backbone(picture))
        state.pop("layer1.0.conv1.weight")
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(InputError, match="lacks 1 of the .*layer1.0.conv1.weight"):
            Backbone(**config, weights=str(tmp_path / "w.pth"))

    def test_weights_of_another_architecture_are_refused(self, backbone: Backbone, tmp_path: Path) -> None:
        state = backbone.network.state_dict()
        state["conv1.weight"] = torch.zeros(1)
        torch.save(state, tmp_path / "w.pth")
        config = {k: backbone.provenance[k] for k in ("architecture", "node", "image_size", "mean", "std")}
        with pytest.raises(InputError, match="weights of another architecture"):
            Backbone(**config, weights=str(tmp_path / "w.pth"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"architecture": "inceptoin"}, "torchvision has no model 'inceptoin'"),
            ({"node": "layer9"}, "has no node 'layer9'; its outer layers are conv1"),
            ({"weights": "IMAGENET"}, "has no weights 'IMAGENET'; there are IMAGENET1K_V1"),
            ({"weights": "gone.pth"}, "there is no weights file gone.pth"),
            ({"weights": __file__}, "no state dict that torch.load can read"),
        ],
    )
    def test_misspelt_options_name_what_there_is(
        self, backbone: Backbone, change: dict, message: str
    ) -> None:
        config = {
            k: backbone.provenance[k]
            for k in ("architecture", "node", "weights", "image_size", "mean", "std")
        }
        with pytest.raises(InputError, match=message):
            Backbone(**{**config, **change})


def pictures(folder: Path, count: int) -> dict[str, Path]:
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = {f"p{index}": folder / f"p{index}.png" for index in range(count)}
    for path in paths.values():
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return paths


class TestExtraction:
    def test_a_bad_picture_is_reported_and_left_out_and_tried_again_later(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        images = pictures(tmp_path / "in", 5)
        good = images["p2"].read_bytes()
        images["p2"].write_bytes(b"")
        report = extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        assert [name for name, _ in report.unreadable] == ["p2"] and report.done_now == 4
        assert "p2" not in FeatureCache(tmp_path / "f.h5")
        images["p2"].write_bytes(good)
        again = extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        assert (again.done_before, again.done_now, again.unreadable) == (4, 1, [])
        extract(backbone, images, tmp_path / "unbroken.h5", batch_size=2, num_workers=0)
        assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "unbroken.h5").read_bytes()

    def test_nothing_to_do_changes_nothing(self, tmp_path: Path, backbone: Backbone) -> None:
        images = pictures(tmp_path / "in", 3)
        extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        before = (tmp_path / "f.h5").read_bytes()
        assert extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0).done_now == 0
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_corrupt_rows_are_repaired_on_request(self, tmp_path: Path, backbone: Backbone) -> None:
        images = pictures(tmp_path / "in", 3)
        extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        before = (tmp_path / "f.h5").read_bytes()
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            file["features"][1] = 0
        extract(backbone, images, tmp_path / "f.h5", batch_size=2, num_workers=0, repair=True)
        assert (tmp_path / "f.h5").read_bytes() == before

    def test_no_images_is_an_error(self, tmp_path: Path, backbone: Backbone) -> None:
        with pytest.raises(InputError, match="no image to extract"):
            extract(backbone, {}, tmp_path / "f.h5", batch_size=2, num_workers=0)

    def test_killed_at_any_moment_it_goes_on_to_the_same_file(
        self, tmp_path: Path, backbone: Backbone
    ) -> None:
        images = pictures(tmp_path / "in", 40)
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
        extract(backbone, images, tmp_path / "unbroken.h5", batch_size=4, num_workers=0)
        report = extract(backbone, images, tmp_path / "killed.h5", batch_size=4, num_workers=0)
        assert 0 < report.done_before < 40
        assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "unbroken.h5").read_bytes()


def test_a_file_that_holds_a_tensor_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match="tensor.pth holds a Tensor, not a state dict"):
        read_state(tmp_path / "tensor.pth")
