"""What Hydra composes out of a command's arguments, without running the command."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from captioning.cli.names import arguments_for_hydra, as_text
from captioning.errors import InputError
from captioning.files import CONF


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
        InputError: anything else that keeps Hydra from composing them.
    """
    prefer_own_options()
    _, options = arguments_for_hydra(config_name, arguments)
    overrides = OverridesParser.create().parse_overrides(options)
    lines = [str(override.input_line) for override in overrides]
    if {"-m", "--multirun"} & {*arguments}:
        lines = [line for override in overrides if (line := _first(override))]
    if folder := own_configs(arguments):
        lines.append(f"hydra.searchpath=[{as_text(str(folder))}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(config_name, lines, return_hydra_config=True)
    except HydraException:
        raise
    except Exception as error:
        raise composing_error(error, arguments) from error
    chosen = config.hydra.runtime.choices.items()
    choices = {group: [] if option is None else [option] for group, option in chosen}
    # Hydra keeps no record of several options of one group.
    lists = {str(override.key_or_group): override.value() for override in overrides}
    choices |= {group: options for group, options in lists.items() if isinstance(options, list)}
    values: Any = OmegaConf.to_container(config, resolve=False)
    del values["hydra"]
    refuse_unplaced(values, config.hydra.runtime.choices)
    return Composed(choices, values)


def own_configs(arguments: Sequence[str]) -> Path | None:
    """Return the folder of the user's own options that `--config-dir` names; None where it is not given.

    Raises:
        InputError: there is no such folder.
    """
    folder = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = value if equals else following
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise InputError(f"--config-dir={folder}: there is no such folder")
    return Path(folder).absolute()


def _first(override: Override) -> str | None:
    """Write what an option is in a sweep's first run; None where only the sweep itself finds that out."""
    if not override.is_sweep_override():
        return str(override.input_line)
    sweep = override.value()
    if isinstance(sweep, Glob):
        return None
    value = sweep.start if isinstance(sweep, IntervalSweep) else next(override.sweep_string_iterator(), "")
    return f"{override.get_key_element()}={value}"


def refuse_unplaced(values: Any, choices: Any) -> None:
    """Refuse an experiment that stands below its own name instead of at the top: it would change nothing.

    Args:
        values: the composed config.
        choices: the option of each group; Hydra keeps no record of several.

    Raises:
        InputError: names its file.
    """
    if isinstance(values.get("experiment"), dict | list):
        chosen = choices.get("experiment")
        file = f"experiment/{chosen}.yaml" if isinstance(chosen, str) else "one of the experiments"
        raise InputError(f"{file}: nothing reads what it sets; its first line must be # @package _global_")


def refused_by_hydra(error: Exception) -> InputError | None:
    """Convert what Hydra raises in types of Python and of the YAML reader; None for any other error."""
    text = str(error)
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        return InputError(f"{mark.name}, line {mark.line + 1}: {error.problem}; it is not valid YAML")
    if isinstance(error, ReaderError):
        return InputError(f"{error.name}, character {error.position}: {error.reason}; it is not valid YAML")
    if "The --resolve flag can only" in text:
        return InputError("--resolve is for the config that --cfg job prints; leave it out, or add --cfg job")
    if "Only one of --run, --multirun, --cfg" in text:
        return InputError("--cfg prints one config and -m runs several; give one of the two")
    if "Unknown plugin class" in text:
        name = text.rpartition(".")[2].strip(" '")
        return InputError(f"{name} is not installed; pip install 'captioning[sweep]'")
    return None


def composing_error(error: Exception, arguments: Sequence[str]) -> InputError:
    """Convert anything that keeps Hydra from composing the options: it is they that are wrong.

    Args:
        error: what was raised.
        arguments: of the command line.
    """
    if isinstance(error, UnicodeDecodeError):
        files = [str(path) for path in (own_configs(arguments) or CONF).rglob("*.yaml") if not _is_utf8(path)]
        return InputError(f"{' or '.join(files) or 'a file of options'} is not UTF-8; save it as UTF-8")
    if "Config group override must be" in str(error):
        wrong = [one for one in arguments_for_hydra("", arguments)[1] if _is_group_without_name(one)]
        none = "; logger=[] is none" if any("logger" in one for one in wrong) else ""
        return InputError(f"{' '.join(wrong)}: a group takes the name of an option{none}")
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    general = f"these options can't be composed ({reason}); HYDRA_FULL_ERROR=1 shows the traceback"
    return refused_by_hydra(error) or InputError(general)


def _is_group_without_name(option: str) -> bool:
    override = OverridesParser.create().parse_override(option)
    is_group = bool(override.key_or_group) and (CONF / override.key_or_group).is_dir()
    return is_group and not isinstance(override.value(), str | list | QuotedString)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:  # another matter
        pass
    return True


def prefer_own_options() -> None:
    """Let the options in `conf/hydra/` stand for those of the plugins that have the same names.

    Hydra 1.3 merges a file with a stored config of its name, with a warning, or refuses it.
    """
    Plugins.instance()  # imports the plugins, which store theirs
    stored = ConfigStore.instance().repo["hydra"]
    for path in (CONF / "hydra").glob("*/*.yaml"):
        stored.get(path.parent.name, {}).pop(path.name, None)
