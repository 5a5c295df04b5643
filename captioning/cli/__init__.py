"""The command line: the decorator that makes a function a command, messages for bad input, progress bars."""

from captioning.cli.interrupt import stop_quietly

stop_quietly()  # before the imports that take seconds

from captioning.cli.command import as_list, command, quick_help, silence_known_warnings

__all__ = ["as_list", "command", "quick_help", "silence_known_warnings"]
