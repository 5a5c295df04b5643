"""A font that has the characters of a text, looked for among those of the machine.

Matplotlib draws boxes in place of characters that its font lacks, and knows only fonts that were there when
it first ran.
"""

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)


def find_font(text: str, fonts: Iterable[Path] | None = None) -> Path | None:
    """Find a font that has all characters of a text; None where there is none.

    Args:
        text: white space in it needs no font.
        fonts: files, the best first; None for those of the machine.
    """
    wanted = "".join(sorted({char for char in text if not char.isspace()}))
    candidates = installed_fonts() if fonts is None else fonts
    return next((path for path in candidates if _draws(path, wanted)), None)


@cache
def installed_fonts() -> tuple[Path, ...]:
    """List the font files of this machine: matplotlib's default, then regular ones, then bold and others."""
    from matplotlib import font_manager

    found = map(Path, font_manager.findSystemFonts())
    # A "last resort" font has a box for every character there is.
    usable = [path for path in found if "lastresort" not in path.stem.lower()]
    usable.sort(key=lambda path: ("regular" not in path.stem.lower(), path))
    return (Path(font_manager.findfont(font_manager.FontProperties())), *usable)


@cache  # so that a folder of pictures warns once
def warn_that_words_are_numbered() -> None:
    log.warning(
        "no font of this machine has all characters of these captions: their pictures number the words "
        "instead, and have no title. Install a font, such as Noto (for Chinese, Japanese and Korean the "
        "package fonts-noto-cjk)"
    )


def _draws(path: Path, characters: str) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
        if not all(font.get_char_index(ord(char)) for char in characters):
            return False
        font.set_size(12, 100)
        font.set_text(characters)  # fonts of coloured pictures fail only here
    except (OSError, RuntimeError):
        return False
    return True
