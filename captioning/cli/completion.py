"""Completion in bash of commands, keys, groups and their options: `eval "$(captioning completion)"`.

Reads the YAML files as `--help` does, without importing torch. Where nothing fits, bash completes file names.
"""

from collections.abc import Iterable

from captioning.cli.help import option_keys, read_groups, read_keys
from captioning.files import CONF

BASH = r"""_captioning() {
    local line="${COMP_LINE:0:COMP_POINT}" cut="" candidate
    local word="${line##*[[:space:]]}"
    # Where bash takes "=" for the end of a word, it replaces only what stands behind it.
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && cut="${word%"${word##*=}"}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        [[ -n $candidate ]] && COMPREPLY+=("${candidate#"$cut"}")
    done < <(captioning completion "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _captioning captioning"""


def complete(line: str, commands: Iterable[str]) -> list[str]:
    """List what the last word of a command line may become, as whole words.

    Args:
        line: up to the cursor, beginning with the name of the script.
        commands: that there are.
    """
    *words, last = line.split(" ") if line.strip() else [""]
    given = [word for word in words[1:] if word]
    if not given:
        return _that_begin(last, [*commands, "--help", "--version"])
    if given[0] not in commands:
        return []
    groups = {**read_groups(given[0]), **_chosen(given[1:])}
    key, equals, value = last.partition("=")
    if equals:
        front, comma, _ = value.rpartition(",")  # a sweep: model=a,b
        options = _options(key) if key in groups else _values(given[0], groups, key)
        return _that_begin(last, [f"{key}={front}{comma}{option}" for option in options])
    return _that_begin(last, _names(given[0], groups, last))


def _chosen(words: Iterable[str]) -> dict[str, str | None]:
    """Return the groups that the line has chosen an option of."""
    pairs = (word.split("=", 1) for word in words if "=" in word)
    return {key: value for key, value in pairs if (CONF / key / f"{value}.yaml").is_file()}


def _names(command: str, groups: dict[str, str | None], last: str) -> list[str]:
    names = [f"{group}=" for group in groups]
    names += [f"{key}=" for key, value, _ in read_keys(command) if value]
    nested = [f"{name}=" for name, value in _nested(groups) if value]
    # The keys inside the groups come up once their group has been typed.
    names += nested if "." in last else sorted({f"{name.partition('.')[0]}." for name in nested})
    return [*names, "--help", "--multirun", "--cfg"]


def _nested(groups: dict[str, str | None]) -> list[tuple[str, str]]:
    return [
        (f"{group}.{name}", value)
        for group, option in groups.items()
        if option and group != "experiment"
        for name, value, _ in option_keys(group, option)
    ]


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


def _values(command: str, groups: dict[str, str | None], key: str) -> list[str]:
    known = {name: value for name, value, _ in read_keys(command)} | dict(_nested(groups))
    return ["true", "false"] if known.get(key) in ("true", "false") else []


def _that_begin(start: str, candidates: Iterable[str]) -> list[str]:
    return sorted({candidate for candidate in candidates if candidate.startswith(start)})
