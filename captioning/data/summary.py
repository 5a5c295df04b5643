"""What a data set holds, logged at the start of every run together with what may be a mistake in it."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from captioning.data.records import Annotated
from captioning.vocabulary import printable, tokenize

log = logging.getLogger(__name__)

# Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_LONG_WORD = 6  # letters; words of these languages have two to four on average


def log_summary(name: str, records: Mapping[str, Sequence[Annotated]], *, max_words: int | None) -> None:
    """Log the images and captions of each split, and what is cut, left out or suspicious.

    Args:
        name: the data set's.
        records: the records of each split.
        max_words: where captions are cut, if they are.
    """
    counts = [
        f"{split} {len(part)} images, {sum(len(record.captions) for record in part)} captions"
        for split, part in records.items()
    ]
    log.info("%s: %s", name, "; ".join(counts))
    for split, part in records.items():
        if without := sum(not record.captions for record in part):
            use = "are left out of training" if split == "train" else "are captioned but not scored"
            log.warning(
                "%s: %d of the %d %s images have no caption and %s", name, without, len(part), split, use
            )
    for first, second in combinations(records, 2):
        shared = _paths(records[first]) & _paths(records[second])
        if shared:
            log.warning(
                "%s: %d pictures are in %s and in %s, so scores on %s look better than they are; first %s",
                *(name, len(shared), first, second, second, printable(min(shared))),
            )
    _log_words(
        name, [tokenize(text) for part in records.values() for r in part for text in r.captions], max_words
    )


def _log_words(name: str, captions: Sequence[Sequence[str]], max_words: int | None) -> None:
    if max_words is not None and (cut := sum(len(words) > max_words for words in captions)):
        log.info("%s: %d of %d captions are cut at data.max_words=%d", name, cut, len(captions), max_words)
    lengths = [len(word) for words in captions for word in words if _UNSPACED.search(word)]
    if lengths and (mean := sum(lengths) / len(lengths)) > _LONG_WORD:
        log.warning(
            "%s: words have %.0f letters on average, as in a language written without spaces; a caption then "
            "is one or two words that never come again. Put spaces between the words of the captions",
            *(name, mean),
        )


def _paths(records: Iterable[Annotated]) -> set[str]:
    return {str(record.path) for record in records}
