"""`--help`: what a command does, its groups with their options, and every key with its value and comment.

Comments come from the YAML files, read as text, and values from what Hydra composes of the arguments, so that
neither can differ from a run.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from captioning.cli.composition import Composed, compose_arguments, own_configs
from captioning.files import CONF

_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w]+):(?P<value>(?: (?!#)\S.*?)?)(?:\s+# (?P<comment>.*))?$")
_WIDTH = 30  # of the column of names
_LONGEST = 100  # characters of a value
_MISSING = object()  # for a value that is not there; None is one that is
# What commands read that inherit training's options, so that experiments name data and features for both.
READ = {
    "extract": ("data", "features", "experiment", "data_root", "seed", "output_dir"),
    "baseline": ("data", "features", "experiment", "retrieval", "data_root", "seed", "output_dir"),
}


class Option(NamedTuple):
    """One YAML file: its opening comment, its `defaults`, and its keys as (name, value, comment)."""

    comment: list[str]
    defaults: list[object]
    keys: list[tuple[str, str, str]]


def help_text(config_name: str, arguments: Sequence[str] = ()) -> str:
    """Describe a command: its options, its groups, and the keys of those options that are chosen.

    Args:
        config_name: of the command.
        arguments: of the command line: those that the help is asked for beside.

    Raises:
        HydraException: an argument that Hydra refuses.
        InputError: anything else that keeps Hydra from composing them.
    """
    root = read_option(CONF / f"{config_name}.yaml")
    composed = compose_arguments(config_name, arguments)
    groups = list(read_groups(config_name))
    folders = [CONF, own] if (own := own_configs(arguments)) else [CONF]
    read = READ.get(config_name)
    lines = [*root.comment, "", f"usage: captioning {config_name} [key=value …]", ""]
    keys = read_keys(config_name)
    if not read:  # what an experiment adds; a command that inherits options does not read it
        packages = tuple(f"{group.replace('/', '.')}." for group in groups)
        keys += _added(composed.values, "", keys, packages)
    lines += ["Options (key=value):", *_keys(_current(keys, composed.values)), ""]
    inside = [name for name in composed.choices if "@" in name] if "model" in groups else []
    sweeps = ["hydra/sweeper", "hydra/launcher"] if "trainer" in groups else []
    for group in [*groups, *inside, *sweeps]:
        lines += [f"{group}=…   ({', '.join(composed.choices.get(group, [])) or 'none'})"]
        places = [folder / group.partition("@")[0] for folder in folders]
        for path in (path for place in places for path in sorted(place.glob("[!_]*.yaml"))):
            lines.append(_entry(f"  {path.stem}", _first_sentence(opening_comment(path))))
        lines.append("")
    for group in groups:
        if found := _chosen_keys(group, composed, groups):
            lines += [f"keys of {group}={','.join(composed.choices[group])}:", *_keys(found), ""]
    if read:
        lines.append(
            "The other options of captioning train are accepted, since experiments set them, and not read."
        )
    if "experiment" in groups:
        lines.append("--help beside other arguments shows what they change: --help experiment=transformer.")
    elif groups:
        lines.append(f"--help beside other arguments shows what they change: --help {groups[0]}=….")
    if "decoding" in groups:
        lines.append("Every key can be set; lists so: 'decoding.required=[dog]'.")
    if "trainer" in groups:
        lines.append("A sweep: -m seed=0,1,2.")
    lines.append("--cfg job prints the composed config; --hydra-help tells Hydra's own options.")
    return "\n".join(lines)


def _chosen_keys(group: str, composed: Composed, groups: Sequence[str]) -> list[tuple[str, str, str]]:
    """List the keys of the options that a group has, but for those of groups inside it."""
    options = composed.choices.get(group, [])
    if group == "experiment" or not options:
        return []
    package = group.replace("/", ".")
    inner = tuple(f"{name.replace('/', '.')}." for name in groups if name.startswith(f"{group}/"))
    files = [option for option in options if (CONF / group / f"{option}.yaml").is_file()]
    listed = _merged([key for option in files for key in option_keys(group, option)])
    keys = [(f"{package}.{name}", value, comment) for name, value, comment in listed]
    return _current([*keys, *_added(composed.values, package, keys, inner)], composed.values)


def _added(
    values: Mapping[str, object], package: str, keys: list[tuple[str, str, str]], elsewhere: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    """List the keys that an experiment, the command line or files of the user have added to those listed."""
    names = {name for name, *_ in keys}
    written = tuple(f"{name}." for name, literal, _ in keys if literal)  # with all that is inside it
    added = _leaves(value_of(package, values) if package else values, package)
    return [(n, "", "") for n in added if n not in names and not f"{n}.".startswith(written + elsewhere)]


def _current(keys: list[tuple[str, str, str]], values: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Give keys the values that they have, and leave out those that are none, such as keys of list items."""
    current = []
    for name, literal, comment in keys:
        value = value_of(name, values)
        if value is _MISSING:
            continue
        text = literal if literal and _parsed(literal) == value else _as_yaml(value)
        if isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other, *_ in keys):
            if not comment:
                continue
            text = ""  # its keys follow
        current.append((name, text, comment))
    return current


def value_of(name: str, values: object) -> object:
    """Return what a dotted name has in nested mappings; a mark of its own if it is not there."""
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return _MISSING
        values = values[part]
    return values


def _leaves(node: object, name: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif node is not _MISSING:
        yield name


def _parsed(literal: str) -> object:
    try:
        return yaml.safe_load(literal)
    except yaml.YAMLError:
        return literal


def _as_yaml(value: object) -> str:
    if not isinstance(value, str):
        value = yaml.safe_dump(
            value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
        )
    text = value.removesuffix("...\n").strip()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def read_groups(config_name: str) -> dict[str, str | None]:
    """List the groups that a command reads, with the option it takes by default."""
    groups = command_groups(config_name)
    read = READ.get(config_name, [group.partition("/")[0] for group in groups])
    return {group: option for group, option in groups.items() if group.partition("/")[0] in read}


def read_keys(config_name: str) -> list[tuple[str, str, str]]:
    """List the keys that a command reads outside of its groups, as (name, value, comment)."""
    keys, own = command_keys(config_name), read_option(CONF / f"{config_name}.yaml").keys
    return [key for key in keys if key in own or key[0] in READ.get(config_name, [key[0]])]


def command_groups(config_name: str) -> dict[str, str | None]:
    """List the groups that a command takes, with the option it takes by default."""
    groups: dict[str, str | None] = {}
    for entry in read_option(CONF / f"{config_name}.yaml").defaults:
        if isinstance(entry, str) and entry != "_self_":
            groups |= command_groups(entry)
        elif isinstance(entry, dict):
            for name, option in entry.items():
                group = str(name).removeprefix("override ").lstrip("/")
                if not group.startswith("hydra"):
                    groups |= {group: option, **_inner_groups(group, option)}
    return groups


def _inner_groups(group: str, option: str | None) -> dict[str, str | None]:
    """List the groups inside a group, such as `data/tokenizer`, with what an option of it takes of them."""
    folders = sorted(path.name for path in (CONF / group).iterdir() if path.is_dir())
    groups: dict[str, str | None] = {f"{group}/{name}": None for name in folders}
    for entry in read_option(CONF / group / f"{option}.yaml").defaults if option and folders else ():
        if isinstance(entry, str) and entry != "_self_":
            groups |= _inner_groups(group, entry)
        elif isinstance(entry, dict):
            chosen = {str(name).removeprefix("override "): choice for name, choice in entry.items()}
            groups |= {f"{group}/{name}": chosen[name] for name in folders if name in chosen}
    return groups


def read_option(path: Path) -> Option:
    """Read the opening comment, defaults and keys of a YAML file of ours."""
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) or {}
    return Option(opening_comment(path), content.get("defaults", []), _read_keys(text.splitlines()))


def opening_comment(path: Path) -> list[str]:
    """Read the lines of a file's opening comment; the rest of it need not be YAML, nor UTF-8."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return [line.removeprefix("#").removeprefix(" ") for line in comment if not line.startswith("# @package")]


def _read_keys(lines: list[str]) -> list[tuple[str, str, str]]:
    keys: list[tuple[str, str, str]] = []
    parents: list[tuple[int, str]] = []  # indentation and name of the keys around a line
    for line in lines:
        match = _KEY.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        parents = [parent for parent in parents if parent[0] < indent]
        name = ".".join([*(parent[1] for parent in parents), match["key"]])
        parents.append((indent, match["key"]))
        if name.split(".")[0] in ("defaults", "hydra") or match["key"].startswith("_"):
            continue
        keys.append((name, match["value"].strip(), match["comment"] or ""))
    return keys


def command_keys(config_name: str) -> list[tuple[str, str, str]]:
    """List the keys that a command has outside of its groups, as (name, value, comment)."""
    root = read_option(CONF / f"{config_name}.yaml")
    parents = [entry for entry in root.defaults if isinstance(entry, str) and entry != "_self_"]
    keys = [key for parent in parents for key in command_keys(parent)]
    return _merged([*keys, *root.keys])


def option_keys(group: str, option: str) -> list[tuple[str, str, str]]:
    """List the keys of a group's option, with those it inherits, as (name, value, comment)."""
    found = read_option(CONF / group / f"{option}.yaml")
    keys: list[tuple[str, str, str]] = []
    for entry in found.defaults:
        if isinstance(entry, str) and entry != "_self_":
            keys += option_keys(group, entry)
        elif isinstance(entry, dict):  # a part from another group: /encoder@encoder: projection
            for name, choice in entry.items():
                part, _, place = str(name).removeprefix("override ").partition("@")
                inside = "" if part.startswith("/") else f"{group}/"
                keys += [
                    (f"{place or part}.{key}", value, comment)
                    for key, value, comment in option_keys(f"{inside}{part.lstrip('/')}", str(choice))
                ]
    return _merged([*keys, *found.keys])


def _merged(keys: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    merged: dict[str, tuple[str, str, str]] = {}
    for name, value, comment in keys:
        merged[name] = (name, value, comment or merged.get(name, ("", "", ""))[2])
    return list(merged.values())


def _keys(keys: list[tuple[str, str, str]], prefix: str = "") -> list[str]:
    return [_entry(f"  {prefix}{name}={value}", comment) for name, value, comment in keys]


def _entry(name: str, comment: str) -> str:
    return (
        f"{name:<{_WIDTH}}  {comment}".rstrip()
        if len(name) <= _WIDTH or not comment
        else f"{name}   {comment}"
    )


def _first_sentence(comment: list[str]) -> str:
    text = " ".join(line for line in comment if not line.startswith("  "))
    # "et al." does not end a sentence.
    return re.split(r"(?<=\.)(?<!al\.)\s", text, maxsplit=1)[0].rstrip(".")
