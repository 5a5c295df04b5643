"""Words and their numbers.

The tokenizer is the one of the seed post (Keydana 2018): Keras' filter characters without ``<``, ``>`` and
the apostrophe, lower case, split at white space. Two departures, both repairs: every kind of white space
separates (COCO captions contain newlines), and the four special ids never come out of the text: a caption
that happens to contain "<start>" contains an ordinary word.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from captioning.errors import InputError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")

_FILTERED = '!"#$%&()*+.,-/:;=?@[\\]^_`{|}~'
_TO_SPACE = str.maketrans(_FILTERED, " " * len(_FILTERED))


def tokenize(text: str) -> list[str]:
    """Split a caption into lower-case words without punctuation."""
    return text.lower().translate(_TO_SPACE).split()


class Vocabulary:
    """A fixed list of words whose first four are padding, start, end and unknown.

    Args:
        words: every word in the order of its id, the specials first, as given by `Vocabulary.words`.

    Raises:
        ValueError: the list does not open with the four special words.
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
            size: how many ids there are at most, the four specials included, so that the embedding has
                `size` rows as in the post.
            min_count: rarer words are left out even where there is room.
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

        A caption of more than `max_words` words is cut, but keeps its END (flaw S7 of the seed lost it).
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
