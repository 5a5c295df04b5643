"""Ctrl-C while a command's modules are imported, which takes seconds; later the command handles it itself.

`captioning.cli` calls this before anything else. What it replaces is called for every other error.
"""

import sys
from types import TracebackType


def stop_quietly() -> None:
    """Let a Ctrl-C that nothing handles end the process with one word; the shell sees the signal."""
    others = sys.excepthook

    def say_stopped(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped", file=sys.stderr)
        else:
            others(kind, error, traceback)

    sys.excepthook = say_stopped
