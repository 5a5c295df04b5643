"""Every YAML composes, and every option is one constructor call with the signature's own names."""

import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from captioning import checkpoint
from captioning.cli.main import COMMANDS
from captioning.errors import InputError
from captioning.files import CONF
from captioning.models import CaptionModel
from captioning.tokenizers import Words
from captioning.training.assembly import build_decoder, expected_provenance, plain
from captioning.vocabulary import SPECIAL_WORDS, Vocabulary
from tests.conftest import compose_config

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in CONF.glob("*/**/*.yaml")
    if path.relative_to(CONF).parts[0] not in ("experiment", "encoder", "card", "hydra")
    and not path.stem.startswith("_")
)
FIXED = ("output_dir=none", "data_root=data")
OPTION_NEEDS = {  # what an option leaves to its user
    "pairs": ("data.reader.file=x.csv",),
    "timm": ("features.extractor.architecture=resnet18",),
}
NEEDED = {"mine": ("data.reader.file=x.csv",)}  # what an experiment leaves to its user


def targets(node: object) -> Iterator[DictConfig]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node[key])
    elif isinstance(node, ListConfig):
        for child in node:
            yield from targets(child)


def check_calls(config: object) -> None:
    for node in targets(config):
        call = get_object(node["_target_"])
        parameters = inspect.signature(call).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        unknown = [key for key in node if not str(key).startswith("_") and key not in parameters]
        assert not unknown, f"{node['_target_']} has no parameter {unknown}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_calls_what_exists(experiment: str) -> None:
    config = compose_config("train", f"experiment={experiment}", *NEEDED.get(experiment, ()), *FIXED)
    check_calls(config)
    assert config.name == experiment


ROLES = {  # group -> role in a checkpoint
    "model": "model",
    "features": "extractor",
    "decoding": "decoder",
    "data/tokenizer": "tokenizer",
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_calls_what_exists(group: str, option: str) -> None:
    extra = OPTION_NEEDS.get(option, ())
    command = "baseline" if group == "retrieval" else "train"
    config = compose_config(command, f"{group}={option}", *FIXED, *extra)
    composed = OmegaConf.select(config, group.replace("/", "."))
    check_calls(composed)
    if group == "data":
        for node in targets(composed.reader):
            checkpoint.check_target(node["_target_"], "reader")
    elif group in ROLES:
        for node in targets(composed):
            checkpoint.check_target(node["_target_"], ROLES[group])


def build_model(config: DictConfig, vocabulary_size: int) -> CaptionModel:
    """Instantiate a model as assembly does, with the sizes that data and features decide."""
    return instantiate(complete(config, vocabulary_size))


def complete(config: DictConfig, vocabulary_size: int) -> dict:
    options = plain(config.model)
    return {
        **options,
        "vocabulary_size": vocabulary_size,
        "encoder": {**options["encoder"], "feature_dim": 192},
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.slow
def test_every_experiments_model_can_be_built(experiment: str) -> None:
    config = compose_config("train", f"experiment={experiment}", *NEEDED.get(experiment, ()), *FIXED)
    model = build_model(config, config.data.vocabulary_size)
    assert isinstance(model, CaptionModel) and model.vocabulary_size == config.data.vocabulary_size


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.slow
def test_an_experiment_sets_only_what_every_option_of_the_group_has(experiment: str) -> None:
    """A stray key would leak into whoever swaps the group."""
    text = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    for group in ("data", "features", "model", "objective", "optimizer", "decoding", "trainer"):
        for key in text.get(group) or {}:
            for option in (option for name, option in OPTIONS if name == group):
                extra = OPTION_NEEDS.get(option, ())
                assert key in compose_config("train", f"{group}={option}", *FIXED, *extra)[group], (
                    f"{group}={option} has no {key}"
                )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    compose_config(
        command, *(("output_dir=none",) if command in ("train", "extract", "demo", "baseline") else ())
    )


def _flaws() -> list[str]:
    """Read the switches from the header of the post as written: `#   S1 name   options  (remark)`."""
    header = (CONF / "experiment" / "coco30k_as_posted.yaml").read_text().splitlines()
    lines = [line for line in header if re.match(r"#   S\d", line)]
    assert len(lines) == 6
    return [re.split(r"  +", line)[2] for line in lines]


@pytest.mark.parametrize("switches", _flaws())
def test_the_switch_of_every_flaw_works_as_its_header_prints_it(switches: str) -> None:
    """As a shell passes them on: bash makes two words of {a,b}."""
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {switches}"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert words == shlex.split(switches)
    config = compose_config(
        "train", "experiment=flickr8k", "data=flickr8k_sample", "model=gru_attention", *words, *FIXED
    )
    assert build_model(config, 50) is not None
    assert instantiate(config.objective) is not None
    assert build_decoder(config.decoding, Vocabulary(SPECIAL_WORDS)) is not None
    assert not isinstance(config.model.recurrence, str)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_is(experiment: str) -> None:
    text = Path(CONF / "experiment" / f"{experiment}.yaml").read_text()
    header = [line for line in text.splitlines()[1:] if line.startswith("#")]
    assert any("python -m captioning.train" in line for line in header), "the header names the command"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_quick_trainer_leaves_the_epochs_to_the_user(experiment: str) -> None:
    config = compose_config(
        "train",
        f"experiment={experiment}",
        "trainer=quick",
        "max_epochs=1",
        *NEEDED.get(experiment, ()),
        *FIXED,
    )
    assert config.trainer.max_epochs == 1 and config.trainer.limit_train_batches == 100


MODELS = [option for group, option in OPTIONS if group == "model"]


@pytest.mark.parametrize("option", MODELS)
@pytest.mark.slow
def test_every_model_comes_back_from_a_checkpoint_alone(option: str, tmp_path: Path) -> None:
    """Through the file, as a stranger gets it: description, safe loading, instantiation, weights."""
    config = compose_config("train", f"model={option}", *FIXED)
    words, options = [*SPECIAL_WORDS, *(f"w{i}" for i in range(1096))], complete(config, 1100)
    model = instantiate(options)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    metadata = {"format": checkpoint.FORMAT, "model": options, "words": words, "tokenizer": Words().options()}
    torch.save({"state_dict": state, "captioning": metadata}, tmp_path / "model.ckpt")
    loaded = checkpoint.load(tmp_path / "model.ckpt")
    assert loaded.vocabulary.words == words and type(loaded.model) is type(model)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_output_folder_has_one_owner() -> None:
    holders = [path.name for path in CONF.rglob("*.yaml") if "hydra:runtime.output_dir" in path.read_text()]
    assert holders == ["train.yaml"]


def test_features_are_not_compared_while_an_option_of_them_is_missing() -> None:
    with pytest.raises(InputError, match=r"needed, and not given: features\.extractor\.architecture=…"):
        expected_provenance(compose_config("train", "features=timm"))


def test_features_are_compared_without_building_what_made_them() -> None:
    config = compose_config("train", "data=flickr8k", "features=three_backbones", "data_root=absent")
    expected = expected_provenance(config)
    assert expected["backbones"] == ["efficientnet_lite0", "efficientnet_lite2", "inception_v3"]
    assert expected["inception_v3.weights"] == "inception_v3_partial.pth"
