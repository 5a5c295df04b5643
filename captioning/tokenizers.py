"""Captions to tokens and back: words, characters, or subwords learnt from the training captions.

All begin with the words of the post (Keydana 2018): Keras' filter characters without ``<``, ``>`` and the
apostrophe, lower case, split at white space. Departures: every kind of white space separates (COCO captions
contain newlines), and texts that look the same give the same words. For the last, text is brought to
Unicode's composed form (NFC), HTML entities are resolved, every script's punctuation separates, and invisible
characters are dropped. Printable ASCII text without entities gives the post's words.

A tokenizer is chosen in `data` and stands whole in the checkpoint, beside the list of its tokens; see
`captioning.vocabulary`.
"""

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from html import unescape
from html.entities import html5
from itertools import chain
from typing import Any, ClassVar

from captioning.errors import InputError

__all__ = ["Characters", "Subwords", "Tokenizer", "Words"]

# Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)
_CHARACTER_OR_WORD = re.compile(f"{UNSPACED.pattern}|[^{UNSPACED.pattern[1:-1]}]+")
_SPACE_BESIDE_UNSPACED = re.compile(f" (?={UNSPACED.pattern})|(?<={UNSPACED.pattern}) ")

_FILTERED = '!"#$%&()*+.,-/:;=?@[\\]^_`{|}~'
_APOSTROPHES = "\u2018\u2019\u201b\u2032\u02bc\u00b4\uff07"  # curly, prime, modifier, acute, full width
_INSIDE_WORDS = "\u00b7\u05f3\u05f4\u055a"  # Catalan dot, Hebrew geresh and gershayim, Armenian apostrophe
JOINERS = "\u200c\u200d"  # invisible, but they change the letters beside them in Persian and Hindi
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SPACE = "\u2581"  # stands for the space before a word inside subwords, as in SentencePiece


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
    if category == "Cf" and char not in JOINERS or char in "\ufe0e\ufe0f":  # emoji or text style
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


class Tokenizer(ABC):
    """Splits captions into the tokens that a model writes, and puts tokens together again.

    unit: what its tokens are called in reports.
    joining: `join` as plain data, for readers without this package: a `separator`, and pairs of a regular
        expression and what to `replace` it by in the joined text; None where no such rule can say it.
    """

    unit: ClassVar[str]
    joining: ClassVar[dict[str, Any] | None] = None

    @abstractmethod
    def __call__(self, text: str) -> list[str]:
        """Split a caption."""

    @abstractmethod
    def pieces(self, tokens: Sequence[str]) -> list[str]:
        """Return what each token adds to the text, with the space before it if there is one."""

    def join(self, tokens: Sequence[str]) -> str:
        """Put tokens together to a text."""
        return "".join(self.pieces(tokens)).strip()

    def build(self, captions: Sequence[str], *, size: int, min_count: int) -> list[str]:
        """Choose the tokens of a vocabulary: the most frequent ones of the captions, ties alphabetically.

        Args:
            captions: raw sentences.
            size: the largest number of tokens.
            min_count: rarer ones are left out even if there is room.
        """
        counts = Counter(chain.from_iterable(map(self, captions)))
        ranked = sorted((-count, token) for token, count in counts.items() if count >= min_count)
        return [token for _, token in ranked[:size]]

    def options(self) -> dict[str, Any]:
        """Return the call that builds this tokenizer again, with what it has learnt, in plain containers."""
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}"}


class Words(Tokenizer):
    """The post's words, for languages that put spaces between them."""

    unit = "words"
    joining: ClassVar = {"separator": " ", "replace": []}

    def __call__(self, text: str) -> list[str]:
        return tokenize(text)

    def pieces(self, tokens: Sequence[str]) -> list[str]:
        return [f" {token}" if place else token for place, token in enumerate(tokens)]


class Characters(Tokenizer):
    """Each character of a script without spaces, such as Chinese and Japanese; words of all others."""

    unit = "characters"
    joining: ClassVar = {"separator": " ", "replace": [[_SPACE_BESIDE_UNSPACED.pattern, ""]]}

    def __call__(self, text: str) -> list[str]:
        return [token for word in tokenize(text) for token in _CHARACTER_OR_WORD.findall(word)]

    def pieces(self, tokens: Sequence[str]) -> list[str]:
        pieces, end = [], ""  # of the token before
        for token in tokens:
            spaced = end and not UNSPACED.match(end) and not UNSPACED.match(token)
            pieces.append(f" {token}" if spaced else token)
            end = token[-1:]
        return pieces


class Subwords(Tokenizer):
    """Byte-pair encoding (Sennrich et al. 2016) of words, or of sentences without spaces.

    It is learnt when a vocabulary is built. A character that the training captions hardly have is a token of
    its own, which no vocabulary knows; every other text is written with known tokens. Needs the package
    `tokenizers` (extra `subwords`).

    Args:
        merges: what was learnt: a line for each pair of tokens that become one, in the order of learning;
            None before.

    Raises:
        InputError: `tokenizers` is not installed, or a line is no pair.
    """

    unit = "subwords"
    joining: ClassVar = {"separator": "", "replace": [[_SPACE, " "]]}

    def __init__(self, *, merges: str | None = None) -> None:
        self.merges = merges
        self._encoder = None if merges is None else _encoder(merges)

    def __call__(self, text: str) -> list[str]:
        if self._encoder is None:
            raise InputError(
                "data/tokenizer=subwords has learnt nothing yet; give checkpoint=<run> to take those of "
                "a run, or data/tokenizer=words or characters"
            )
        text = _mark_spaces(text)
        # By their places in the text, as the library names all characters that it does not know alike.
        return [text[start:end] for start, end in self._encoder.encode(text).offsets]

    def pieces(self, tokens: Sequence[str]) -> list[str]:
        pieces = [token.replace(_SPACE, " ") for token in tokens]
        return [pieces[0].lstrip(), *pieces[1:]] if pieces else []

    def build(self, captions: Sequence[str], *, size: int, min_count: int) -> list[str]:
        """Learn the merges and rank all tokens; characters and pairs rarer than `min_count` are left out."""
        merges, tokens = _learn([_mark_spaces(caption) for caption in captions], size, min_count)
        self.merges, self._encoder = merges, _encoder(merges)
        counts = Counter(chain.from_iterable(map(self, captions)))
        return sorted(tokens, key=lambda token: (-counts[token], token))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "merges": self.merges}


def _mark_spaces(text: str) -> str:
    """Write words as subwords begin: with a mark, except where the script has no spaces."""
    text = " ".join(tokenize(text)).replace(_SPACE, " ")
    words = _SPACE_BESIDE_UNSPACED.sub("", text).split()
    return " ".join(word if UNSPACED.match(word) else f"{_SPACE}{word}" for word in words)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "subwords need the package tokenizers; run pip install 'captioning[subwords]'"
        ) from error
    return tokenizers


def _learn(texts: Sequence[str], size: int, min_count: int) -> tuple[str, list[str]]:
    """Return the merges as text, and all tokens."""
    library = _library()
    characters = Counter(char for text in texts for char in text if char != " ")
    known = sum(count >= min_count for count in characters.values())
    learner = library.Tokenizer(library.models.BPE())
    learner.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        limit_alphabet=min(known, size),  # the most frequent ones
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    return "\n".join(" ".join(pair) for pair in pairs), list(learner.get_vocab())


def _encoder(merges: str) -> Any:
    library = _library()
    pairs = [tuple(line.split(" ")) for line in merges.split("\n") if line]
    if broken := [pair for pair in pairs if len(pair) != 2 or not all(pair)]:
        raise InputError(f"the merges of subwords are lines of two tokens, found {' '.join(broken[0])!r:.80}")
    tokens = {part for left, right in pairs for part in (left, right, left + right)}
    ids = {token: number for number, token in enumerate(sorted(tokens), start=1)}
    encoder = library.Tokenizer(library.models.BPE({"": 0, **ids}, pairs, unk_token=""))
    encoder.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return encoder
