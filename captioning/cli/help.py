"""`--help`: what a command does, its groups with their options, and every key with its comment.

All of it comes from the YAML files themselves, read as text, so that it takes no time and cannot differ from
them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from captioning.files import CONF

_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w]+):(?P<value>(?: (?!#)\S.*?)?)(?:\s+# (?P<comment>.*))?$")
_WIDTH = 30  # of the column of names
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
    """Describe a command: its options, its groups, and the keys of one option of every group.

    Args:
        config_name: of the command.
        arguments: `group=option` chooses the option whose keys are listed, instead of the default;
            `experiment=option` those that the experiment takes, and its own values are listed too.
    """
    root = read_option(CONF / f"{config_name}.yaml")
    groups = _choose_options(read_groups(config_name), arguments)
    read = READ.get(config_name)
    lines = [*root.comment, "", f"usage: captioning {config_name} [key=value …]", ""]
    lines += ["Options (key=default):", *_keys(read_keys(config_name)), ""]
    shown = {**groups, "hydra/sweeper": "basic", "hydra/launcher": "basic"} if "trainer" in groups else groups
    for group, chosen in shown.items():
        lines += [f"{group}=…" + (f"   ({chosen})" if chosen else "   (none)")]
        for path in sorted((CONF / group).glob("[!_]*.yaml")):
            lines.append(_entry(f"  {path.stem}", _first_sentence(read_option(path).comment)))
        lines.append("")
    if experiment := groups.get("experiment"):
        values = read_experiment(experiment)[1].items()
        shown_values = [(key, value, "") for key, value in values if not read or key.split(".")[0] in read]
        lines += [f"set by experiment={experiment}, instead of what is listed:", *_keys(shown_values), ""]
    for group, chosen in groups.items():
        if chosen and group != "experiment" and (found := option_keys(group, chosen)):
            lines += [f"keys of {group}={chosen}:", *_keys(found, f"{group}."), ""]
    if read:
        lines.append(
            "The other options of captioning train are accepted, since experiments set them, and not read."
        )
    option, key = ("data=pairs", "data.language=de") if read else ("model=transformer", "optimizer.lr=1e-4")
    lines += [
        f"--help group=option lists the keys of another option: --help {option}.",
        f"Every key can be set: {key}. Lists: 'decoding.required=[dog]'. A sweep: -m seed=0,1,2.",
        "--cfg job prints the composed config; --hydra-help tells Hydra's own options.",
    ]
    return "\n".join(lines)


def _choose_options(groups: Mapping[str, str | None], arguments: Sequence[str]) -> dict[str, str | None]:
    """Replace defaults by what the arguments choose, and by what their experiment does where they do not."""
    chosen = {
        group: option
        for group, _, option in (argument.partition("=") for argument in arguments)
        if group in groups and (CONF / group / f"{option}.yaml").is_file()
    }
    experiment = chosen.get("experiment", groups.get("experiment"))
    of_experiment = read_experiment(experiment)[0] if experiment else {}
    result = dict(groups)
    for group, option in [*of_experiment.items(), *chosen.items()]:
        if group in groups:
            result |= {group: option, **_inner_groups(group, option)}
    return result


def read_experiment(option: str) -> tuple[dict[str, str], dict[str, str]]:
    """Read what an experiment chooses and sets: the option of each group, and the value of each key."""
    path = CONF / "experiment" / f"{option}.yaml"
    choices: dict[str, str] = {}
    values: dict[str, str] = {}
    for entry in read_option(path).defaults:
        if isinstance(entry, str) and entry != "_self_":
            inherited = read_experiment(entry)
            choices, values = choices | inherited[0], values | inherited[1]
        elif isinstance(entry, dict):
            choices |= {str(name).removeprefix("override /"): str(choice) for name, choice in entry.items()}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return choices, values | _flat({key: content[key] for key in content if key != "defaults"})


def _flat(content: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:  # as YAML writes it: null, true
            flat[prefix + key] = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return flat


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
    """Read a YAML file's opening comment, defaults and keys."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    for line in lines:
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").removeprefix(" "))
    content = yaml.safe_load("\n".join(lines)) or {}
    return Option(comment, content.get("defaults", []), _read_keys(lines))


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
