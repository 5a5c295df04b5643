"""The command line: the decorator that makes a function a command, messages for bad input, progress bars."""

from captioning.cli.command import as_list, command, quick_help, silence_known_warnings

__all__ = ["as_list", "command", "quick_help", "silence_known_warnings"]
