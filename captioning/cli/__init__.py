"""The command line: the decorator that makes a function a command, messages for bad input, progress bars."""

from captioning.cli.command import command, silence_known_warnings

__all__ = ["command", "silence_known_warnings"]
