"""Options that take names keep what was typed: `image=2024_01` is the folder 2024_01, not the number 202401.

Hydra reads every value as YAML would and refuses characters that its grammar lacks, such as those of
`image=Größe.jpg` and `image="photo (1).jpg"`. Values of the options listed here are quoted for it wherever it
would read anything but the text itself.
"""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from captioning.errors import InputError

_NAMES = """
    annotations checkpoint compare copy_from data_root default_root_dir dir document_frequencies
    features_path file files folders image images name optional_splits output output_dir path picture
    project references results resume root save_dir save_document_frequencies scores splits start_from
    storage subdir submitit_folder tokens trust weights
"""
POSITIONAL = {"caption": "image", "compare": "folders"}  # the option that takes a command's other arguments
# Flags of Hydra that are followed by a value of their own.
_HYDRAS_FLAGS = re.compile("--?(?:c|cfg|cd|config-dir|cp|config-path|cn|config-name|p|package|i|info)")
# Last parts of keys whose values name files, runs and the like; splits.train counts by the part before.
NAMES = frozenset(_NAMES.split())
# A quoted text between commas, or whatever stands between them.
_ELEMENT = re.compile(r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")\s*(?=,|$)|(?:\\.|[^,])+""")
_HYDRAS_OWN = re.compile(
    r"(?:choice|extend_list|glob|int|float|interval|range|shuffle|sort|str|tag)\(.*\)|\{.*\}"
)


def arguments_for_hydra(config_name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Write the arguments of a command so that Hydra reads them as they were meant.

    Args:
        config_name: of the command.
        arguments: of the command line, without the command.

    Returns:
        Hydra's flags, with their values, and the options; Hydra refuses options on both sides of a flag.

    Raises:
        InputError: see `gather_positional`.
    """
    positional = POSITIONAL.get(config_name)
    arguments = gather_positional(arguments, positional) if positional else arguments
    flags: list[str] = []
    options: list[str] = []
    for before, argument in itertools.pairwise(["", *arguments]):
        is_flag = argument.startswith("-") or _HYDRAS_FLAGS.fullmatch(before)
        (flags if is_flag else options).append(argument)
    return flags, keep_names(options)


def keep_names(arguments: Sequence[str]) -> list[str]:
    """Quote the names among a command's arguments for Hydra.

    Args:
        arguments: of the command line, without the command.

    Returns:
        the same arguments; of those that name something, the values Hydra would change are quoted.
    """
    return [_keep_name(argument) for argument in arguments]


def gather_positional(arguments: Sequence[str], key: str) -> list[str]:
    """Turn arguments that are no options into one option: `runs/a runs/b` into `folders=[runs/a,runs/b]`.

    A single one becomes the value itself: `dog.jpg` becomes `image=dog.jpg`.

    Args:
        arguments: of the command line, without the command.
        key: of the option that they are the values of.

    Raises:
        InputError: the option is there too, and one of the two would be lost.
    """
    values: list[str] = []
    others: list[str] = []
    before = ""
    for argument in arguments:
        # The folder of a run may be named after its options: lr=0.1. "-" is standard input.
        is_option = argument.startswith(("-", "+", "~")) and argument != "-"
        is_option |= "=" in argument and not os.path.exists(argument)  # false of a name too long for a file
        (others if is_option or _HYDRAS_FLAGS.fullmatch(before) else values).append(argument)
        before = argument
    if not values:
        return others
    if twice := [argument for argument in others if argument.startswith(f"{key}=")]:
        raise InputError(f"found {values[0]} and {twice[0]}; give all as {key}=[…], or all without {key}=")
    names = [as_text(value) for value in values]
    return [*others, f"{key}={names[0]}" if len(names) == 1 else f"{key}=[{','.join(names)}]"]


def refuse_numbers(options: Any) -> None:
    """Refuse numbers where names are needed: a YAML file turns 2024_01 into one.

    Raises:
        InputError: names the option.
    """
    for key, value in _leaves(options):
        if takes_names(key) and isinstance(value, int | float):
            kind = "the value" if isinstance(value, bool) else "the number"
            raise InputError(f"{key}: found {kind} {value}; quote it: {key}=\"'{value}'\"")


def takes_names(key: str) -> bool:
    """Return whether the values of an option, given by its dotted key, are names."""
    return not NAMES.isdisjoint(key.lstrip("+").split(".")[-2:])


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _keep_name(argument: str) -> str:
    key, equals, value = argument.partition("=")
    # An interpolation is Hydra's to resolve, as are sweeps such as choice(a,b).
    if not equals or argument.startswith(("-", "~")) or not takes_names(key) or "${" in value:
        return argument
    text = value.strip()
    if _HYDRAS_OWN.fullmatch(text):
        return argument
    is_list = text.startswith("[") and text.endswith("]")
    elements = [match[0] for match in _ELEMENT.finditer(text[1:-1] if is_list else text)]
    if len(elements) > 1 and any(set("[]{}") & set(element) for element in elements):
        return argument  # lists of lists, or a sweep over lists
    quoted = ",".join(map(_quote, elements))
    return f"{key}=[{quoted}]" if is_list else f"{key}={quoted}"


def _quote(text: str) -> str:
    """Quote a name unless Hydra reads it as the text that it is."""
    with suppress(HydraException):
        value = OverridesParser.create().parse_override(f"name={text}").value()
        if value is None or isinstance(value, str | QuotedString):
            return text
    return as_text(text)


def as_text(text: str) -> str:
    """Quote a text for Hydra, which then reads it as it is."""
    # A backslash is one, except before a quotation mark and at the end.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text.strip())
    return f"'{escaped}'"
