"""One sentence for bad input instead of a traceback: what was found, what is needed, the remedy."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from captioning.cli.composition import compose_arguments
from captioning.cli.help import command_groups, command_keys, option_keys, value_of
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


def input_error(error: Exception) -> InputError | None:
    """Convert an exception to one sentence the user can act on; None where it is a fault of the program."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError):
        remedy = _REMEDIES.get(error.errno or 0)
        # The file that the user knows, not the temporary one of `atomic_write`.
        name = re.sub(rf"\.[0-9a-f]{{8}}{re.escape(PARTIAL)}$", "", str(error.filename or error))
        return InputError(f"{name}: {remedy}") if remedy else None
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return InputError(f"{mark.name}, line {mark.line + 1}: {error.problem}; it is not valid YAML")
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


def refuse_missing(options: Any) -> None:
    """Refuse options that leave to the user what the user has not given.

    Raises:
        InputError: names them.
    """
    if missing := list(_missing(options)):
        raise InputError(f"needed, and not given: {', '.join(f'{name}=…' for name in missing)}")


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
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        names = sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))
        return f"there is no {group}={option}; {_suggestion(option, names)}"
    if match := re.search(r"In '(experiment/\w+)': Could not override '([^'@]+)@experiment", text):
        return f"{match[1]}.yaml overrides {match[2]}; its first line must be # @package _global_"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1].partition("@")[0].lstrip("+~")
        if re.search(rf"No match in the defaults list|{re.escape(key)}.*defaults list", text):
            return f"this command takes no {key}=; {_suggestion(key, command_groups(config_name))}"
        if inside := [name for name in _choices(config_name) if name.startswith(f"{key}@")]:
            return f"there is no {key}; did you mean {inside[0]}?"
        known = _known_keys(config_name, [argument for argument in arguments if _key_of(argument) != key])
        return f"there is no {key}; {_suggestion(key, known)}"
    if match := re.search(r"Ambiguous value for argument '([^=']+)=([^']*)'", text):
        as_list = f"'{match[1]}=[{match[2]}]'"
        return f"{match[1]} has several values; give a list, {as_list}, or -m for a run with each"
    if match := re.search(r"Error parsing override '([\w.]+)'", text):
        return f"found {match[1]}, which has no value; give {match[1]}=<value>"
    return text.partition("\n")[0]


def _suggestion(name: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "--help lists all options"
    close = difflib.get_close_matches(name, names, 1, 0.5)
    if not close and "." in name:  # the right key in the wrong place
        close = [other for other in names if other.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(names)}" if len(names) <= 30 else "--help lists all options"


def _key_of(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _known_keys(config_name: str, arguments: Sequence[str]) -> list[str]:
    """List the dotted keys of a command's config, composed with those of its arguments that name groups."""
    groups = [argument for argument in arguments if (CONF / _key_of(argument)).is_dir()]
    try:
        return list(_dotted(compose_arguments(config_name, groups).values))
    except HydraException:
        return []


def _choices(config_name: str) -> Iterable[str]:
    try:
        return compose_arguments(config_name, []).choices
    except HydraException:
        return []


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield f"{prefix}{key}"
                yield from _dotted(value, f"{prefix}{key}.")
