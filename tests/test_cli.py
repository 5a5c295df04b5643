"""The command line without running anything: help, suggestions, messages."""

import errno
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from captioning.cli import progress
from captioning.cli.help import (
    READ,
    command_groups,
    help_text,
    read_groups,
    read_keys,
    read_option,
)
from captioning.cli.main import COMMANDS, main
from captioning.cli.messages import input_error, refuse_fractions, refuse_missing, refuse_switches
from captioning.errors import InputError
from captioning.files import CONF, atomic_write


def test_an_interrupt_during_the_imports_is_one_word() -> None:
    script = "import captioning.cli; raise "
    done = [
        subprocess.run([sys.executable, "-c", script + error], capture_output=True, text=True)
        for error in ("KeyboardInterrupt", "ValueError(3)")
    ]
    assert done[0].stderr == "stopped\n" and done[0].returncode != 0
    assert done[1].stderr.endswith("ValueError: 3\n") and done[1].returncode == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_group_with_its_options_and_every_key(command: str) -> None:
    text = help_text(command)
    for group in read_groups(command):
        for path in (CONF / group).glob("[!_]*.yaml"):
            assert f"\n  {path.stem}" in text
    for name, _, comment in read_option(CONF / f"{command}.yaml").keys:
        assert f"  {name}=" in text and comment in text


@pytest.mark.parametrize("command", sorted(READ))
def test_commands_that_inherit_trainings_options_list_what_they_read(command: str) -> None:
    assert {"data", "features", "experiment"} <= read_groups(command).keys() and "model" not in read_groups(
        command
    )
    keys = {name for name, *_ in read_keys(command)}
    assert "output_dir" in keys and "start_from" not in keys
    options = [
        path for group in ("data", "features", "retrieval") for path in (CONF / group).glob("**/*.yaml")
    ]
    used = {key for path in options for key in re.findall(r"\$\{(\w+)\}", path.read_text())}
    assert used <= keys and "seed" in used


def test_help_lists_only_the_groups_that_a_command_takes() -> None:
    assert list(command_groups("caption")) == ["decoding"]
    assert list(command_groups("evaluate")) == ["data", "data/tokenizer", "features", "decoding"]


def test_help_shows_the_part_that_an_option_chooses_inside_its_group() -> None:
    assert command_groups("train")["data/tokenizer"] == "words"
    assert "data/tokenizer=…   (characters)" in help_text("train", ["data=flickr8k_zh"])


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_help_shows_what_an_experiment_takes_and_sets_as_hydra_composes_it(experiment: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", [f"experiment={experiment}"], return_hydra_config=True)
    text = help_text("train", [f"experiment={experiment}"])
    for group, option in composed.hydra.runtime.choices.items():
        if not group.startswith("hydra/"):
            assert f"\n{group}=…   ({option or 'none'})\n" in text
    assert not re.search(r"^  [\w.]+=$", text, re.MULTILINE)  # each has a value, or a comment
    # A name twice would show two values, of which one is wrong.
    listed = re.findall(r"^  ([\w.]+)=(.*?)(?:  .*)?$", text, re.MULTILINE)
    shown = {name: value.strip() for name, value in listed}
    assert len(shown) == len(listed)
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    del raw["hydra"]
    for name, value in leaves(raw):
        line = name
        while line not in shown:  # it is part of a mapping on one line
            line = line.rpartition(".")[0]
        if shown[line].endswith("…") or shown[line] == value:
            continue
        found = yaml.safe_load(shown[line])
        for key in name.removeprefix(line).split(".")[1:]:
            found = found[key]
        assert found == value, name


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if not key.startswith("_"):
                yield from leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, node


def test_help_shows_what_arguments_choose_beside_an_experiment(tmp_path: Path) -> None:
    text = help_text("train", ["model=transformer", "experiment=up_down_scst", "optimizer.lr=7e-3"])
    assert "\nmodel=…   (transformer)\n" in text and "keys of model=transformer:" in text
    assert "\nobjective=…   (self_critical_mixed)\n" in text and "\n  optimizer.lr=0.007" in text
    extraction = help_text("extract", ["experiment=up_down_scst"])
    assert "\n  data.train_on=images " in extraction and "optimizer.lr" not in extraction
    swept = help_text(
        "train", ["-m", "experiment=flickr8k", "model=transformer,up_down", "seed=3,range(4,6)"]
    )
    assert "\nmodel=…   (transformer)\n" in swept and "\n  seed=3 " in swept
    several = help_text("train", ["experiment=[toy,flickr8k]", "logger=[csv,tensorboard]", "~scheduler"])
    assert (
        "\nexperiment=…   (toy, flickr8k)\n" in several and "\nkeys of logger=csv,tensorboard:\n" in several
    )
    assert "\nscheduler=…   (none)\n" in several and "\ndata=…   (flickr8k)\n" in several
    assert "\nexperiment=…   (flickr8k)\n" in help_text("train", ['experiment="flickr8k"'])
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\ndefaults: [flickr8k, {override /logger: csv}]\nname: größe\nnew: {a: [ä]}\n"
    (tmp_path / "experiment" / "own.yaml").write_text(own, encoding="utf-8")
    text = help_text("train", ["--config-dir", str(tmp_path), "experiment=own", "--help"])
    assert (
        "\n  own\n" in text
        and "\n  name=größe " in text
        and "\nlogger=…   (csv)\n" in text
        and "\n  new.a=[ä]\n" in text
    )


def test_help_shows_the_first_run_of_every_kind_of_sweep() -> None:
    search = ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,2e-3))", "model=glob(up*)"]
    text = help_text("train", search)
    assert "\n  optimizer.lr=0.0001" in text and "\nmodel=…   (gru_attention_small)\n" in text


def test_a_folder_of_own_options_must_be_there() -> None:
    with pytest.raises(InputError, match="--config-dir=gone: there is no such folder"):
        help_text("train", ["--config-dir", "gone"])


@pytest.mark.parametrize(
    ("options", "choices", "name"),
    [
        ({"people": "yess"}, {}, "people=yess"),
        ({"people": 1}, {}, "people=1"),
        ({"data": {"check": "no way"}}, {"data": "flickr8k"}, "data.check=no way"),
    ],
)
def test_a_switch_is_true_or_false(options: dict[str, Any], choices: dict[str, str], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} must be true or false$"):
        refuse_switches(options, "evaluate", choices)


def test_switches_may_refer_to_others_and_be_left_out() -> None:
    for value in (True, False, None, "${other}"):
        refuse_switches({"people": value, "data": {"check": value}}, "evaluate", {"data": "flickr8k"})


def test_an_option_that_a_class_does_not_take_is_one_sentence() -> None:
    with pytest.raises(InstantiationException) as error:
        instantiate({"_target_": "captioning.models.Standardize", "droput": 1})
    message = str(input_error(error.value))
    assert (
        message
        == "captioning.models.encoder.Standardize has no option droput; --help lists those that there are"
    )


GROUPS = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")})


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "hydra/job_logging"])
def test_every_option_opens_with_a_comment_and_stands_in_the_readme(group: str) -> None:
    readme = (CONF / "README.md").read_text()
    for path in (CONF / group).glob("[!_]*.yaml"):
        assert read_option(path).comment, f"{path} has no opening comment"
        assert f"- `{path.stem}`: " in readme, f"conf/README.md does not list {group}={path.stem}"


def test_the_help_of_training_lists_what_a_sweep_takes() -> None:
    assert "\n  optuna" in help_text("train") and "\n  submitit_slurm" in help_text("train")
    assert "hydra/launcher" not in help_text("caption")


def test_the_console_script_lists_commands_and_suggests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["captioning"])
    main()
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["captioning", "evaluat"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no command 'evaluat'; did you mean evaluate?" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys, runpy\n"
        "sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('captioning.train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "optimizer=…" in done.stdout


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission is denied"),
        (errno.ENAMETOOLONG, "name is too long"),
        (errno.EISDIR, "a folder stands where a file is needed"),
    ],
)
def test_what_the_file_system_refuses_is_one_sentence(number: int, remedy: str) -> None:
    message = input_error(OSError(number, "no", "runs/x"))
    assert message is not None and "runs/x" in str(message) and remedy in str(message)


def test_progress_without_a_terminal_is_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", -1)
    batches = [([0, 1],), ([2],)]
    assert list(progress.extraction_progress(batches, 3)) == batches
    written = capsys.readouterr()
    assert written.err == "extracted 2 of 3 images\nextracted 3 of 3 images\n" and not written.out


def test_the_file_that_the_user_named_is_named_and_not_its_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, atomic_write(tmp_path / "a.png") as temporary:
        raise OSError(errno.EROFS, "no", str(temporary))
    assert str(input_error(raised.value)).startswith(f"{tmp_path / 'a.png'}: the file system is read-only")


def lack_wandb() -> None:
    raise ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install …`")


def test_a_logger_without_its_package_names_the_extra() -> None:
    with pytest.raises(InstantiationException) as raised:
        instantiate({"logger": {"_target_": f"{__name__}.lack_wandb"}})
    assert "logger needs the package wandb; run pip install 'captioning[track]'" in str(
        input_error(raised.value)
    )


def test_an_unknown_error_of_the_file_system_keeps_its_traceback() -> None:
    assert input_error(OSError(errno.ECHILD, "no child")) is None


def test_missing_options_and_fractions_are_refused() -> None:
    with pytest.raises(InputError, match="needed, and not given: data.reader.file=…"):
        refuse_missing({"data": {"reader": {"file": "???"}}, "model": {"vocabulary_size": "???"}}, "train")
    with pytest.raises(InputError, match=r"features\.backbones\.model\.node=…"):
        refuse_missing({"features": {"backbones": {"model": {"node": "???"}}}}, "train")
    with pytest.raises(InputError, match="^needed, and left out: decoding=…$"):
        refuse_missing({}, "caption")
    with pytest.raises(InputError, match="max_epochs=-1 must be a whole number from 1"):
        refuse_fractions({"seed": 0, "max_epochs": -1})
