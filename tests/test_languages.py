"""A run in another language from end to end: trained on subwords, scored, written as one file, gone on from."""

import json
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from captioning import checkpoint, evaluate, portable
from captioning.errors import InputError
from captioning.evaluation import Evaluation
from captioning.tokenizers import Subwords, Words
from captioning.training.assembly import assemble
from tests.conftest import compose_config

pytestmark = pytest.mark.slow

GERMAN = ["data.language=de", "data.vocabulary_size=60"]
GROUPS = ["decoding=greedy", "resamples=20"]


@pytest.fixture(scope="module")
def folder(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("german")
    config = compose_config(
        "train",
        *toy_overrides,
        *GERMAN,
        "data/tokenizer=subwords",
        f"output_dir={folder}",
        "init_output_bias=true",
    )
    assemble(config).fit()
    return folder


def scores_of(folder: Path, *options: str) -> Evaluation:
    config = compose_config("evaluate", *GROUPS, f"output_dir={folder}", *options)
    [evaluation] = evaluate.main.__wrapped__(config)
    return evaluation


def test_validation_scores_what_evaluate_scores(folder: Path, tmp_path: Path) -> None:
    evaluation = scores_of(tmp_path, f"checkpoint={folder}")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scored"] == str(evaluation.tokens) == "subwords (language de)"
    assert summary["best"]["cider_d"] == pytest.approx(100 * evaluation.scores["cider_d"].corpus, abs=1e-4)


def test_a_result_file_can_be_scored_over_other_tokens(
    folder: Path, tmp_path: Path, toy_overrides: list[str]
) -> None:
    own = scores_of(tmp_path / "own", f"checkpoint={folder}")
    results = f"results={tmp_path / 'own' / 'captions.json'}"
    again = scores_of(tmp_path / "again", results, f"checkpoint={folder}")
    assert again.scores == own.scores
    root, scenes = toy_overrides[:2]
    words = scores_of(tmp_path / "words", results, "data=toy", root, scenes, "data.language=de")
    assert str(words.tokens) == "words (language de)" and words.captions == own.captions
    with pytest.raises(InputError, match="has learnt nothing yet; give checkpoint=<run>"):
        scores_of(
            tmp_path / "x", results, "data=toy", "data/tokenizer=subwords", root, scenes, "data.language=de"
        )


def test_the_subwords_stand_in_the_checkpoint_and_in_a_portable_file(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    tokenizer = loaded.vocabulary.tokenizer
    assert isinstance(tokenizer, Subwords) and tokenizer.merges == loaded.metadata["tokenizer"]["merges"]
    content = checkpoint.read(folder)
    extractor = portable.build_extractor(content["captioning"])
    portable.write(folder / "de.captioner", content, extractor, decoding={}, card={})
    again = checkpoint.load(folder / "de.captioner").vocabulary
    assert again.words == loaded.vocabulary.words and again.encode("a circle") == loaded.vocabulary.encode(
        "a circle"
    )


class Shouted(Words):
    """A tokenizer of the user's own."""

    def __call__(self, text: str) -> list[str]:
        return [word.upper() for word in super().__call__(text)]


def test_a_tokenizer_of_the_users_own_is_trusted_where_the_user_names_it(
    tmp_path: Path, toy_overrides: list[str]
) -> None:
    options = [
        *toy_overrides,
        "data.tokenizer._target_=tests.test_languages.Shouted",
        f"output_dir={tmp_path}",
    ]
    assemble(compose_config("train", *options, "trainer.limit_train_batches=1")).fit()
    with pytest.raises(InputError, match="Shouted as its tokenizer, which captioning does not provide"):
        checkpoint.load(tmp_path)
    assert "CIRCLE" in checkpoint.load(tmp_path, trust=["tests"]).vocabulary
    run = assemble(compose_config("train", *options, f"start_from={tmp_path}"))
    assert type(run.data.tokenizer) is Shouted


def test_a_training_goes_on_with_the_tokenizer_of_its_start(
    folder: Path, tmp_path: Path, toy_overrides: list[str]
) -> None:
    options = [*toy_overrides, *GERMAN, f"start_from={folder}", f"output_dir={tmp_path}"]
    run = assemble(compose_config("train", *options, "data/tokenizer=subwords"))
    assert run.data.vocabulary is not None
    assert run.data.vocabulary.tokenizer.options() == checkpoint.read(folder)["captioning"]["tokenizer"]
    with pytest.raises(
        InstantiationException, match="made of subwords, found words; give data/tokenizer=subwords"
    ):
        assemble(compose_config("train", *options))
