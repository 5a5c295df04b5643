"""ONNX graphs caption as the model does: written by `graphs`, decoded by the example, which knows no torch."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor

from captioning import graphs
from captioning.decoding import Forbidden, average, beam_search, greedy
from captioning.errors import InputError
from captioning.features import BottomUpFiles, FrozenExtractor
from captioning.models import CaptionModel
from captioning.predictor import Predictor
from captioning.tokenizers import Characters, Subwords, Tokenizer, Words
from captioning.vocabulary import END, SPECIAL_WORDS, Vocabulary
from tests.conftest import DIM, FAMILIES, REGIONS, VOCABULARY, batch_of, build

EXAMPLE = Path(__file__).parents[1] / "notebooks" / "onnx_captioner.py"
WORDS = [*SPECIAL_WORDS, *(f"word{index}" for index in range(VOCABULARY - len(SPECIAL_WORDS)))]
FILES = BottomUpFiles(files=[], num_regions=REGIONS, feature_dim=DIM)


class Rows(FrozenExtractor):
    """The mean colour of each fifth of a picture, from top to bottom, and its square: 5 × 1 × 6."""

    def __init__(self) -> None:
        super().__init__(image_size=[20, 8])
        self.set_normalisation([0.5] * 3, [0.1] * 3)
        self.network = torch.nn.AdaptiveAvgPool2d((REGIONS, 1))
        self.measure()

    def forward(self, images: Tensor) -> Tensor:
        colours = self.network(self.normalise(images)).permute(0, 2, 3, 1)  # (B, 5, 1, 3)
        return torch.cat([colours, colours.square() / 4], -1)


@pytest.fixture(scope="module")
def captioner() -> Any:
    return example()


def example() -> Any:
    """The class `Captioner` of the example."""
    spec = importlib.util.spec_from_file_location("onnx_captioner", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Captioner


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(8):
        colours = generator.integers(0, 256, (REGIONS, 2, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((30, 50), Image.Resampling.NEAREST)
        image.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def write(folder: Path, model: CaptionModel, extractor: Any, **options: str) -> dict[str, int]:
    return graphs.write(
        folder, model, extractor, vocabulary=Vocabulary(WORDS), decoding={}, card={}, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family, marks=() if family in ("gru_attention", "transformer") else pytest.mark.exhaustive
        )
        for family in FAMILIES
    ],
)
def test_every_family_captions_the_same_pictures_alike(
    family: str, captioner: Any, pictures: list[Path], tmp_path: Path
) -> None:
    model = build(family)
    write(tmp_path / "graphs", model, Rows())
    theirs = captioner(tmp_path / "graphs")
    ours = Predictor(model=model, vocabulary=Vocabulary(WORDS), extractor=Rows())
    features = [theirs.features(path) for path in pictures]
    for name in ("greedy", "beam"):
        found = [theirs.text(getattr(theirs, name)(one)) for one in features]
        assert found == [caption.text for caption in ours(pictures, decoding=name)], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "up_down",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("topic_guided", "transformer", "meshed_memory")
        ),
    ],
)
def test_padded_regions_are_left_out_where_the_encoder_takes_a_mask(
    family: str, captioner: Any, tmp_path: Path
) -> None:
    model, counts = build(family), [5, 3, 1]
    batch = batch_of([[4]] * 3, counts)
    assert set(write(tmp_path / "graphs", model, FILES)) == {"encoder.onnx", "step.onnx"}
    theirs = captioner(tmp_path / "graphs")
    assert batch.mask is not None
    with torch.no_grad():
        options: dict[str, Any] = {"max_words": 20, "rules": [Forbidden()]}
        plain = greedy(model, batch.features, batch.mask, **options).tokens
        options |= {"beam_size": 5, "length_score": average}
        searched = beam_search(model, batch.features, batch.mask, **options).tokens
    for row in range(3):
        given = {"features": batch.features[row : row + 1].numpy(), "mask": batch.mask[row : row + 1].numpy()}
        assert theirs.greedy(given) == [word for word in plain[row].tolist() if word], row
        assert theirs.beam(given) == [word for word in searched[row].tolist() if word], row


@pytest.mark.slow
def test_int8_rounds_the_matrices_of_encoder_and_step_to_bytes(
    captioner: Any, pictures: list[Path], tmp_path: Path
) -> None:
    model = build("gru_attention")
    for precision in graphs.PRECISIONS:
        write(tmp_path / precision, model, Rows(), precision=precision)
    for name in ("encoder", "step"):
        graph = onnx.load(tmp_path / "int8" / f"{name}.onnx").graph
        assert {part.data_type for part in graph.initializer} & {onnx.TensorProto.INT8}, name
    exact, rounded = (captioner(tmp_path / precision) for precision in graphs.PRECISIONS)
    assert rounded.greedy(rounded.features(pictures[0])) == exact.greedy(exact.features(pictures[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer", "tokens"),
    [
        (Characters(), ["一", "只", "cat", "sat", "on", "t恤", "3d", "猫", "hat"]),
        (Subwords(merges="d o"), ["▁a", "▁do", "g", "s", "▁play", "犬", "が", "▁run"]),
    ],
)
def test_text_is_joined_as_the_tokenizer_joins_it(
    tokenizer: Tokenizer, tokens: list[str], captioner: Any, tmp_path: Path
) -> None:
    model = build("mean_pooled", vocabulary_size=len(SPECIAL_WORDS) + len(tokens))
    vocabulary = Vocabulary([*SPECIAL_WORDS, *tokens], tokenizer)
    graphs.write(tmp_path / "graphs", model, FILES, vocabulary=vocabulary, decoding={}, card={})
    ids = [vocabulary.id(token) for token in tokens]
    assert captioner(tmp_path / "graphs").text([*ids, END]) == vocabulary.decode(ids)
    assert vocabulary.decode(ids) != " ".join(tokens)


class TestRefusals:
    def test_a_tokenizer_that_no_rule_joins_is_refused(self, tmp_path: Path) -> None:
        class Spelling(Words):
            joining = None

        with pytest.raises(InputError, match="Spelling has no rule for joining its tokens"):
            vocabulary = Vocabulary(WORDS, Spelling())
            graphs.write(
                tmp_path / "graphs", build("mean_pooled"), FILES, vocabulary=vocabulary, decoding={}, card={}
            )

    def test_a_sequence_encoder_has_no_graph_with_a_mask(self, tmp_path: Path) -> None:
        match = r"(?s)the encoder of this model can't be exported to ONNX .* write format=captioner"
        with pytest.raises(InputError, match=match):
            write(tmp_path / "graphs", build("attentive_translator"), FILES)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_holds_files_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(InputError, match="is there already; name a new folder for the graphs"):
            write(tmp_path, build("mean_pooled"), FILES)

    def test_another_precision_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="precision=int4 must be one of float32, int8"):
            write(tmp_path / "graphs", build("mean_pooled"), FILES, precision="int4")

    def test_a_missing_package_is_named_with_its_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", [])  # as if nothing were installed
        monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
        with pytest.raises(InputError, match=r"package onnxscript; run pip install 'captioning\[onnx\]'"):
            write(tmp_path / "graphs", build("mean_pooled"), FILES)
