"""What Hydra composes out of a command's arguments, without running the command."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from captioning.cli.names import keep_names
from captioning.errors import InputError
from captioning.files import CONF

_FLAGS = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
_FLAGS.add_argument("--config-dir", "-cd")


class Composed(NamedTuple):
    """A composed config.

    choices: the options of each group: none, one, or several.
    values: the whole as plain values, with its interpolations as they are written.
    """

    choices: dict[str, list[str]]
    values: dict[str, Any]


def compose_arguments(config_name: str, arguments: Sequence[str]) -> Composed:
    """Compose a command's config, of a sweep that of its first run.

    Args:
        config_name: of the command.
        arguments: of the command line. Of Hydra's flags `--multirun` and `--config-dir` count.

    Raises:
        HydraException: an argument that Hydra refuses.
        InputError: a group that is given null, or see `own_configs`.
    """
    prefer_own_options()
    # A folder of a run may be named after its options: lr=0.1.
    given = [one for one in arguments if ("=" in one or one[:1] == "~") and not Path(one).exists()]
    given = [one for one in given if not one.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(keep_names(given))
    lines = [str(override.input_line) for override in overrides]
    if {"-m", "--multirun"} & {*arguments}:
        lines = [_first(override) for override in overrides]
    if folder := own_configs(arguments):
        lines.append(f"hydra.searchpath=['{folder}']")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(config_name, lines, return_hydra_config=True)
    except ValueError as error:
        raise refused_by_hydra(error) or error from error
    chosen = config.hydra.runtime.choices.items()
    choices = {group: [] if option is None else [option] for group, option in chosen}
    # Hydra keeps no record of several options of one group.
    lists = {str(override.key_or_group): override.value() for override in overrides}
    choices |= {group: options for group, options in lists.items() if isinstance(options, list)}
    values: Any = OmegaConf.to_container(config, resolve=False)
    del values["hydra"]
    return Composed(choices, values)


def own_configs(arguments: Sequence[str]) -> Path | None:
    """Return the folder of the user's own options that `--config-dir` names; None where it is not given.

    Raises:
        InputError: there is no such folder.
    """
    folder = _FLAGS.parse_known_args(list(arguments))[0].config_dir
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise InputError(f"--config-dir={folder}: there is no such folder")
    return Path(folder).absolute()


def _first(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    value = next(iter(override.sweep_string_iterator()), "")
    return f"{override.get_key_element()}={value}"


def refused_by_hydra(error: Exception) -> InputError | None:
    """Convert what Hydra raises in types of Python; None for any other error."""
    if "Config group override must be" in str(error):
        return InputError("a group of options is given null; ~<group> leaves it out, as in ~logger")
    if "Only one of --run, --multirun, --cfg" in str(error):
        return InputError("--cfg prints one config and -m runs several; give one of the two")
    if "Unknown plugin class" in str(error):
        name = str(error).rpartition(".")[2].strip(" '")
        return InputError(f"{name} is not installed; pip install 'captioning[sweep]'")
    return None


def prefer_own_options() -> None:
    """Let the options in `conf/hydra/` stand for those of the plugins that have the same names.

    Hydra 1.3 merges a file with a stored config of its name, with a warning, or refuses it.
    """
    Plugins.instance()  # imports the plugins, which store theirs
    stored = ConfigStore.instance().repo["hydra"]
    for path in (CONF / "hydra").glob("*/*.yaml"):
        stored.get(path.parent.name, {}).pop(path.name, None)
