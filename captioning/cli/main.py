"""The console script: `captioning <command> key=value …` runs `python -m captioning.<command> …`."""

import difflib
import importlib
import sys

from captioning import __version__
from captioning.cli.help import help_text

COMMANDS = {
    "train": "train a captioner, or a sweep of them",
    "extract": "fill the feature cache of a data set",
    "evaluate": "score a model or result files, compare two systems",
    "caption": "caption photographs",
    "baseline": "caption a split without a caption model",
    "demo": "the whole system on drawn scenes, in minutes",
}


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(_overview())
        return
    if name == "--version":
        print(__version__)
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    if {"--help", "-h"} & set(sys.argv[2:]):
        print(help_text(name))
        return
    del sys.argv[1]
    importlib.import_module(f"captioning.{name}").main()


def _overview() -> str:
    lines = ["captioning <command> key=value …", ""]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "captioning <command> --help lists a command's options."])
