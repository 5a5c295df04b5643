"""Ctrl-C while a command's modules are imported, which takes seconds; later the command handles it itself.

Only commands import `captioning.cli`, which calls this before anything else.
"""

import sys
from types import TracebackType


def stop_quietly() -> None:
    """Let a Ctrl-C that nothing handles end the process with one word; the shell sees the signal."""
    sys.excepthook = _say_stopped


def _say_stopped(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
