"""Words and their ids.

"Words" are what a model writes one by one: the tokens of whichever tokenizer the data have. The four special
ids never come out of a text, so a caption that happens to contain "<start>" contains an ordinary word.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from captioning.errors import InputError
from captioning.tokenizers import JOINERS, Tokenizer, Words

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")


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
    if char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs":
        return char
    # Python keeps the bytes of an undecodable file name as surrogates from U+DC80 on.
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]


class Vocabulary:
    """A fixed list of words; the first four are padding, start, end and unknown.

    Args:
        words: every word in the order of its id, the special words first, as given by `Vocabulary.words`.
        tokenizer: splits captions into these words; `Words` when None.

    Raises:
        ValueError: the list does not start with the four special words.
    """

    def __init__(self, words: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self.words, self.tokenizer = list(words), tokenizer or Words()
        if tuple(self.words[:4]) != SPECIAL_WORDS:
            raise ValueError(
                f"a vocabulary opens with {' '.join(SPECIAL_WORDS)} but this one opens with "
                f"{' '.join(self.words[:4]) or 'nothing'}; pass the list that Vocabulary.words gave"
            )
        self._ids = {word: index for index, word in enumerate(self.words) if index >= len(SPECIAL_WORDS)}

    @classmethod
    def build(
        cls,
        captions: Iterable[str],
        *,
        size: int,
        min_count: int = 1,
        tokenizer: Tokenizer | None = None,
    ) -> "Vocabulary":
        """Keep the most frequent words of the captions, see `Tokenizer.build`.

        Args:
            captions: raw sentences; only those of the training split.
            size: the largest number of ids, the four special ones included, so that the embedding has `size`
                rows as in the post.
            min_count: rarer words are left out even if there is room.
            tokenizer: splits captions into words, which it may learn here; `Words` when None.
        """
        if size <= len(SPECIAL_WORDS):
            raise InputError(
                f"vocabulary size {size} leaves no room for words; it counts the 4 special ids too"
            )
        tokenizer = tokenizer or Words()
        words = tokenizer.build(list(captions), size=size - len(SPECIAL_WORDS), min_count=min_count)
        return cls([*SPECIAL_WORDS, *words], tokenizer)

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
        ids = self._ids  # not `self.id`: a call for each word takes as long as all the rest
        return [START, *[ids.get(word, UNKNOWN) for word in self.tokenizer(text)[:max_words]], END]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into text: stops at END, leaves out PAD and START."""
        return self.tokenizer.join(self.split(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Like `decode`, as a list of what each word adds to the text, without the space before it."""
        return [piece.strip() for piece in self.tokenizer.pieces(self.split(ids))]

    def split(self, ids: Iterable[int]) -> list[str]:
        """Turn ids back into words, as the tokenizer gives them."""
        words = []
        for index in map(int, ids):
            if index == END:
                break
            if index not in (PAD, START):
                words.append(self.words[index])
        return words
