"""Every YAML composes, and every option is one constructor call with the signature's own names."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from captioning.entry import CONF
from captioning.models import CaptionModel
from tests.conftest import compose_config

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "experiment" and path.stem not in ("loading", "grid")
)
FIXED = ("output_dir=none", "data_root=data")


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
    config = compose_config("train", f"experiment={experiment}", *FIXED)
    check_calls(config)
    assert config.name == experiment


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_calls_what_exists(group: str, option: str) -> None:
    extra = ("data.reader.file=x.csv",) if option == "pairs" else ()
    command = "baseline" if group == "retrieval" else "train"
    check_calls(compose_config(command, f"{group}={option}", *FIXED, *extra)[group])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiments_model_can_be_built(experiment: str) -> None:
    config = compose_config("train", f"experiment={experiment}", *FIXED)
    model = instantiate(config.model)
    assert isinstance(model, CaptionModel) and model.vocabulary_size == config.data.vocabulary_size


@pytest.mark.parametrize("command", ["train", "extract", "demo", "caption", "evaluate"])
def test_every_command_composes(command: str) -> None:
    if not (CONF / f"{command}.yaml").exists():
        pytest.skip("not built yet")
    compose_config(command, *(("output_dir=none",) if command in ("train", "extract", "demo") else ()))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_is(experiment: str) -> None:
    text = Path(CONF / "experiment" / f"{experiment}.yaml").read_text()
    header = [line for line in text.splitlines()[1:] if line.startswith("#")]
    assert any("python -m captioning.train" in line for line in header), "the header names the command"


def test_the_output_folder_has_one_owner() -> None:
    holders = [path.name for path in CONF.rglob("*.yaml") if "hydra:runtime.output_dir" in path.read_text()]
    assert holders == ["train.yaml"]
