"""A portable file captions as its run does and needs nothing else; what it cannot bring along is refused."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.graphs import main as compare_graphs
from captioning import checkpoint, evaluate, export, portable
from captioning.cli.main import COMMANDS
from captioning.data import CaptionDataModule
from captioning.errors import InputError
from captioning.evaluation import datamodule_of
from captioning.features import (
    Backbone,
    BottomUpFiles,
    FrozenExtractor,
    RegionDetector,
    RegionFeatures,
    TimmBackbone,
)
from captioning.files import PHOTOGRAPHS, short_commit
from captioning.predictor import load
from captioning.training.assembly import build_data, build_module, load_weights, starting_point
from tests.conftest import compose_config
from tests.test_graphs import example

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
GREEDY = {"_target_": "captioning.decoding.greedy", "_partial_": True, "max_words": 8}


@pytest.fixture(scope="module")
def run_file(toy_root: Path, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the toy model after a few passes over its captions."""
    config = compose_config("train", *toy_overrides, "output_dir=none")
    data = build_data(config)
    torch.manual_seed(0)
    module = build_module(config, data)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for batch in [batch for _ in range(40) for batch in data.train_dataloader()]:
        optimizer.zero_grad()
        module.objective(module.model, batch).loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    torch.save({"captioning": module.metadata, "state_dict": module.state_dict(), "epoch": 0}, path)
    return path


@pytest.fixture(scope="module")
def pictures(toy_root: Path) -> list[Path]:
    return sorted((toy_root / "toy" / "images").glob("val_*.jpg"))


def options(*overrides: str) -> Any:
    return compose_config("export", *overrides)


def run_export(*overrides: str) -> None:
    export.main.__wrapped__(options(*overrides))


@pytest.fixture(scope="module")
def file(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "toy.captioner"
    run_export(f"checkpoint={run_file}", f"output={path}", "card=flickr8k")
    return path


class TestCaptions:
    def test_captions_are_those_of_the_run(self, file: Path, run_file: Path, pictures: list[Path]) -> None:
        ours, theirs = (load(path)(pictures) for path in (file, run_file))  # with beam search, both
        assert [caption.text for caption in ours] == [caption.text for caption in theirs]
        assert len({caption.text for caption in ours}) > 1
        for one, other in zip(ours, theirs, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=0.05)

    def test_in_full_precision_nothing_changes_at_all(
        self, run_file: Path, pictures: list[Path], tmp_path: Path
    ) -> None:
        run_export(f"checkpoint={run_file}", f"output={tmp_path / 'toy.captioner'}", "half=false")
        ours, theirs = (load(path)(pictures) for path in (tmp_path / "toy.captioner", run_file))
        assert [(one.text, one.log_prob) for one in ours] == [(one.text, one.log_prob) for one in theirs]

    def test_it_decodes_as_it_was_told_to_when_it_was_written(
        self, run_file: Path, pictures: list[Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "short.captioner"
        run_export(f"checkpoint={run_file}", f"output={path}", "decoding=greedy", "decoding.max_words=2")
        assert all(len(caption.words) == 2 for caption in load(path)(pictures))

    def test_words_that_the_model_lacks_are_refused_before_anything_is_written(
        self, run_file: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="do not include 'giraffe'"):
            run_export(
                f"checkpoint={run_file}", f"output={tmp_path / 'a.captioner'}", "decoding.required=[giraffe]"
            )
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_onnx_graphs_caption_as_the_run_does(
        self,
        run_file: Path,
        pictures: list[Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = tmp_path / "graphs"
        run_export(f"checkpoint={run_file}", f"output={folder}", "format=onnx", "card=flickr8k")
        assert f"{folder / 'step.onnx'}: " in capsys.readouterr().out
        theirs = example()(folder)
        assert "research and education" in theirs.about["card"]["licence"]
        found = {theirs.text(theirs.beam(theirs.features(path))) for path in pictures}
        assert len(found) > 1
        options = ["--checkpoint", run_file, "--photographs", *pictures]
        monkeypatch.setattr(sys, "argv", ["graphs", *map(str, [folder, *options])])
        compare_graphs()
        assert "8 greedy, 8 beam" in capsys.readouterr().out.splitlines()[-1]

    def test_a_portable_file_is_a_member_of_an_ensemble(
        self, file: Path, run_file: Path, pictures: list[Path]
    ) -> None:
        both, alone = (load(path, decoding="beam")(pictures[:3]) for path in ([file, run_file], file))
        assert [caption.text for caption in both] == [caption.text for caption in alone]


class TestFile:
    def test_written_again_it_has_the_same_bytes(self, file: Path, tmp_path: Path) -> None:
        again = tmp_path / "again.captioner"
        run_export(f"checkpoint={file}", f"output={again}")
        assert again.read_bytes() == file.read_bytes()

    def test_it_is_read_without_running_code_and_tells_nothing_of_the_machine(
        self, file: Path, toy_root: Path
    ) -> None:
        content = torch.load(file, weights_only=True)
        assert set(content) == {"captioning", "state_dict"}
        assert str(toy_root).encode() not in file.read_bytes()

    def test_matrices_are_halved_where_they_fit_and_vectors_are_not(self, file: Path) -> None:
        content = torch.load(file, weights_only=True)
        state = {**content["state_dict"], **content["captioning"]["extractor_state"]}
        for name, part in state.items():
            assert part.dtype == (torch.float16 if part.squeeze().dim() > 1 else torch.float32), name
        kept = portable._half(torch.tensor([[1e-9, 7e4], [0.0, 1.0]]))
        assert kept.dtype == torch.float32 and kept[0, 1] == 7e4
        view = torch.zeros(1000, 2)[:1]
        copied = portable._copied({"part": view[0]}, half=False)["part"]
        assert copied.untyped_storage().nbytes() == 8

    def test_only_the_weights_up_to_the_node_are_in_it(self, file: Path) -> None:
        state = torch.load(file, weights_only=True)["captioning"]["extractor_state"]
        assert {name.split(".")[1] for name in state if "." in name} == {
            "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"
        }  # fmt: skip

    def test_an_ensemble_is_refused(self, run_file: Path) -> None:
        with pytest.raises(InputError, match=r"must be one; an ensemble does not fit in a file"):
            run_export(f"checkpoint=[{run_file},{run_file}]", "output=a.captioner")

    def test_what_does_not_go_with_the_format_is_refused(self, run_file: Path) -> None:
        given = [f"checkpoint={run_file}", "output=a.captioner"]
        for option, message in (
            ("format=tflite", "format=tflite must be captioner or onnx"),
            ("format=onnx", "output=a.captioner is a name for format=captioner; give a folder's"),
            ("precision=int8", "precision=int8 goes with format=onnx; a .captioner file is float16"),
        ):
            with pytest.raises(InputError, match=message):
                run_export(*given, option)

    def test_the_name_must_end_as_such_files_do(self, run_file: Path) -> None:
        with pytest.raises(InputError, match=r"output=a.ckpt must end in .captioner"):
            run_export(f"checkpoint={run_file}", "output=a.ckpt")


class TestCard:
    def test_it_holds_what_was_given_and_the_scores_with_split_and_commit(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scores = {
            "references": "toy", "commit": "0123456789ab", "num_images": 8, "options": {"split": "val"}, "decoding": GREEDY,
            "systems": [{"name": "run", "scores": {"cider_d": {"score": 51.2, "low": 50.0, "high": 52.0}}}],
        }  # fmt: skip
        (tmp_path / "scores.json").write_text(json.dumps(scores))
        path = tmp_path / "a.captioner"
        run_export(f"checkpoint={file}", f"output={path}", f"scores=[{tmp_path / 'scores.json'}]")
        card = checkpoint.read(path)["captioning"]["card"]
        assert card["scores"][0]["split"] == "val" and card["scores"][0]["scores"]["cider_d"]["score"] == 51.2
        assert card["commit"] and "research and education" in card["licence"] and card["limits"]
        printed = capsys.readouterr().out
        assert '"split": "val"' in printed and '"cider_d": {"score": 51.2' in printed and "MB" in printed
        assert card["scores"][0]["commit"] == "0123456789ab" != card["commit"]
        (tmp_path / "scores.json").write_text(json.dumps({**scores, "commit": None}))
        assert "commit" not in export.read_scores(tmp_path / "scores.json")

    def test_whatever_a_strangers_card_holds_is_printed_without_harm(self) -> None:
        card = {"scores": 5, "a": [{}], "b": {"c": None}, "summary": None}
        assert list(export.card_lines(card)) == ["scores: 5", "a: [{}]", "b: {'c': None}"]
        assert list(export.card_lines({"scores": [torch.zeros(1)]})) == ['scores: "tensor([0.])"']

    @pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"systems": [1, 2]}', '{"systems": [1]}'])
    def test_a_file_that_is_no_scores_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(InputError, match="is no scores.json of one model"):
            export.read_scores(tmp_path / "s.json")

    def test_outside_of_a_checkout_there_is_no_commit(self, tmp_path: Path) -> None:
        assert short_commit(tmp_path) is None and short_commit()


def features_of(extractor: Any) -> Tensor:
    image = Image.radial_gradient("L").convert("RGB")
    with torch.no_grad():
        return RegionFeatures.of(extractor(extractor.transform(image)[None])).features


def brought_along(extractor: Any, options: Mapping[str, Any]) -> Any:
    """Round an extractor's tensors as `portable` does, and build another of them without its weights."""
    state = portable._copied(extractor.used_tensors(), half=True)
    extractor.load_state_dict({**extractor.state_dict(), **state})
    target = f"captioning.features.{type(extractor).__name__}"
    metadata = {
        "features": {"extractor": {"_target_": target, **options}},
        "extractor_state": state,
    }
    return portable.build_extractor(metadata)


RESNET = {"architecture": "resnet18", "node": "layer2", "image_size": [64, 64], **HALF}
EFFICIENTNET = {"architecture": "tf_efficientnet_lite0", "node": 1, "image_size": [64, 96]}
VIT = {"architecture": "vit_tiny_patch16_224", "node": 1, "image_size": [64, 96]}
DETECTOR = {
    "architecture": "fasterrcnn_mobilenet_v3_large_320_fpn", "image_size": [64, 96], "min_regions": 3,
    "max_regions": 5, "score_threshold": 0.2, "nms_threshold": 0.5, "num_proposals": 10,
}  # fmt: skip


class TestExtractor:
    @pytest.mark.parametrize(
        ("extractor", "options", "gone"),
        [
            (Backbone, RESNET, "gone.pth"),
            (TimmBackbone, EFFICIENTNET, "pypi:gone"),
            (TimmBackbone, VIT, "gone.safetensors"),
            (RegionDetector, DETECTOR, "gone.pth"),
        ],
    )
    def test_each_kind_is_built_without_its_weights(
        self, extractor: type[FrozenExtractor], options: dict[str, Any], gone: str
    ) -> None:
        original: Any = extractor(weights="random", seed=1, **options)
        built = brought_along(original, {"weights": gone, **options})
        assert torch.equal(features_of(built), features_of(original))
        assert (built.num_regions, built.feature_dim, built.grid) == (
            original.num_regions, original.feature_dim, original.grid
        )  # fmt: skip
        assert built.provenance["weights"] == gone and "weights_sha256" not in built.provenance

    def test_a_detector_of_other_classes_keeps_their_number(self) -> None:
        original = RegionDetector(weights="random", **DETECTOR)
        predictor = original.network.roi_heads.box_predictor
        predictor.cls_score = nn.Linear(1024, 4)
        predictor.bbox_pred = nn.Linear(1024, 16)
        built = brought_along(original, {"weights": "mine.pth", **DETECTOR})
        assert built.network.roi_heads.box_predictor.cls_score.out_features == 4

    def test_the_epsilon_of_the_published_detector_comes_along(self) -> None:
        for weights in ("COCO_V1", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "mine.pth"):
            options = {**DETECTOR, "architecture": "fasterrcnn_resnet50_fpn"}
            built = RegionDetector(weights=weights, state={}, **options)
            epsilons = {norm.eps for norm in built.modules() if isinstance(norm, nn.BatchNorm2d)}
            assert epsilons == ({1e-5} if weights == "mine.pth" else {0.0}), weights

    def test_the_normalisation_that_timm_stated_comes_along(self) -> None:
        original = TimmBackbone(weights="random", mean=[0.1] * 3, std=[0.2] * 3, **VIT)
        built = brought_along(original, {"weights": "pretrained", **VIT})
        assert built._mean.flatten().tolist() == pytest.approx([25.5] * 3)

    def test_only_what_the_features_need_is_brought_along(self) -> None:
        extractor = TimmBackbone(weights="random", **VIT)
        used = extractor.used_tensors()
        assert {"network.patch_embed.proj.weight", "network.pos_embed", "network.norm.weight"} <= set(used)
        assert any(name.startswith("network.blocks.1.") for name in used)
        assert not any(name.startswith("network.blocks.2.") for name in used)

    def test_an_extractor_without_weights_needs_nothing(self) -> None:
        metadata = {
            "features": {"extractor": {"_target_": "tests.test_export.Colours", "image_size": [8, 8]}},
            "extractor_state": portable._copied(Colours(image_size=[8, 8]).used_tensors(), half=True),
        }
        assert portable.build_extractor(metadata, trust=["tests"]).feature_dim == 3

    def test_weights_of_the_users_choice_come_before_those_of_the_file(self, backbone: Backbone) -> None:
        state = portable._copied(backbone.used_tensors(), half=True)
        metadata = {
            "features": {
                "extractor": {"_target_": "captioning.features.Backbone", "weights": "x.pth", **RESNET}
            },
            "extractor_state": state,
        }
        with pytest.raises(InputError, match=r"there is no weights file nowhere.pth"):
            portable.build_extractor(metadata, weights="nowhere.pth")


class Colours(FrozenExtractor):
    """Without a network; stands for an extractor of the user's."""

    def __init__(self, *, image_size: list[int]) -> None:
        super().__init__(image_size=image_size)
        self.set_normalisation(**HALF)
        self.network = nn.AdaptiveAvgPool2d(2)
        self.measure()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images)).permute(0, 2, 3, 1)


class Learned(Colours):
    """With weights, and no way to be given them."""

    def __init__(self, *, image_size: list[int]) -> None:
        super().__init__(image_size=image_size)
        self.network = nn.Conv2d(3, 3, 4, stride=4)


class TestRefusals:
    def metadata(self, **more: Any) -> dict[str, Any]:
        extractor = {"_target_": "captioning.features.Backbone", "weights": "gone.pth", **RESNET}
        return {"features": {"extractor": extractor}, **more}

    def test_files_of_features_have_no_network(self, tmp_path: Path) -> None:
        extractor = {"_target_": "captioning.features.BottomUpFiles"}
        content = {"captioning": {"features": {"extractor": extractor}}}
        files = BottomUpFiles(files=[], num_regions=2, feature_dim=3)
        with pytest.raises(InputError, match="BottomUpFiles has no network that a portable file could bring"):
            portable.write(tmp_path / "a.captioner", content, files, decoding={}, card={})

    def test_an_extractor_that_takes_no_state_is_refused_before_anything_is_written(
        self, run_file: Path, tmp_path: Path
    ) -> None:
        content = checkpoint.read(run_file)
        options = {"_target_": "tests.test_export.Learned", "image_size": [8, 8]}
        content["captioning"]["features"]["extractor"] = options
        extractor = Learned(image_size=[8, 8])
        with pytest.raises(InputError, match="its constructor needs the argument state"):
            portable.write(
                tmp_path / "a.captioner", content, extractor, decoding={}, card={}, trust=["tests"]
            )
        assert not list(tmp_path.iterdir())

    def test_a_class_of_a_stranger_is_not_built(self) -> None:
        metadata = self.metadata(extractor_state={"a": torch.zeros(1)})
        metadata["features"]["extractor"]["_target_"] = "tests.test_export.Learned"
        with pytest.raises(InputError, match=r"names tests.test_export.Learned as its extractor"):
            portable.build_extractor(metadata)

    def test_options_that_an_extractor_does_not_have_are_refused(self) -> None:
        metadata = self.metadata(extractor_state={"a": torch.zeros(1)})
        metadata["features"]["extractor"]["colour"] = "red"
        with pytest.raises(InputError, match="the file's extractor can't be built as it says: TypeError"):
            portable.build_extractor(metadata)

    def test_numbers_that_are_not_finite_are_refused(self) -> None:
        with pytest.raises(InputError, match="extractor_state holds numbers that are not finite, in a"):
            portable.build_extractor(self.metadata(extractor_state={"a": torch.tensor([torch.nan])}))

    @pytest.mark.parametrize("state", ["text", [1], {"network.conv1.weight": 3}, {"a": [torch.zeros(1)]}])
    def test_what_is_no_mapping_of_tensors_is_refused(self, state: object) -> None:
        with pytest.raises(InputError, match="extractor_state is no mapping of tensors"):
            portable.build_extractor(self.metadata(extractor_state=state))

    def test_missing_and_misshapen_tensors_are_named(self, backbone: Backbone) -> None:
        state = portable._copied(backbone.used_tensors(), half=True)
        first = state.pop("network.bn1.weight")
        with pytest.raises(InputError, match=r"lacks 1 of the tensors .* first network.bn1.weight"):
            portable.build_extractor(self.metadata(extractor_state=state))
        wrong = {**state, "network.bn1.weight": first[:3]}
        with pytest.raises(InputError, match=r"portable file: network.bn1.weight has shape \(3,\)"):
            portable.build_extractor(self.metadata(extractor_state=wrong))

    def test_misshapen_tensors_of_timm_are_named_too(self) -> None:
        extractor = {"_target_": "captioning.features.TimmBackbone", "weights": "gone.pth", **EFFICIENTNET}
        state = {"network.conv_stem.weight": torch.zeros(1)}
        with pytest.raises(InputError, match=r"portable file: network.conv_stem.weight has shape \(1,\)"):
            portable.build_extractor({"features": {"extractor": extractor}, "extractor_state": state})

    def test_without_a_bundled_captioner_the_remedy_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(portable, "BUNDLED", tmp_path / "bundled.captioner")
        with pytest.raises(
            InputError, match=r"no captioner comes with this installation .* give checkpoint="
        ):
            portable.default_path()
        (tmp_path / "bundled.captioner").touch()
        assert portable.default_path() == tmp_path / "bundled.captioner"


class TestTraining:
    def test_a_run_begins_with_its_weights(
        self, file: Path, run_file: Path, toy_overrides: list[str], toy_data: CaptionDataModule
    ) -> None:
        config = compose_config("train", *toy_overrides, "output_dir=none", f"start_from={file}")
        start = starting_point(config, None)
        module = build_module(config, toy_data)
        assert start is not None
        load_weights(module, start, toy_data, str(file))
        for name, part in checkpoint.read(run_file)["state_dict"].items():
            assert torch.allclose(module.state_dict()[name], part, rtol=1e-3, atol=1e-6), name

    def test_there_is_no_training_to_resume(self, file: Path, toy_overrides: list[str]) -> None:
        config = compose_config("train", *toy_overrides, "output_dir=none", f"resume={file}")
        with pytest.raises(InputError, match=r"can't be resumed: it holds no loops.* give start_from="):
            starting_point(config, file)

    def test_evaluation_asks_for_data(self, file: Path) -> None:
        with pytest.raises(InputError, match=r"a portable file brings no data; give data=…"):
            datamodule_of(checkpoint.load(file), split="val")

    def test_it_is_scored_on_the_data_that_are_given(
        self, file: Path, toy_overrides: list[str], tmp_path: Path
    ) -> None:
        given = [option for option in toy_overrides if option.startswith("data")]
        options = ["data=toy", "features=toy", f"checkpoint={file}", f"output_dir={tmp_path}", "resamples=1"]
        config = compose_config("evaluate", *options, *[o for o in given if "batch_size" not in o])
        [evaluation] = evaluate.main.__wrapped__(config)
        assert len(evaluation.captions) == 8 and evaluation.scores["cider_d"].corpus > 0


def test_the_shipped_photographs_are_small_and_their_sources_are_named() -> None:
    sources = (PHOTOGRAPHS / "SOURCES.txt").read_text()
    found = sorted(PHOTOGRAPHS.glob("*.jpg"))
    assert len(found) == 3 and "creativecommons.org/licenses/by/2.0" in sources
    for path in found:
        assert path.name in sources and path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert image.mode == "RGB" and max(image.size) == 480


def test_the_bundled_captioner_is_small_and_says_what_it_knows() -> None:
    if not portable.BUNDLED.is_file():
        pytest.skip("this checkout has no bundled captioner")
    assert portable.BUNDLED.stat().st_size <= 25e6
    card = checkpoint.read(portable.BUNDLED)["captioning"]["card"]
    assert all(card[key] for key in ("summary", "data", "licence", "limits", "scores", "commit"))


ROOT = Path(__file__).parents[1]


def run(*line: object, cwd: Path) -> str:
    """Run a command with nothing of this checkout in its environment and no network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "https_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(part) for part in line], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh environment, into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("captioning", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, source)
    if not portable.BUNDLED.is_file():  # a checkout has none before it was trained
        shutil.copy(file, source / "captioning" / portable.BUNDLED.name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=source)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    # The dependencies are those of the environment that runs the tests; nothing is downloaded.
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    shutil.rmtree(source)
    return python.parent


@pytest.mark.slow
class TestWheel:
    def test_every_command_finds_its_options(self, installed: Path, tmp_path: Path) -> None:
        for name in COMMANDS:
            assert f"usage: captioning {name}" in run(installed / "captioning", name, "--help", cwd=tmp_path)
        code = "import captioning.files as f; print(f.CONF); print(sum(1 for _ in f.CONF.rglob('*.yaml')))"
        folder, count = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
        assert folder.startswith(str(installed.parent)) and folder.endswith("captioning/conf")
        assert int(count) == sum(1 for _ in (ROOT / "conf").rglob("*.yaml"))

    def test_a_shipped_photograph_is_captioned_in_an_empty_folder(
        self, installed: Path, tmp_path: Path
    ) -> None:
        [package] = (installed.parent / "lib").glob("python*/site-packages/captioning")
        photograph = package / "photographs" / "dog.jpg"
        out = run(installed / "captioning", "caption", f"image={photograph}", cwd=tmp_path)
        assert out.startswith(f"{photograph}: ") and len(out.split()) > 2
        assert not list(tmp_path.iterdir())
