"""Everything tests share: seeds, a small toy data set with features, a ragged batch, every family at toy
size.
"""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from captioning.cli import silence_known_warnings
from captioning.data import Batch, CaptionDataModule, draw_toy, read_toy
from captioning.data.dataset import pad_captions
from captioning.features import Backbone, extract
from captioning.files import CONF
from captioning.models import (
    AdaptiveCaptioner,
    AttentiveTranslator,
    CaptionModel,
    CarriedState,
    Encoder,
    Expectation,
    FeatureProjection,
    GRUAttention,
    HardAttention,
    MeanPooled,
    MeshedMemory,
    RawFeatures,
    ShowAttendTell,
    SoftAttention,
    TopicGuided,
    Transformer,
    UpDown,
)
from captioning.objectives import Objective, Reinforce
from captioning.vocabulary import END, START

# A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

VOCABULARY, REGIONS, DIM = 11, 5, 6

RAW = partial(RawFeatures, feature_dim=DIM)
PROJECTION = partial(FeatureProjection, feature_dim=DIM, dropout=0.0)
SMALL = {"embedding_dim": 9, "hidden_dim": 10, "dropout": 0.0}
HEADS = {"hidden_dim": 12, "num_layers": 2, "num_heads": 3, "mlp_dim": 16, "dropout": 0.0}
SCORER = {"attention_dim": 8, "deep_keys": True}
HARD = partial(HardAttention, **SCORER, expectation_share=0.5, at_test=Expectation())
TRANSLATOR = {"attention_dim": 8, "context_to": "both", **SMALL}
TOPICS = {"attention_dim": 8, "num_topics": 4, "attribute_ranks": (1, 4), "num_likely": 2, **SMALL}


def family_of(
    model: Callable[..., CaptionModel], *, encoder: Callable[[], Encoder] = RAW, **options: object
) -> Callable[..., CaptionModel]:
    """A builder of a family, called with `vocabulary_size` and further options; every model has a new encoder."""
    return lambda **more: model(**{"encoder": encoder(), **options, **more})


FAMILIES: dict[str, Callable[..., CaptionModel]] = {  # a new family adds a line
    "gru_attention": family_of(
        GRUAttention,
        encoder=partial(PROJECTION, output_dim=7),
        attention_dim=8,
        activation=torch.nn.Tanh(),
        recurrence=CarriedState(),
        **SMALL,
    ),
    "gru_attention_word_query": lambda **more: FAMILIES["gru_attention"](
        word_query=torch.nn.Linear(SMALL["embedding_dim"], SMALL["hidden_dim"]), **more
    ),
    "show_attend_tell": family_of(ShowAttendTell, attention=partial(SoftAttention, **SCORER), **SMALL),
    "show_attend_tell_hard": family_of(ShowAttendTell, attention=HARD, **SMALL),
    "up_down": family_of(UpDown, attention_dim=8, **SMALL),
    "up_down_projected": family_of(
        UpDown, encoder=partial(PROJECTION, output_dim=7), attention_dim=8, **SMALL
    ),
    "attentive_translator": family_of(AttentiveTranslator, **TRANSLATOR),
    "attentive_translator_bidirectional": family_of(
        AttentiveTranslator, global_feature=False, bidirectional=True, **TRANSLATOR
    ),
    "attentive_translator_without_attention": family_of(
        AttentiveTranslator, **{**TRANSLATOR, "context_to": "nothing"}
    ),
    "attentive_translator_shuffled": family_of(AttentiveTranslator, shuffled=True, **TRANSLATOR),
    "attentive_translator_output": family_of(AttentiveTranslator, **{**TRANSLATOR, "context_to": "output"}),
    "adaptive": family_of(
        AdaptiveCaptioner, encoder=partial(PROJECTION, output_dim=10), attention_dim=8, **SMALL
    ),
    "topic_guided": family_of(TopicGuided, **TOPICS),
    "topic_guided_lstm": family_of(TopicGuided, topic_to="lstm", **TOPICS),
    "mean_pooled": family_of(MeanPooled, **SMALL),
    "transformer": family_of(Transformer, **HEADS),
    "meshed_memory": family_of(MeshedMemory, num_levels=2, num_slots=3, **HEADS),
}

WITHOUT_ATTENTION = {
    "mean_pooled",
    "attentive_translator_without_attention",
}  # families whose `Step.attention` is None

# The objective of a family that cross-entropy alone does not train.
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "show_attend_tell_hard": partial(
        Reinforce, reward_weight=1.0, entropy_weight=0.01, reward="own", baseline="expected"
    )
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    silence_known_warnings()
    torch.manual_seed(0)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> CaptionModel:
    return build(family)


def build(family: str, vocabulary_size: int = VOCABULARY, **sizes: object) -> CaptionModel:
    torch.manual_seed(1)
    return FAMILIES[family](vocabulary_size=vocabulary_size, **sizes).eval()


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
    draw_toy(root / "toy", TOY_SCENES, seed=0)
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
        f"data_root={toy_root}", f"data.reader.scenes={scenes}", "logger=csv", "num_samples=0",
        "trainer.precision=32", "trainer.max_epochs=1", "data.batch_size=16", "model.encoder.output_dim=8",
        "model.attention_dim=8", "model.embedding_dim=8", "model.hidden_dim=16",
    ]  # fmt: skip


@pytest.fixture
def toy_data(toy_root: Path, toy_overrides: list[str]) -> CaptionDataModule:
    from captioning.training.assembly import build_data

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
