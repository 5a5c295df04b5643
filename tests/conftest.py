"""Everything tests share: seeds, a small toy data set with features, a ragged batch, every family at toy
size.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from captioning.data import Batch, CaptionDataModule
from captioning.data.dataset import pad_captions
from captioning.data.toy import read_toy
from captioning.entry import CONF, quieten
from captioning.features import Backbone, extract
from captioning.models import (
    AdaptiveAttention,
    AttentiveTranslator,
    CaptionModel,
    FeatureProjection,
    GRUAttention,
    HardAttention,
    MeanPooled,
    MeshedMemory,
    ShowAttendTell,
    SoftAttention,
    TopicGuided,
    Transformer,
    UpDown,
)
from captioning.models.hard_attention import expectation
from captioning.objectives import HardAttentionObjective
from captioning.vocabulary import END, START

VOCABULARY, REGIONS, DIM = 11, 5, 6

SMALL = {"embedding_dim": 9, "hidden_dim": 10, "dropout": 0.0}
HEADS = {"hidden_dim": 12, "num_layers": 2, "num_heads": 3, "inner_dim": 16, "dropout": 0.0}
SCORER = {"attention_dim": 8, "deep_keys": True}
SEE_ONE = partial(HardAttention, **SCORER, expectation_share=0.5, at_test=expectation)


def projected(family: Callable[..., CaptionModel], *, feature_dim: int, **options: object) -> CaptionModel:
    """A family behind an encoder, as the Flickr8k experiments have it."""
    encoder = FeatureProjection(feature_dim=feature_dim, encoder_dim=7, dropout=0.0)
    return family(feature_dim=7, encoder=encoder, **options)


FAMILIES: dict[str, Callable[..., CaptionModel]] = {  # a new family adds a line
    "gru_attention": partial(
        GRUAttention, encoder_dim=7, attention_dim=8, activation=torch.nn.Tanh(), **SMALL
    ),
    "sat_soft": partial(ShowAttendTell, attention=partial(SoftAttention, **SCORER), **SMALL),
    "sat_hard": partial(ShowAttendTell, attention=SEE_ONE, **SMALL),
    "up_down": partial(UpDown, attention_dim=8, **SMALL),
    "up_down_projected": partial(projected, UpDown, attention_dim=8, **SMALL),
    "attentive_translator": partial(AttentiveTranslator, attention_dim=8, context_to="both", **SMALL),
    "translator_two_ways": partial(
        AttentiveTranslator,
        attention_dim=8,
        context_to="both",
        global_feature=False,
        bidirectional=True,
        **SMALL,
    ),
    "translator_output": partial(AttentiveTranslator, attention_dim=8, context_to="output", **SMALL),
    "adaptive": partial(AdaptiveAttention, attention_dim=8, **SMALL),
    "topic_guided": partial(
        TopicGuided, attention_dim=8, num_topics=4, attribute_ranks=(1, 4), num_likely=2, **SMALL
    ),
    "topic_to_lstm": partial(
        TopicGuided,
        attention_dim=8,
        num_topics=4,
        attribute_ranks=(1, 4),
        num_likely=2,
        topic_to="lstm",
        **SMALL,
    ),
    "mean_pooled": partial(MeanPooled, **SMALL),
    "transformer": partial(Transformer, **HEADS),
    "meshed_memory": partial(MeshedMemory, num_levels=2, num_slots=3, **HEADS),
}


# What a family learns from, where it is not cross-entropy alone.
OBJECTIVES: dict[str, Callable[[], Callable[..., dict[str, torch.Tensor]]]] = {
    "sat_hard": partial(
        HardAttentionObjective, reward_weight=1.0, entropy_weight=0.01, reward="own", baseline="expected"
    )
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    quieten()
    torch.manual_seed(0)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> CaptionModel:
    return build(family)


def build(family: str, vocabulary_size: int = VOCABULARY, **sizes: object) -> CaptionModel:
    torch.manual_seed(1)
    return FAMILIES[family](feature_dim=DIM, vocabulary_size=vocabulary_size, **sizes).eval()


def batch_of(
    captions: list[list[int]],
    counts: list[int] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """A batch of given captions (without START and END) with random features and, if wanted, ragged counts."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(captions), REGIONS, DIM, generator=generator).to(dtype)
    mask = None if counts is None else torch.arange(REGIONS) < torch.tensor(counts)[:, None]
    if mask is not None:
        features = features * mask[..., None]
    tokens = pad_captions([[START, *caption, END] for caption in captions])
    names = [f"image{row}" for row in range(len(captions))]
    return Batch(features, mask, tokens, names, [("a caption",)] * len(captions))


@pytest.fixture
def ragged() -> Batch:
    return batch_of([[4, 5, 6], [7, 3], [8, 9, 10, 4, 5], [6]], counts=[5, 3, 4, 1])


def compose_config(name: str = "train", *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


TOY_SCENES = {"train": 24, "val": 8, "test": 8}


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small toy set and its features, at the places that the toy config names."""
    root = tmp_path_factory.mktemp("data")
    records = read_toy(root / "toy", TOY_SCENES, seed=0)
    config = compose_config("train", f"data_root={root}", "output_dir=none")
    from hydra.utils import instantiate

    extract(
        instantiate(config.features.extractor),
        {record.image_id: record.path for record in records},
        config.features.path,
        batch_size=8,
        num_workers=0,
    )
    return root


@pytest.fixture(scope="session")
def toy_overrides(toy_root: Path) -> list[str]:
    """Options that make a training run tiny, exact and quiet."""
    scenes = json.dumps(TOY_SCENES).replace('"', "")
    return [
        f"data_root={toy_root}", f"data.reader.scenes={scenes}", "logger=csv",
        "trainer.precision=32", "trainer.max_epochs=1", "data.batch_size=16", "model.encoder_dim=8",
        "model.attention_dim=8", "model.embedding_dim=8", "model.hidden_dim=16",
    ]  # fmt: skip


@pytest.fixture
def toy_data(toy_root: Path, toy_overrides: list[str]) -> CaptionDataModule:
    from captioning.assembly import build_data

    return build_data(compose_config("train", *toy_overrides, "output_dir=none"))


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return Backbone(
        architecture="resnet18",
        node="layer2",
        weights="random",
        image_size=[64, 64],
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
