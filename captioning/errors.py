"""The one exception for what a user can mend: it says what was found, what was needed and the remedy."""


class InputError(ValueError):
    """A file, option or image is not what the command needs; the commands print it without a traceback."""
