"""Options that take names: what was typed arrives, whatever Hydra's grammar and YAML make of it."""

import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from captioning.cli import command
from captioning.cli.help import read_option
from captioning.cli.names import NAMES, gather_positional, keep_names, refuse_numbers, takes_names
from captioning.errors import InputError
from captioning.files import CONF


def arrives(argument: str) -> object:
    """What Hydra reads after the names were quoted."""
    value = OverridesParser.create().parse_override(keep_names([argument])[0]).value()
    if isinstance(value, list):
        return [getattr(element, "text", element) for element in value]
    return getattr(value, "text", value)


TYPED = """
    2024_01 007 1e5 1_000 -5 2014.10 .5 inf nan true False dog.jpg Größe.jpg 写真.jpg caf\udce9.png ~/a.jpg a#b a&b
    a!b a;b a^b <a> a=b a"b dog's.jpg photo(1).jpg [1]a.jpg a[1] a{1} a@b a:b 2014/01 * a?b %20 ' " C:\\a\\(1)\\
    \\' a|b $HOME $a +1
"""


@pytest.mark.parametrize("name", TYPED.split())
@pytest.mark.parametrize("key", ["image", "+image", "data.reader.splits.test", "hydra.run.dir"])
def test_a_name_arrives_as_it_was_typed(name: str, key: str) -> None:
    assert arrives(f"{key}={name}") == name
    assert arrives(f"{key}=a {name} b.jpg") == f"a {name} b.jpg"
    if not set("[]{}") & set(name) and name not in "'\"" and name[-1] != "\\":  # in lists these need quotes
        assert arrives(f"{key}=[{name},b.jpg,{name}]") == [name, "b.jpg", name]


@pytest.mark.parametrize("name", ["2024_01", "a,b.jpg", "photo (1).jpg", "null", "Größe.jpg"])
def test_quotes_for_hydra_stay_as_they_were(name: str) -> None:
    for argument in (f"image='{name}'", f'image="{name}"', f"image=['{name}','a, b']"):
        assert keep_names([argument]) == [argument]


@pytest.mark.parametrize(
    "argument",
    ["seed=007", "optimizer.lr=1e-3", "data.reader.scenes.train=24", "~image", "--multirun", "model=gru_attention"]
    + ["image=null", "image=", "resume=runs/a", "checkpoint=[a,b]", "image=choice(1,2)", "checkpoint=[a,1],[b,2]"]
    + ["output_dir=${oc.env:HOME}/1_0", "data.reader.splits={train: a, val: b}"],
)  # fmt: skip
def test_everything_else_is_left_to_hydra(argument: str) -> None:
    assert keep_names([argument]) == [argument]


def test_names_of_a_sweep_are_names() -> None:
    sweep = OverridesParser.create().parse_override(keep_names(["checkpoint=2024_01,2024_02"])[0])
    assert list(sweep.sweep_string_iterator()) == ["'2024_01'", "'2024_02'"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": 202401}, "image: found the number 202401; quote it: image=\"'202401'\""),
        ({"data": {"reader": {"splits": {"test": 2014}}}}, "data.reader.splits.test: found the number 2014"),
        ({"checkpoint": ["a", 1.5]}, "checkpoint: found the number 1.5"),
        ({"output": True}, "output: found the value True"),
    ],
)
def test_a_number_that_a_file_gives_for_a_name_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        refuse_numbers(options)
    assert message in str(caught.value)
    refuse_numbers(
        {"image": "2024_01", "seed": 3, "output": None, "data": {"reader": {"scenes": {"train": 24}}}}
    )


def test_every_option_that_names_a_file_is_one_of_them() -> None:
    used = set()
    for path in sorted(CONF.rglob("*.yaml")):
        for key, value, _ in read_option(path).keys:
            used.update(key.split(".")[-2:])
            text = yaml.safe_load(value) if value else None
            paths = isinstance(text, str) and ("_root}" in text or "/" in text or "output_dir}" in text)
            if paths and "lambda" not in text and not key.startswith("callbacks."):
                assert takes_names(key), f"{path.name}: {key} = {text}"
    assert NAMES - used <= {"dir", "subdir", "project", "save_dir", "default_root_dir", "name"}, NAMES - used


def test_no_command_config_has_a_number_for_a_name() -> None:
    for path in Path(CONF).glob("*.yaml"):
        refuse_numbers(yaml.safe_load(path.read_text()))


def test_a_command_gets_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {}

    def main(config: DictConfig) -> None:
        options.update(OmegaConf.to_container(config))

    monkeypatch.chdir(tmp_path)
    typed = ["checkpoint=2024_01", "image=[007,Größe (1).jpg]", "weights=1e5", "seed=1_0"]
    monkeypatch.setattr(sys, "argv", ["caption", *typed])
    command("caption")(main)()
    assert [options[key] for key in ("checkpoint", "image", "weights", "seed")] == [
        "2024_01",
        ["007", "Größe (1).jpg"],
        "1e5",
        10,
    ]
    monkeypatch.setattr(sys, "argv", ["caption", "checkpoint=a", "image={b: 202401}"])
    with pytest.raises(SystemExit, match="2"):
        command("caption")(main)()
    assert "image.b: found the number 202401; quote it: image.b=\"'202401'\"" in capsys.readouterr().err


def test_folders_may_be_given_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1,seed=0").mkdir()
    given = ["runs/a", "output_dir=out", "lr=0.1,seed=0", "it's", "--cfg", "job", "2024_01", "a\\b"]
    *others, folders = keep_names(gather_positional(given, "folders"))
    assert others == ["output_dir=out", "--cfg", "job"]
    assert arrives(folders) == ["runs/a", "lr=0.1,seed=0", "it's", "2024_01", "a\\b"]
    assert arrives(keep_names(gather_positional(["it's"], "folders"))[-1]) == "it's"
    with pytest.raises(InputError, match=r"found a.jpg and image=b.jpg; give all as image=\[…\]"):
        gather_positional(["a.jpg", "image=b.jpg"], "image")
    assert arrives(keep_names(gather_positional(["-"], "image"))[-1]) == "-"
    assert gather_positional(["output_dir=out"], "folders") == ["output_dir=out"]
