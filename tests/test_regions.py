"""Detector regions: selected as in the paper, padded and counted correctly, and stored with their boxes."""

import base64
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from captioning.caption import save_picture
from captioning.data import draw_toy, read_toy
from captioning.decoding import greedy
from captioning.errors import InputError
from captioning.features import (
    Backbone,
    BottomUpFiles,
    FeatureCache,
    RegionDetector,
    RegionFeatures,
    check_names,
    extract,
    read_image,
    verify,
)
from captioning.features.bottom_up import read_bottom_up_tsv
from captioning.features.orders import ORDERS
from captioning.features.region_detector import CLASS_BIAS, select_regions
from captioning.predictor import load
from captioning.training import assemble
from tests.conftest import compose_config

SIZES = {
    "architecture": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "weights": "random",
    "image_size": [96, 128],
    "min_regions": 4,
    "max_regions": 40,
    # Random weights give every class a probability of about 1 in 91: this threshold separates their boxes.
    "score_threshold": 0.0135,
    "nms_threshold": 0.3,
    "num_proposals": 100,
}


@pytest.fixture(scope="module")
def detector() -> RegionDetector:
    return RegionDetector(**SIZES)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth, blank and noisy images: (5, 3, 96, 128) bytes."""
    generator = torch.Generator().manual_seed(3)
    patches = torch.rand(3, 3, 6, 8, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(patches, (96, 128), mode="bilinear")
    noise = torch.rand(1, 3, 96, 128, generator=generator) * 255
    return torch.cat([smooth, torch.zeros(1, 3, 96, 128), noise]).to(torch.uint8)


@pytest.fixture(scope="module")
def found(detector: RegionDetector, images: torch.Tensor) -> RegionFeatures:
    return detector(images)


@pytest.fixture(scope="module")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, scenes = tmp_path_factory.mktemp("toy"), {"train": 3, "val": 1, "test": 1}
    draw_toy(root, scenes, seed=0)
    records = read_toy(root, scenes, seed=0)
    return {record.image_id: record.path for record in records}


class TestSelection:
    """By hand: boxes 0 and 1 overlap by 9/11 > 0.3; box 2 lies apart; box 3 overlaps box 2 by 1/4 < 0.3."""

    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [26, 0, 36, 10.0]])
    probabilities = torch.tensor([[0.6, 0.1], [0.5, 0.3], [0.25, 0.1], [0.05, 0.15]])

    def select(self, **change: float) -> tuple[list[int], list[float]]:
        options = {"min_regions": 1, "max_regions": 4, "score_threshold": 0.2, "nms_threshold": 0.3, **change}
        chosen, confidence = select_regions(self.boxes, self.probabilities, **options)
        return chosen.tolist(), [round(value, 4) for value in confidence.tolist()]

    def test_a_box_suppressed_in_one_class_survives_in_another(self) -> None:
        # In class 0, box 0 (0.6) suppresses box 1 (0.5); in class 1, box 1 (0.3) suppresses box 0 (0.1).
        assert self.select() == ([0, 1, 2], [0.6, 0.3, 0.25])

    def test_boxes_of_low_confidence_fill_up_to_the_minimum(self) -> None:
        assert self.select(min_regions=4) == ([0, 1, 2, 3], [0.6, 0.3, 0.25, 0.15])

    def test_the_most_confident_are_kept_at_the_maximum(self) -> None:
        assert self.select(max_regions=2) == ([0, 1], [0.6, 0.3])

    def test_a_box_suppressed_in_every_class_counts_nothing_and_comes_last(self) -> None:
        probabilities = torch.tensor([[0.6, 0.4], [0.5, 0.3], [0.25, 0.1], [0.05, 0.15]])
        chosen, confidence = select_regions(
            self.boxes, probabilities, min_regions=4, max_regions=4, score_threshold=0.2, nms_threshold=0.3
        )
        assert chosen.tolist() == [0, 2, 3, 1] and confidence[-1] == 0

    def test_the_threshold_is_inclusive_and_the_overlap_limit_exclusive(self) -> None:
        assert self.select(score_threshold=0.25)[0] == [0, 1, 2]
        assert self.select(nms_threshold=0.9) == ([0, 1, 2], [0.6, 0.5, 0.25])

    def test_fewer_boxes_than_the_minimum_are_all_there_are(self) -> None:
        assert self.select(min_regions=30, max_regions=36)[0] == [0, 1, 2, 3]
        nothing = select_regions(
            torch.zeros(0, 4), torch.zeros(0, 3), min_regions=1, max_regions=2, score_threshold=0.2, nms_threshold=0.3
        )  # fmt: skip
        assert [len(part) for part in nothing] == [0, 0]


def test_orders_by_hand() -> None:
    boxes = torch.tensor([[0.5, 0, 0.9, 0.1], [0, 0, 1, 1], [0, 0, 0.2, 0.5]])  # right small, whole, left
    scores = torch.tensor([0.3, 0.2, 0.9])
    found = {name: order(boxes, scores).tolist() for name, order in ORDERS.items()}
    assert found["confidence"] == [2, 0, 1]
    assert found["area"] == [1, 2, 0]
    assert found["left_to_right"] == [2, 1, 0]
    assert sorted(found["random"]) == [0, 1, 2]
    assert found["random"] == ORDERS["random"](boxes, scores).tolist()
    other = boxes.clone()
    other[0, 0] = 0.4
    many, others = (part.repeat(9, 1) for part in (boxes, other))
    assert not torch.equal(
        ORDERS["random"](many, scores.repeat(9)), ORDERS["random"](others, scores.repeat(9))
    )


class TestRegionDetector:
    def test_shapes_and_counts_are_what_the_options_say(
        self, detector: RegionDetector, found: RegionFeatures
    ) -> None:
        assert (detector.num_regions, detector.feature_dim) == (40, 1024) == found.features.shape[1:]
        assert detector.grid is None and detector.has_boxes
        assert found.boxes.shape == (5, 40, 4) and found.scores.shape == (5, 40)
        assert ((found.counts >= 4) & (found.counts <= 40)).all()
        assert len(set(found.counts.tolist())) > 1, "the case should be ragged"

    def test_boxes_lie_in_the_image_and_have_an_area(self, found: RegionFeatures) -> None:
        boxes = found.boxes[found.mask]
        assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()

    def test_the_most_confident_come_first(self, found: RegionFeatures) -> None:
        assert (found.scores.diff(dim=1) <= 0).all() and found.scores.max() <= 1

    def test_another_order_stores_the_same_regions(self, images: torch.Tensor, found: RegionFeatures) -> None:
        turned = RegionDetector(**SIZES, order="left_to_right")(images)
        for row, count in enumerate(found.counts.tolist()):
            boxes = turned.boxes[row, :count]
            assert ((boxes[:, 0] + boxes[:, 2]).diff() >= 0).all()
            order = turned.scores[row, :count].argsort(descending=True, stable=True)
            torch.testing.assert_close(turned.scores[row, :count][order], found.scores[row, :count])
            sums = [part.features[row, :count].sum(-1).sort().values for part in (turned, found)]
            torch.testing.assert_close(*sums)

    def test_an_unknown_order_is_refused(self) -> None:
        with pytest.raises(InputError, match="order is 'size'; choose one of confidence, area"):
            RegionDetector(**SIZES, order="size")

    def test_beyond_the_count_all_is_zero_and_before_it_nothing(self, found: RegionFeatures) -> None:
        for part in (found.features, found.boxes, found.scores):
            assert not part[~found.mask].any()
        assert found.features[found.mask].any(-1).all()

    def test_a_fixed_number_is_always_full(self, images: torch.Tensor) -> None:
        fixed = RegionDetector(**{**SIZES, "min_regions": 36, "max_regions": 36})(images)
        assert fixed.counts.tolist() == [36] * 5 and fixed.mask.all() and fixed.features.any(-1).all()

    def test_the_whole_image_stands_in_for_missing_proposals(
        self, detector: RegionDetector, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(detector.network.rpn, "score_thresh", 2.0)
        alone = detector(images)
        assert alone.counts.min() >= 4 and (alone.boxes[alone.mask] == torch.tensor([0.0, 0, 1, 1])).all()

    def test_the_same_seed_gives_the_same_regions(self, images: torch.Tensor, found: RegionFeatures) -> None:
        again, other = RegionDetector(**SIZES)(images), RegionDetector(**SIZES, seed=1)(images)
        assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))
        assert not torch.equal(other.features, found.features)

    def test_other_images_in_the_batch_change_nothing(
        self, detector: RegionDetector, images: torch.Tensor, found: RegionFeatures
    ) -> None:
        for position in range(len(images)):
            alone = detector(images[position : position + 1])
            for one, all_of_them in zip(alone, found, strict=True):
                torch.testing.assert_close(one[0], all_of_them[position], atol=1e-3, rtol=1e-3)

    def test_features_differ_between_regions_and_images(self, found: RegionFeatures) -> None:
        values = found.features[found.mask]
        assert 0.01 < values.std() < 20 and values.std(0).mean() > 0.01

    def test_images_of_any_shape_become_one_size(self, detector: RegionDetector) -> None:
        for size in ((50, 200), (300, 40)):
            prepared = detector.transform(Image.new("RGB", size, (255, 0, 0)))
            assert prepared.shape == (3, 96, 128) and prepared.dtype == torch.uint8
            assert prepared[0].min() == 255 and prepared[1:].max() == 0

    def test_it_stays_frozen(self, detector: RegionDetector) -> None:
        detector.train()
        assert not detector.network.training and not any(p.requires_grad for p in detector.parameters())


class TestWeights:
    def test_a_state_dict_gives_what_its_network_gives(
        self, detector: RegionDetector, images: torch.Tensor, found: RegionFeatures, tmp_path: Path
    ) -> None:
        path = tmp_path / "w.pth"
        torch.save(detector.network.state_dict(), path)
        loaded = RegionDetector(**{**SIZES, "weights": str(path)})
        assert all(torch.equal(a, b) for a, b in zip(loaded(images), found, strict=True))
        assert loaded.provenance["weights"] == "w.pth" and len(loaded.provenance["weights_sha256"]) == 16

    def test_a_detector_of_other_classes_is_read(self, detector: RegionDetector, tmp_path: Path) -> None:
        state = detector.network.state_dict()
        for part, per_class in (("cls_score", 1), ("bbox_pred", 4)):
            for kind in ("weight", "bias"):
                name = f"roi_heads.box_predictor.{part}.{kind}"
                state[name] = state[name][: 8 * per_class]
        assert len(state[CLASS_BIAS]) == 8
        torch.save(state, tmp_path / "w.pth")
        few = RegionDetector(**{**SIZES, "weights": str(tmp_path / "w.pth")})
        assert few.network.roi_heads.box_predictor.cls_score.out_features == 8

    @pytest.mark.slow
    def test_a_copy_of_the_published_resnet50_is_read_as_torchvision_reads_it(self, tmp_path: Path) -> None:
        options = {**SIZES, "architecture": "fasterrcnn_resnet50_fpn"}
        state = RegionDetector(**options).network.state_dict()
        for name, eps in (("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 0.0), ("mine.pth", 1e-5)):
            torch.save(state, tmp_path / name)
            read = RegionDetector(**{**options, "weights": str(tmp_path / name)})
            assert {norm.eps for norm in read.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {eps}

    def test_files_that_do_not_fit_are_refused(self, detector: RegionDetector, tmp_path: Path) -> None:
        path, state = tmp_path / "w.pth", detector.network.state_dict()
        name = "backbone.body.0.0.weight"
        for change, message in (
            ({name: torch.zeros(1)}, f"{name} has shape \\(1,\\) but .* weights of another architecture"),
            ({name: None}, f"lacks 1 of the .*320_fpn needs, first {name}"),
        ):
            changed = {key: value for key, value in {**state, **change}.items() if value is not None}
            torch.save(changed, path)
            with pytest.raises(InputError, match=message):
                RegionDetector(**{**SIZES, "weights": str(path)})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"architecture": "resnet18"}, "no detector 'resnet18'; choose one of fasterrcnn_"),
            ({"weights": "COCO"}, "has no weights 'COCO'; choose one of COCO_V1"),
            ({"weights": "gone.pth"}, "there is no weights file gone.pth"),
            ({"weights": __file__}, "no state dict that torch.load can read"),
            ({"min_regions": 41}, "min_regions 41, max_regions 40 and num_proposals 100 must satisfy"),
            ({"num_proposals": 39}, "max_regions 40 and num_proposals 39 must satisfy"),
        ],
    )
    def test_wrong_options_name_what_there_is(self, change: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            RegionDetector(**{**SIZES, **change})


class TestExtraction:
    def test_boxes_scores_and_counts_come_back_from_the_cache(
        self, detector: RegionDetector, toy_images: dict[str, Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "f.h5"
        extract(detector, toy_images, path, batch_size=2, num_workers=0, autocast=False)
        assert len(verify(path).good) == 5
        cache = FeatureCache(path)
        first = list(toy_images)[:2]
        with Image.open(toy_images[first[0]]) as one, Image.open(toy_images[first[1]]) as two:
            found = detector(torch.stack([detector.transform(image.convert("RGB")) for image in (one, two)]))
        assert cache.counts(first).tolist() == found.counts.tolist()
        assert np.array_equal(cache.read(first), found.features.half().numpy())
        for position, image_id in enumerate(first):
            assert np.array_equal(cache.boxes(image_id), found.boxes[position].numpy())
            assert np.array_equal(cache.scores(image_id), found.scores[position].numpy())

    def test_a_resumed_run_gives_the_same_file(
        self, detector: RegionDetector, toy_images: dict[str, Path], tmp_path: Path
    ) -> None:
        class Stopped(Exception):
            pass

        def stop(batches: object, total: int) -> object:
            yield next(iter(batches))
            raise Stopped

        options = {"batch_size": 2, "num_workers": 0}
        extract(detector, toy_images, tmp_path / "whole.h5", **options)
        with pytest.raises(Stopped):
            extract(detector, toy_images, tmp_path / "broken.h5", **options, progress=stop)
        report = extract(detector, toy_images, tmp_path / "broken.h5", **options)
        assert report.done_before == 2 and report.done_now == 3
        assert (tmp_path / "broken.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()

    def test_bfloat16_leaves_boxes_sharp(self, detector: RegionDetector, images: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = detector(images)
        assert found.boxes.dtype == found.scores.dtype == found.features.dtype == torch.float32
        inner = found.boxes[found.mask]
        inner = inner[(inner > 0) & (inner < 1)]
        assert not torch.equal(inner, inner.bfloat16().float())

    def test_a_grid_has_neither_boxes_nor_a_mask(self, backbone: Backbone) -> None:
        found = RegionFeatures.of(backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
        assert found.mask is None and found.boxes is None and found.rows()[0].num_regions == 64

    def test_a_composed_detector_has_the_expected_provenance_of_its_options(self) -> None:
        overrides = [f"features.extractor.{key}={value}".replace(" ", "") for key, value in SIZES.items()]
        config = compose_config("train", "features=faster_rcnn", "output_dir=none", "data_root=d", *overrides)
        made = instantiate(config.features.extractor)
        options = {key: value for key, value in config.features.extractor.items() if key != "_target_"}
        expected = RegionDetector.expected_provenance(**options)
        assert made.provenance == {**expected, "seed": 0} and json.dumps(expected)


DIM = 3


def line(image_id: str, boxes: list[list[float]], features: np.ndarray, width: int = 200) -> bytes:
    columns = [base64.b64encode(np.asarray(part, "<f4").tobytes()) for part in (boxes, features)]
    return (
        b"\t".join([image_id.encode(), str(width).encode(), b"100", str(len(boxes)).encode(), *columns])
        + b"\r\n"
    )


BOXES = [[0, 0, 100, 50], [20, 10, 200, 100.5]]
FIRST, SECOND = np.arange(6).reshape(2, DIM), np.arange(7, 10).reshape(1, DIM)


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    """Three lines, the last one a repetition of the first image with other features."""
    path = tmp_path / "a.tsv"
    path.write_bytes(
        line("42", BOXES, FIRST) + line("7", BOXES[:1], SECOND, 100) + line("42", BOXES, FIRST + 50)
    )
    return path


def convert(path: Path, images: list[str], target: Path, **change: int) -> list[tuple[str, str]]:
    files = BottomUpFiles(files=[str(path)], **{"num_regions": 4, "feature_dim": DIM, **change})
    named = {image_id: Path(image_id) for image_id in images}
    return extract(files, named, target, batch_size=2, num_workers=0).unreadable


class TestBottomUp:
    def test_lines_are_read_with_boxes_as_fractions(self, tsv: Path) -> None:
        (image_id, row), (other, _), _ = read_bottom_up_tsv(tsv)
        assert (image_id, other, row.num_regions) == ("42", "7", 2)
        assert np.array_equal(row.features, FIRST) and not row.scores.any()
        np.testing.assert_allclose(row.boxes, [[0, 0, 0.5, 0.5], [0.1, 0.1, 1, 1]], rtol=1e-6)

    def test_files_become_our_cache_and_the_first_of_two_lines_counts(
        self, tsv: Path, tmp_path: Path
    ) -> None:
        assert convert(tsv, ["7", "42.jpg"], tmp_path / "f.h5") == []
        cache = FeatureCache(tmp_path / "f.h5")
        assert cache.counts(["42.jpg", "7"]).tolist() == [2, 1] and cache.varies_in_count and cache.has_boxes
        read = cache.read(["42.jpg", "7"])
        assert np.array_equal(read[0], [*FIRST, [0] * DIM, [0] * DIM]) and np.array_equal(
            read[1][0], SECOND[0]
        )
        assert cache.boxes("7")[0].tolist() == [0, 0, 1, 0.5] and not cache.boxes("7")[1:].any()
        assert len(verify(tmp_path / "f.h5").good) == 2

    def test_several_files_are_read_and_images_in_none_are_reported(self, tsv: Path, tmp_path: Path) -> None:
        more = tmp_path / "b.tsv"
        more.write_bytes(line("7", BOXES[:1], SECOND * 0) + line("9", BOXES[:1], SECOND))
        files = BottomUpFiles(files=[str(tsv), str(more)], num_regions=2, feature_dim=DIM)
        images = {image_id: Path(image_id) for image_id in ("9", "5", "7")}
        report = extract(files, images, tmp_path / "f.h5", batch_size=1, num_workers=0)
        assert report.unreadable == [("5", "none of the files has this image")] and report.done_now == 2
        assert FeatureCache(tmp_path / "f.h5").read(["7"])[0, 0].tolist() == SECOND[0].tolist()

    def test_images_that_files_cannot_tell_apart_are_refused(self, tsv: Path, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"images a/7.jpg and b/7.jpg would both be 7 in published files"
        ):
            convert(tsv, ["a/7.jpg", "b/7.jpg"], tmp_path / "f.h5")
        convert(tsv, ["a/7.jpg"], tmp_path / "one.h5")
        with pytest.raises(InputError, match=r"images a/7.jpg and b/7.jpg would both be 7"):
            convert(tsv, ["a/7.jpg", "b/7.jpg"], tmp_path / "one.h5")
        with pytest.raises(InputError, match=r"images a/7.jpg and b/7.jpg would both be 7"):  # of two shards
            check_names(
                BottomUpFiles(files=[str(tsv)], num_regions=4, feature_dim=DIM), ["a/7.jpg", "b/7.jpg"]
            )

    def test_rows_before_a_damaged_line_are_kept_and_a_better_copy_completes_them(
        self, tsv: Path, tmp_path: Path
    ) -> None:
        whole = tsv.read_bytes()
        tsv.write_bytes(line("1", BOXES, FIRST) + line("2", BOXES, FIRST) + b"7\t100\t100\t1\tAAA")
        with pytest.raises(InputError, match="a.tsv line 3: 5 columns, not the 6"):
            convert(tsv, ["1", "2", "7", "42"], tmp_path / "f.h5")
        tsv.write_bytes(whole + line("1", BOXES, FIRST * 0))
        files = BottomUpFiles(files=str(tsv), num_regions=4, feature_dim=DIM)
        images = {image_id: Path(image_id) for image_id in ("1", "2", "7", "42")}
        report = extract(files, images, tmp_path / "f.h5", batch_size=2, num_workers=0)
        assert (report.done_before, report.done_now, report.unreadable) == (2, 2, [])
        assert np.array_equal(FeatureCache(tmp_path / "f.h5").read(["1"])[0, :2], FIRST)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda good: good.replace(b"42", b"", 1)[: len(good) // 2],
                "line 2: 5 columns, not the 6: image_id",
            ),
            (
                lambda good: good[:-8] + b"\n",
                "line 2: the features are .* numbers, which is no multiple|line 2: ",
            ),
            (lambda good: good.replace(b"\t2\t", b"\t3\t"), "line 2: the boxes are 8 numbers, not 3 × 4"),
            (lambda good: good.replace(b"\t2\t", b"\ttwo\t"), "line 2: invalid literal for int"),
            (
                lambda good: good.replace(b"\t200\t", b"\t0\t"),
                "line 2: 2 boxes in an image of 0 × 100 pixels",
            ),
            (lambda good: good[:-6] + b"!!\r\n", "line 2: .*base64"),
            (lambda good: b"hello\n", "line 2: 1 columns"),
        ],
    )
    def test_damaged_lines_are_named(
        self, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
    ) -> None:
        path = tmp_path / "bad.tsv"
        path.write_bytes(line("1", BOXES, FIRST) + damage(line("42", BOXES, FIRST)))
        with pytest.raises(InputError, match=message):
            list(read_bottom_up_tsv(path))

    def test_rows_that_do_not_fit_name_the_remedy(self, tsv: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="42 has 2 × 3 features but .* at most 1 × 3; set .*=100"):
            convert(tsv, ["42"], tmp_path / "f.h5", num_regions=1)
        with pytest.raises(InputError, match="42 has 2 × 3 features but .* at most 4 × 2048"):
            convert(tsv, ["42"], tmp_path / "g.h5", feature_dim=2048)

    def test_no_files_and_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="set features.extractor.files="):
            list(BottomUpFiles(files=[], num_regions=4, feature_dim=DIM).read_rows({}))
        with pytest.raises(InputError, match="there is no file .*gone.tsv"):
            convert(tmp_path / "gone.tsv", ["1"], tmp_path / "f.h5")

    def test_new_images_are_refused(self) -> None:
        with pytest.raises(InputError, match="caption images of your own"):
            BottomUpFiles(files=[], num_regions=4, feature_dim=DIM).transform(Image.new("RGB", (4, 4)))

    def test_the_expected_provenance_is_that_of_the_files_whatever_their_names(self) -> None:
        config = compose_config("train", "features=bottom_up", "output_dir=none", "data_root=d")
        made = instantiate(config.features.extractor)
        assert (made.num_regions, made.feature_dim, made.grid) == (100, 2048, None)
        options = {key: value for key, value in config.features.extractor.items() if key != "_target_"}
        assert BottomUpFiles.expected_provenance(**{**options, "files": ["a.tsv"]}) == made.provenance
        assert made.provenance["architecture"] == "bottom_up" and json.dumps(made.provenance)

    @pytest.mark.parametrize(("order", "first"), [("stored", 0), ("area", 1), ("left_to_right", 0)])
    def test_rows_come_in_the_order_asked_for(
        self, tsv: Path, tmp_path: Path, order: str, first: int
    ) -> None:
        files = BottomUpFiles(files=[str(tsv)], num_regions=4, feature_dim=DIM, order=order)
        extract(files, {"42": Path("42")}, tmp_path / "f.h5", batch_size=1, num_workers=0)
        cache = FeatureCache(tmp_path / "f.h5")
        assert np.array_equal(cache.read(["42"])[0, :2], FIRST[[first, 1 - first]])
        np.testing.assert_allclose(cache.boxes("42")[first], [0, 0, 0.5, 0.5])
        assert cache.provenance["order"] == order

    def test_an_order_by_scores_that_the_files_lack_is_refused(self) -> None:
        with pytest.raises(InputError, match="published files have no scores"):
            BottomUpFiles(files=[], num_regions=4, feature_dim=DIM, order="confidence")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["up_down", "attentive_translator", "transformer"])
def test_a_model_trained_on_detector_regions_draws_its_boxes(
    toy_root: Path, toy_overrides: list[str], tmp_path: Path, family: str
) -> None:
    """This checks the wiring only: the detector's weights are random."""
    sizes = [o for o in toy_overrides if not o.startswith("model.")]
    detector = [f"features.extractor.{key}={value}".replace(" ", "") for key, value in SIZES.items()]
    options = [
        *sizes, "features=faster_rcnn", *detector, f"model={family}", "model.hidden_dim=16",
        "model.dropout=0", f"features.path={tmp_path / 'regions.h5'}", "prepare=true", f"output_dir={tmp_path}",
    ]  # fmt: skip
    assemble(compose_config("train", *options)).fit()
    captioner = load(tmp_path, decoding=partial(greedy, max_words=4))
    image = next((toy_root / "toy" / "images").glob("test_*.jpg"))
    save_picture(image, caption := captioner(read_image(image)), tmp_path / "attention.png")
    assert caption.boxes is not None and caption.attention is not None
    assert len(caption.boxes) == caption.attention.shape[1] and (tmp_path / "attention.png").stat().st_size
    np.testing.assert_allclose(caption.attention.sum(1), 1, atol=1e-3)
