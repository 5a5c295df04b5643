"""Arguments that are wrong end a command, and its help, with exit status 2 and one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from captioning.cli.command import command, print_help
from captioning.cli.composition import compose_arguments
from captioning.cli.help import help_text
from captioning.cli.names import arguments_for_hydra

OWN_OPTIONS = {
    "sound": b"# @package _global_\ndefaults: [flickr8k]\nname: sound\n",
    "broken": b"# @package _global_\nname: [x\n",
    "lost-1": b"defaults: [{override /model: transformer}]\n",
    "nothing": b"optimizer: {lr: 3}\n",
    "control": b"# @package _global_\nname: a\x01b\n",
    "latin": b"# Gr\xf6\xdfe\nname: gr\xf6\xdfe\n",
    "mapping": b"# @package _global_\ndefaults: {override /model: up_down}\n",
    "items": b"- a\n",
}
BAD_ARGUMENTS = [
    ("experiment=flickr", "there is no experiment=flickr; did you mean flickr8k?"),
    ("optimiser.lr=1", "there is no optimiser.lr; did you mean optimizer.lr?"),
    ("lr=1", "there is no lr; did you mean optimizer.lr?"),
    ("tokenizer=characters", "there is no tokenizer; did you mean data/tokenizer?"),
    ("-m model=up_down,transformer optimiser.lr=1", "there is no optimiser.lr; did you mean optimizer.lr?"),
    ("encoder=raw", "there is no encoder; did you mean encoder@model.encoder?"),
    ("model@model=up_down", "there is no model@model; did you mean model?"),
    ("~logge", "there is no logge; did you mean logger?"),
    ("~logger=wandb", "logger=wandb is not chosen, so that it can't be left out"),
    ("data.check=1 experiment=null", "experiment=null: a group takes the name of an option"),
    ("decodin=beam", "there is no decodin; did you mean decoding?"),
    ("retrieval=most_frequent", "this command takes no retrieval=; there are data, "),
    ("logger=null", "logger=null: a group takes the name of an option; logger=[] is none"),
    ("+experiment=flickr8k", "experiment has an option already; exchange it by experiment=… without +"),
    ("seed", "found seed, which has no value; give seed=<value>"),
    ("+", "found '+', which has no value; give <name>=<value>"),
    ("=", "found = without a name before it; give <name>=<value>"),
    ("data.foo=[1,2", "Hydra can't read data.foo=[1,2; close its brackets and quotes, or quote its value:"),
    ("seed=1,2", "seed has several values; -m makes a run with each"),
    ("model=up_down,transformer", "model has several values; -m makes a run with each"),
    ("logger=csv,tensorboard", "logger has several values; give a list, 'logger=[csv,tensorboard]', or -m for a run"),
    ("--config-dir OWN experiment=soun", "there is no experiment=soun; did you mean sound?"),
    ("--config-dir OWN experiment=sound optimiser.lr=1", "there is no optimiser.lr; did you mean optimizer.lr?"),
    ("--config-dir=OWN experiment=broken", "OWN/experiment/broken.yaml, line 3: expected ',' or ']', but got"),
    ("experiment=lost-1 --config-dir OWN data=toy", "experiment/lost-1.yaml overrides model; its first line must be"),
    ("--config-dir OWN experiment=nothing", "experiment/nothing.yaml: nothing reads what it sets; its first line"),
    ("--config-dir OWN experiment=[toy,items]", "one of the experiments: nothing reads what it sets; its first"),
    ("--config-dir OWN experiment=control", "OWN/experiment/control.yaml, character 27: special characters"),
    ("--config-dir OWN experiment=latin", "OWN/experiment/latin.yaml is not UTF-8; save it as UTF-8"),
    ("--config-dir OWN experiment=mapping", "these options can't be composed (ValueError: Invalid defaults list in"),
]  # fmt: skip


@pytest.fixture(scope="module")
def own_options(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("it's own")
    (folder / "experiment").mkdir()
    for name, content in OWN_OPTIONS.items():
        (folder / "experiment" / f"{name}.yaml").write_bytes(content)
    return folder


def split(arguments: str, own: Path) -> list[str]:
    return [argument.replace("OWN", str(own)) for argument in arguments.split()]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_end_the_help_with_a_sentence(
    arguments: str, message: str, own_options: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        print_help("train", split(arguments, own_options))
    written = capsys.readouterr()
    assert end.value.code == 2 and not written.out and written.err.count("\n") == 1
    assert written.err.startswith(f"error: {message.replace('OWN', str(own_options))}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_ARGUMENTS[::3],  # each takes seconds
        ("--cfg job -m seed=1,2", "--cfg prints one config and -m runs several; give one of the two"),
        ("--resolve", "--resolve is for the config that --cfg job prints; leave it out, or add --cfg job"),
        ("-c job experiment=flickr", "there is no experiment=flickr; did you mean flickr8k?"),
        ("-m optimizer.lr=interval(0,1)", "give values, as in a,b,c; intervals are for hydra/sweeper=optuna"),
        ("--config-name other", "a command has a config of its own; --config-dir=<folder> adds options to those"),
        ("~averaging", "needed, and left out: averaging=…"),
    ],
)  # fmt: skip
def test_bad_arguments_end_a_command_with_the_same_sentence(
    arguments: str, message: str, own_options: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "captioning.train", *split(arguments, own_options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {message.replace('OWN', str(own_options))}")


def test_what_is_wrong_with_another_file_of_ones_own_does_not_disturb_the_help(own_options: Path) -> None:
    text = help_text("train", ["--config-dir", str(own_options), "experiment=sound"])
    assert "\n  name=sound " in text and "\n  latin                         Gr\ufffd" in text


def test_flags_may_stand_between_options() -> None:
    given = ["a=1", "--cfg", "job", "b=2", "-m", "~c"]
    assert arguments_for_hydra("train", given) == (["--cfg", "job", "-m"], ["a=1", "b=2", "~c"])


def test_names_of_files_are_options_only_where_a_command_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "seed=7").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "\n  folders=lr=0.1 " in help_text("compare", ["lr=0.1", "--help"])
    assert "\n  seed=7 " in help_text("train", ["seed=7"])
    many = f"image=[{','.join(f'photograph_{number}.jpg' for number in range(30))}]"  # too long for a file
    assert arguments_for_hydra("caption", [many]) == ([], [many])


@pytest.mark.parametrize("arguments", [[], ["-m", "port=1,2"]])
@pytest.mark.parametrize("fault", [KeyError("x"), ValueError("x"), RuntimeError("CUDA error: out of memory")])
def test_a_fault_of_the_program_keeps_its_traceback(
    fault: Exception, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @command("app")
    def main(config: DictConfig) -> None:
        raise fault

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["captioning", *arguments])
    with pytest.raises(type(fault), match=str(fault)):
        main()


def test_an_own_experiment_may_set_a_key_of_that_name(own_options: Path) -> None:
    (own_options / "experiment" / "key.yaml").write_text("# @package _global_\nexperiment: pilot\n")
    composed = compose_arguments("train", ["-cd", str(own_options), "experiment=key"])
    assert composed.values["experiment"] == "pilot"


def test_a_name_that_is_neither_a_file_nor_an_option_is_called_both(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        print_help("caption", ["photograph=1.jpg"])
    start = "error: there is neither a file of that name nor an option photograph; "
    assert capsys.readouterr().err.startswith(start)
