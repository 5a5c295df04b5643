"""Several backbones as one extractor: the channels of all in one grid, and everything that files say of them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captioning import checkpoint, graphs, portable
from captioning.errors import InputError
from captioning.features import Backbone, CombinedBackbones, FrozenExtractor
from captioning.files import weights_name

COLOURS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
FINE = partial(
    Backbone, architecture="resnet18", node="layer1", weights="random", image_size=[64, 96], seed=1, **COLOURS
)
COARSE = partial(
    Backbone, architecture="resnet18", node="layer2", weights="random", image_size=[32, 48], **COLOURS
)


def build(**options: Any) -> CombinedBackbones:
    backbones = options.pop("backbones", {"fine": FINE, "coarse": COARSE})
    return CombinedBackbones(**{"backbones": backbones, "grid": [8, 12], "image_size": [64, 96], **options})


def options_of(image_size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    """Describe `build()` as a config does."""
    parts = {
        name: {"_target_": "captioning.features.Backbone", "_partial_": True, **part.keywords}
        for name, part in (("fine", FINE), ("coarse", COARSE))
    }
    target = "captioning.features.CombinedBackbones"
    return {"_target_": target, "backbones": parts, "grid": [8, 12], "image_size": list(image_size)}


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 96), generator=generator).to(torch.uint8)


class TestGrid:
    def test_channels_are_those_of_all_in_order(self, images: Tensor) -> None:
        extractor = build()
        assert (extractor.grid, extractor.num_regions, extractor.feature_dim) == ((8, 12), 96, 64 + 128)
        joined, fine = extractor(images), FINE()(images)  # (B, 16, 24, 64)
        means = fine.unflatten(1, (8, 2)).unflatten(3, (12, 2)).mean((2, 4))
        torch.testing.assert_close(joined[..., :64], means)

    def test_each_sees_the_picture_at_its_own_size(self) -> None:
        # Smooth, so that scaling on the way makes little difference.
        ramp = np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
        extractor, coarse = build(grid=[4, 6]), COARSE()
        picture = Image.fromarray(ramp)
        joined = extractor(extractor.transform(picture)[None])[..., 64:]
        alone = coarse(coarse.transform(picture)[None])
        assert (joined - alone).abs().mean() < 0.02 * alone.abs().mean()

    def test_cells_lie_where_they_lay(self) -> None:
        grey = torch.full((1, 3, 64, 96), 110, dtype=torch.uint8)
        changed = grey.clone()
        changed[..., 48:, 80:] = torch.tensor([255, 0], dtype=torch.uint8).repeat(8)
        extractor = build()
        difference = (extractor(changed) - extractor(grey)).abs().sum(-1)[0]
        assert difference[-2:, -2:].mean() > 10 * difference[:4, :6].mean()


class TestIdentity:
    def test_a_cache_records_what_was_expected_of_every_backbone(self) -> None:
        made = build().provenance
        expected = CombinedBackbones.expected_provenance(
            backbones={"fine": FINE, "coarse": COARSE}, grid=(8, 12), image_size=(64, 96)
        )
        assert expected.items() <= made.items()
        assert expected["fine.node"] == "layer1" and expected["coarse.class"] == "Backbone"
        assert made["backbones"] == ["fine", "coarse"] and made["fine.grid"] == [16, 24]

    def test_order_and_options_of_a_part_make_another_kind(self) -> None:
        def expected(**backbones: Any) -> dict[str, Any]:
            return CombinedBackbones.expected_provenance(
                backbones=backbones, grid=[8, 12], image_size=[64, 96]
            )

        ours = expected(fine=FINE, coarse=COARSE)
        assert ours != expected(coarse=COARSE, fine=FINE)
        assert ours != expected(fine=FINE, coarse=partial(COARSE, node="layer3"))

    def test_weights_of_parts_lose_and_gain_folders(self) -> None:
        options = {"backbones": {"a": {"weights": "/somewhere/net.pth"}, "b": {"weights": "random"}}}
        kept = checkpoint.renamed_weights(options, weights_name)
        assert kept == {"backbones": {"a": {"weights": "net.pth"}, "b": {"weights": "random"}}}
        assert options["backbones"]["a"]["weights"] == "/somewhere/net.pth"


class TestCheckpoints:
    def test_a_checkpoint_builds_it_from_what_it_says(self, images: Tensor) -> None:
        torch.testing.assert_close(checkpoint.build(options_of(), "extractor")(images), build()(images))

    def test_a_part_that_no_checkpoint_may_name_is_refused(self) -> None:
        options = options_of()
        options["backbones"]["coarse"]["_target_"] = "os.system"
        with pytest.raises(InputError, match=r"os\.system"):
            checkpoint.build(options, "extractor")

    def test_a_portable_file_brings_the_weights_of_all(self, images: Tensor) -> None:
        trained = build(backbones={"fine": partial(FINE, seed=7), "coarse": partial(COARSE, seed=8)})
        state = trained.used_tensors()
        assert {name.split(".")[1] for name in state} == {"0", "1"}
        again = portable.build_extractor({"features": {"extractor": options_of()}, "extractor_state": state})
        torch.testing.assert_close(again(images), trained(images))

    @pytest.mark.slow
    def test_it_becomes_one_onnx_graph(self, images: Tensor, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        extractor = build()
        graphs.export_backbone(extractor).save(tmp_path / "backbone.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        expected = extractor(images).flatten(1, 2).numpy()
        np.testing.assert_allclose(found, expected, atol=0.02, rtol=2e-3)  # stored as float16

    def test_a_part_without_tensors_needs_no_state_and_one_with_tensors_does(self, images: Tensor) -> None:
        state = build(backbones={"fine": FINE, "colours": COLOURS_ALONE}).used_tensors()
        again = build(backbones={"fine": partial(FINE, seed=5), "colours": COLOURS_ALONE}, state=state)
        torch.testing.assert_close(again(images)[..., :64], build()(images)[..., :64])
        assert build(backbones={"colours": COLOURS_ALONE}).used_tensors() == {}
        with pytest.raises(InputError, match=r"colours \(_Colours\) cannot be given the weights"):
            build(backbones={"colours": COLOURS_ALONE}, state={"backbones.0.network.weight": torch.ones(1)})

    def test_weights_without_an_owner_are_refused(self) -> None:
        with pytest.raises(InputError, match="has no weights of its own; put each file where"):
            portable.build_extractor({"features": {"extractor": options_of()}}, weights="net.pth")


class TestErrors:
    def test_no_backbones_or_too_many(self) -> None:
        for backbones in ({}, [FINE], None, dict.fromkeys(map("b{}".format, range(17)), FINE)):
            with pytest.raises(InputError, match=r"needed are 1 to 16 backbones"):
                build(backbones=backbones)

    def test_a_backbone_that_is_built_already(self) -> None:
        with pytest.raises(InputError, match=r"(?s)fine is Backbone\(.*needed is .* _partial_: true"):
            build(backbones={"fine": FINE()})

    @pytest.mark.parametrize("name", ["a.b", "", "two words", 1])
    def test_names_that_options_could_not_have(self, name: Any) -> None:
        with pytest.raises(InputError, match=r"has the name .*; needed is a word"):
            build(backbones={name: FINE})

    @pytest.mark.parametrize("grid", [[9], [0, 9], 9, ["9", 9], None])
    def test_a_grid_that_is_none(self, grid: Any) -> None:
        with pytest.raises(
            InputError, match=r"extractor\.grid is .*; needed are the numbers of rows and col"
        ):
            build(grid=grid)

    def test_a_function_is_no_backbone(self) -> None:
        with pytest.raises(InputError, match="needed is an extractor's class"):
            build(backbones={"fine": partial(print)})

    def test_an_option_that_a_part_does_not_have(self) -> None:
        with pytest.raises(InputError, match=r"backbones\.fine do not fit Backbone: .*'depth'"):
            build(backbones={"fine": partial(FINE, depth=3)})

    def test_a_grid_that_only_a_stranger_would_ask_for(self) -> None:
        with pytest.raises(InputError, match="grid = 100000; needed is a whole number up to 256"):
            checkpoint.build({**options_of(), "grid": [100_000, 100_000]}, "extractor")

    def test_a_backbone_without_a_grid(self) -> None:
        with pytest.raises(InputError, match=r"vectors \(_Vectors\) gives no grid"):
            build(backbones={"vectors": partial(_Vectors, image_size=[8, 8])})

    def test_an_error_of_a_part_says_where_its_options_stand(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"extractor\.backbones\.fine: there is no weights file"):
            build(backbones={"fine": partial(FINE, weights=str(tmp_path / "absent.pth"))})


class _Colours(FrozenExtractor):
    """The mean colour of each cell, without a network."""

    def __init__(self, *, image_size: list[int]) -> None:
        super().__init__(image_size=image_size)
        self.set_normalisation(COLOURS["mean"], COLOURS["std"])
        self.measure()

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(self.normalise(images), 8).permute(0, 2, 3, 1)  # (B, H, W, 3)


COLOURS_ALONE = partial(_Colours, image_size=[64, 96])


class _Vectors(FrozenExtractor):
    """Gives regions without places."""

    def __init__(self, *, image_size: list[int]) -> None:
        super().__init__(image_size=image_size)
        self.measure()

    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(2).mT[:, :3]  # (B, R, 3)
