"""One sentence for bad input instead of a traceback: what was found, what is needed, the remedy."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from captioning.cli.composition import Composed, compose_arguments, own_configs
from captioning.cli.help import command_groups, command_keys, option_keys, read_groups, value_of
from captioning.cli.names import POSITIONAL, arguments_for_hydra
from captioning.errors import InputError
from captioning.files import CONF, PARTIAL

_REMEDIES = {  # what the file system answers, and what the user can do about it
    errno.ENOSPC: "the disk is full; make room and run the command again",
    errno.EDQUOT: "the disk quota is used up; make room and run the command again",
    errno.EROFS: "the file system is read-only; choose another place, of a run folder by hydra.run.dir=",
    errno.EACCES: "permission is denied; choose another place, or change the permissions",
    errno.EPERM: "permission is denied; choose another place, or change the permissions",
    errno.ENAMETOOLONG: "the file name is too long; choose a shorter one",
    errno.EISDIR: "a folder stands where a file is needed; give the name of a file",
    errno.ENOTDIR: "a file stands where a folder is needed; give another name",
    errno.EEXIST: "a file stands where a folder is needed; give another name",
    errno.EIO: "the disk gives an input/output error; check it, then run the command again",
}
_QUOTED = "'image=\"photo (1).jpg\"'"
_ANSWERS = {  # of Hydra, by a pattern of its own words, whose groups fill the braces
    r"In '(experiment/[^']+)': Could not override '([^'@]+)@experiment": (
        "{0}.yaml overrides {1}; its first line must be # @package _global_"
    ),
    r"Multiple values for (\S+)\. To override": "{0} has an option already; exchange it by {0}=… without +",
    r"Could not delete '([^']+)'\. No match": "{0} is not chosen, so that it can't be left out",
    r"does not support sweep type": "give values, as in a,b,c; intervals are for hydra/sweeper=optuna",
}


def input_error(error: Exception) -> InputError | None:
    """Convert an exception to one sentence the user can act on; None where it is a fault of the program."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError):
        remedy = _REMEDIES.get(error.errno or 0)
        # The file that the user knows, not the temporary one of `atomic_write`.
        name = re.sub(rf"\.[0-9a-f]{{8}}{re.escape(PARTIAL)}$", "", str(error.filename or error))
        return InputError(f"{name}: {remedy}") if remedy else None
    if isinstance(error, InstantiationException):  # Hydra wraps what a constructor raises
        cause = error.__cause__
        if isinstance(cause, InputError):
            return cause
        key = str(error).partition("full_key: ")[2].strip()
        if not key:
            match = re.search(r"target '([\w.]+)'", str(error))
            key = match[1] if match else "the config"
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(cause)):
            return InputError(f"{key} has no option {unknown[1]}; --help lists those that there are")
        if isinstance(cause, ImportError) and "wandb" in str(cause):
            return InputError(f"{key} needs the package wandb; run pip install 'captioning[track]'")
        reason = cause if isinstance(cause, (TypeError, ValueError)) else repr(cause)
        return InputError(f"{key} can't be built as given: {reason}; HYDRA_FULL_ERROR=1 shows the traceback")
    if isinstance(error, OmegaConfBaseException):
        return InputError(str(error).partition("\n")[0])
    return None


def refuse_missing(options: Any, config_name: str) -> None:
    """Refuse options that leave to the user what the user has not given, or that leave out a command's group.

    Args:
        options: the composed config as plain values.
        config_name: of the command.

    Raises:
        InputError: names them.
    """
    if missing := list(_missing(options)):
        raise InputError(f"needed, and not given: {', '.join(f'{name}=…' for name in missing)}")
    # A run may have no logger, and an experiment is part of the other groups.
    needed = [group for group, option in read_groups(config_name).items() if option and "/" not in group]
    if absent := [group for group in needed if group not in {*options, "experiment", "logger"}]:
        raise InputError(f"needed, and left out: {', '.join(f'{name}=…' for name in absent)}")


def _missing(node: Any, name: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            # Sizes marked `???` in a model are filled in from the data, not by the user.
            if name or key != "model":
                yield from _missing(value, f"{name}.{key}" if name else str(key))
    elif node == "???":
        yield name


def refuse_fractions(options: Any) -> None:
    """Refuse a seed or a number of epochs that is not a whole number, before anything is built with it.

    Raises:
        InputError: names the option.
    """
    for name, least in (("seed", 0), ("max_epochs", 1)):
        value = options.get(name)
        if value is not None and not (type(value) is int and value >= least):
            raise InputError(f"{name}={value} must be a whole number from {least}")


def refuse_switches(options: Any, config_name: str, choices: Mapping[str, Any]) -> None:
    """Refuse anything but true and false for an option that our YAML files have as one of the two.

    Args:
        options: the composed config as plain values.
        config_name: of the command.
        choices: the option of each group.

    Raises:
        InputError: names the option.
    """
    keys = [(name, literal) for name, literal, _ in command_keys(config_name)]
    for group, option in choices.items():
        # What the trainer's switches take is Lightning's affair.
        if group not in ("experiment", "trainer", "logger") and (CONF / group / f"{option}.yaml").is_file():
            package = group.replace("/", ".")
            keys += [(f"{package}.{name}", literal) for name, literal, _ in option_keys(group, option)]
    for name, literal in keys:
        value = value_of(name, options)
        is_wrong = isinstance(value, str | int | float) and not isinstance(value, bool)
        # An interpolation has not been resolved yet.
        if literal in ("true", "false") and is_wrong and "${" not in str(value):
            raise InputError(f"{name}={value} must be true or false")


def options_error(error: HydraException, config_name: str, arguments: Sequence[str]) -> str:
    """Say what is wrong with the options of a command, with the nearest right ones.

    Args:
        error: what Hydra raised.
        config_name: of the command.
        arguments: of the command line.
    """
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(str(error.missing_cfg_file), arguments)
    if isinstance(error, OverrideParseException):
        name = error.override.strip("+~")
        if "=" not in name:
            return (
                f"found {name or repr(error.override)}, which has no value; give {name or '<name>'}=<value>"
            )
        return (
            f"Hydra can't read {error.override}; close its brackets and quotes, or quote its value: {_QUOTED}"
        )
    for pattern, answer in _ANSWERS.items():
        if match := re.search(pattern, text):
            return answer.format(*match.groups())
    if match := re.search(r"Could not override '([^']*)'", text):
        in_defaults = re.search(r"No match in the defaults list|defaults list\.?$", text.partition("\n")[0])
        return _no_key(match[1].lstrip("+~"), bool(in_defaults), config_name, arguments)
    if match := re.search(r"Could not delete from config. '([^']+)' does not exist", text):
        return _no_key(match[1], False, config_name, arguments)
    if match := re.search(r"Ambiguous value for argument '([^=']+)=", text):
        return _several_values(match[1].lstrip("+"), config_name, arguments)
    return text.partition("\n")[0]


def _no_option(missing: str, arguments: Sequence[str]) -> str:
    group, _, option = missing.rpartition("/")
    if not group:
        return "a command has a config of its own; --config-dir=<folder> adds options to those that there are"
    folders = [CONF, own] if (own := own_configs(arguments)) else [CONF]
    names = sorted({path.stem for folder in folders for path in (folder / group).glob("[!_]*.yaml")})
    return f"there is no {group}={option}; {_suggestion(option, names)}"


def _no_key(name: str, is_group: bool, config_name: str, arguments: Sequence[str]) -> str:
    """Say that a command has no such key, or no such group of options."""
    if not name:
        return "found = without a name before it; give <name>=<value>"
    key = name.partition("@")[0]
    groups = command_groups(config_name)
    if is_group and name == key:
        return f"this command takes no {key}=; {_suggestion(key, groups)}"
    composed = _composed(config_name, arguments)
    if inside := [choice for choice in composed.choices if choice.startswith(f"{key}@")]:
        return f"there is no {name}; did you mean {inside[0]}?"
    known = dict.fromkeys([*groups, *_dotted(composed.values)])
    remedy = _suggestion(key, known)
    if config_name in POSITIONAL and not remedy.startswith("did you mean"):
        return f"there is neither a file of that name nor an option {name}; {remedy}"
    return f"there is no {name}; {remedy}"


def _several_values(key: str, config_name: str, arguments: Sequence[str]) -> str:
    values = next(one.partition("=")[2] for one in arguments if one.lstrip("+").startswith(f"{key}="))
    composed = _composed(config_name, arguments)
    value = value_of(key, composed.values)
    is_group = key in composed.choices and key not in ("experiment", "logger")
    if is_group or (isinstance(value, bool | int | float | str) and value != "???"):
        return f"{key} has several values; -m makes a run with each"
    return f"{key} has several values; give a list, '{key}=[{values}]', or -m for a run with each"


def _suggestion(name: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "--help lists all options"
    # The right key in the wrong place is nearer than another one that is written like it.
    same = [other for other in names if _last_part(other) == _last_part(name)]
    if close := difflib.get_close_matches(name, same or names, 1, 0 if same else 0.5):
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(names)}" if len(names) <= 30 else "--help lists all options"


def _last_part(name: str) -> str:
    return re.split("[./]", name)[-1]


def _composed(config_name: str, arguments: Sequence[str]) -> Composed:
    """Compose a command's config with Hydra's flags and the options that name groups, if these are sound."""
    for given in (_flags_and_groups(config_name, arguments), []):
        with suppress(HydraException, InputError):
            return compose_arguments(config_name, given)
    return Composed({}, {})


def _flags_and_groups(config_name: str, arguments: Sequence[str]) -> list[str]:
    flags, options = arguments_for_hydra(config_name, arguments)
    groups = [
        option
        for option in options
        if (key := option.partition("=")[0].lstrip("+~")) and (CONF / key).is_dir()
    ]
    return [*flags, *groups]


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield f"{prefix}{key}"
                yield from _dotted(value, f"{prefix}{key}.")
