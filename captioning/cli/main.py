"""The console script: `captioning <command> key=value …` runs `python -m captioning.<command> …`."""

import difflib
import importlib
import sys

from captioning import __version__
from captioning.cli.command import print_help
from captioning.cli.completion import BASH, complete

COMMANDS = {
    "train": "train a captioner, or a sweep of them",
    "extract": "fill the feature cache of a data set",
    "evaluate": "score a model or result files, compare two systems",
    "compare": "put trainings side by side: means over seeds, intervals, curves",
    "caption": "caption photographs",
    "app": "a page in the browser that captions photographs",
    "export": "write a captioner as one file that needs nothing else",
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
    if name == "completion":
        # Bash asks with the line up to the cursor; without one, the user asks for the script.
        print("\n".join(complete(sys.argv[2], COMMANDS)) if len(sys.argv) > 2 else BASH)
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    if {"--help", "-h"} & set(sys.argv[2:]):
        print_help(name, sys.argv[2:])
        return
    del sys.argv[1]
    importlib.import_module(f"captioning.{name}").main()


def _overview() -> str:
    lines = ["captioning <command> key=value …", ""]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    lines += ["", "captioning <command> --help lists a command's options."]
    lines += ['Completion by the TAB key: eval "$(captioning completion)" in ~/.bashrc']
    return "\n".join(lines)
