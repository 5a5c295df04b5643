"""Words and their ids.

The tokenizer is the one of the post (Keydana 2018): Keras' filter characters without ``<``, ``>`` and the
apostrophe, lower case, split at white space. Departures: every kind of white space separates (COCO captions
contain newlines); the four special ids never come out of a text, so a caption that happens to contain
"<start>" contains an ordinary word; and texts that look the same give the same words. For the last, text is
brought to Unicode's composed form (NFC), HTML entities are resolved, every script's punctuation separates,
and invisible characters are dropped. Printable ASCII text without entities gives the post's words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from html import unescape
from html.entities import html5
from pathlib import Path

from captioning.errors import InputError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")

_FILTERED = '!"#$%&()*+.,-/:;=?@[\\]^_`{|}~'
_APOSTROPHES = "\u2018\u2019\u201b\u2032\u02bc\u00b4\uff07"  # curly, prime, modifier, acute, full width
_INSIDE_WORDS = "\u00b7\u05f3\u05f4\u055a"  # Catalan dot, Hebrew geresh and gershayim, Armenian apostrophe
_JOINERS = "\u200c\u200d"  # invisible, but they change the letters beside them in Persian and Hindi
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


class _Table(dict[int, str]):
    """What `str.translate` replaces a character by; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = replaced = _replace(chr(code))
        return replaced


def _replace(char: str) -> str:
    category = unicodedata.category(char)
    if char in _APOSTROPHES:
        return "'"
    if char == "\u200b" or category in ("Cc", "Cs"):  # zero-width space, control characters, lone surrogates
        return " "
    if char.isascii():
        return " " if char in _FILTERED else char
    if category == "Cf" and char not in _JOINERS or char in "\ufe0e\ufe0f":  # emoji or text style
        return ""
    # Full-width symbols such as ＋ are no punctuation to Unicode, but their ASCII forms are filtered.
    filtered = category[0] == "P" or unicodedata.normalize("NFKC", char) in _FILTERED
    return " " if filtered and char not in _INSIDE_WORDS else char


_TABLE = _Table()


def tokenize(text: str) -> list[str]:
    """Split a caption into lower-case words without punctuation."""
    if "&" in text:
        text = _ENTITY.sub(_resolve, text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.lower().translate(_TABLE).split()


def _resolve(entity: re.Match[str]) -> str:
    # `unescape` alone would also resolve the start of an unknown name: `&notes;` to `¬es;`.
    name = entity[1]
    return unescape(entity[0]) if name.startswith("#") else html5.get(f"{name};", entity[0])


def printable(text: str | Path) -> str:
    r"""Escape what must not reach a terminal, a log or a table: `\x1b` for an escape character.

    Control characters, line breaks and characters that reverse the text included. A byte of a file name that
    is not UTF-8 is shown as `\xe9`.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs":
        return char
    # Python keeps the bytes of an undecodable file name as surrogates from U+DC80 on.
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]


class Vocabulary:
    """A fixed list of words; the first four are padding, start, end and unknown.

    Args:
        words: every word in the order of its id, the special words first, as given by `Vocabulary.words`.

    Raises:
        ValueError: the list does not start with the four special words.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        if tuple(self.words[:4]) != SPECIAL_WORDS:
            raise ValueError(
                f"a vocabulary opens with {' '.join(SPECIAL_WORDS)} but this one opens with "
                f"{' '.join(self.words[:4]) or 'nothing'}; pass the list that Vocabulary.words gave"
            )
        self._ids = {word: index for index, word in enumerate(self.words) if index >= len(SPECIAL_WORDS)}

    @classmethod
    def build(cls, captions: Iterable[str], *, size: int, min_count: int = 1) -> "Vocabulary":
        """Keep the most frequent words of the captions, ties in alphabetical order.

        Args:
            captions: raw sentences; only those of the training split.
            size: the largest number of ids, the four special ones included, so that the embedding has `size`
                rows as in the post.
            min_count: rarer words are left out even if there is room.
        """
        if size <= len(SPECIAL_WORDS):
            raise InputError(
                f"vocabulary size {size} leaves no room for words; it counts the 4 special ids too"
            )
        counts = Counter(word for caption in captions for word in tokenize(caption))
        ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([*SPECIAL_WORDS, *(word for _, word in ranked[: size - len(SPECIAL_WORDS)])])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def id(self, word: str) -> int:
        """Return the id of a tokenised word, `UNKNOWN` for one that was not kept."""
        return self._ids.get(word, UNKNOWN)

    def encode(self, text: str, *, max_words: int | None = None) -> list[int]:
        """Turn a caption into START, word ids, END.

        A caption of more than `max_words` words is cut, but keeps its END (flaw S7: the post lost it).
        """
        return [START, *(self.id(word) for word in tokenize(text)[:max_words]), END]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into text: stops at END, leaves out PAD and START."""
        return " ".join(self.split(ids))

    def split(self, ids: Iterable[int]) -> list[str]:
        """Like `decode`, as a list of words."""
        words = []
        for index in map(int, ids):
            if index == END:
                break
            if index not in (PAD, START):
                words.append(self.words[index])
        return words
