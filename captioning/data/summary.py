"""What a data set holds, logged at the start of every run together with what may be a mistake in it."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from captioning.data.records import Annotated
from captioning.tokenizers import UNSPACED, Tokenizer, Words
from captioning.vocabulary import printable

log = logging.getLogger(__name__)

_LONG_WORD = 6  # letters; words of languages without spaces have two to four on average


def log_summary(name: str, records: Mapping[str, Sequence[Annotated]]) -> None:
    """Log the images and captions of each split, and what is left out or suspicious."""
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


def log_same_content(
    name: str, records: Mapping[str, Sequence[Annotated]], contents: Mapping[str, Any]
) -> None:
    """Warn of pictures of two splits that have the same content under different names.

    Args:
        name: of the data set.
        records: by split.
        contents: equal for pictures of equal content, by image id; pictures that it lacks are not compared.
    """
    for first, second in combinations(records, 2):
        known = {
            contents[record.image_id]: record.path for record in records[first] if record.image_id in contents
        }
        same_path = _paths(records[first])  # these are in the summary
        shared = {
            str(record.path): str(known[contents[record.image_id]])
            for record in records[second]
            if str(record.path) not in same_path and contents.get(record.image_id) in known
        }
        if shared:
            example = min(shared)
            log.warning(
                "%s: %d pictures in %s have the same content as pictures in %s, under other names, so scores "
                "on %s look better than they are; first %s, which is %s",
                *(name, len(shared), second, first, second, printable(example), printable(shared[example])),
            )


def log_words(
    name: str,
    records: Mapping[str, Sequence[Annotated]],
    tokenizer: Tokenizer,
    *,
    max_words: int | None,
) -> None:
    """Log how many captions are cut at `max_words`, and words as long as in a language without spaces."""
    captions = [text for part in records.values() for record in part for text in record.captions]
    cut, counts = 0, Counter[str]()
    for text in captions:
        words = tokenizer(text)
        cut += max_words is not None and len(words) > max_words
        counts.update(words)
    if cut:
        log.info("%s: %d of %d captions are cut at data.max_words=%d", name, cut, len(captions), max_words)
    if not isinstance(tokenizer, Words):
        return
    unspaced = {word: count for word, count in counts.items() if UNSPACED.search(word)}
    letters = sum(len(word) * count for word, count in unspaced.items())
    if unspaced and (mean := letters / sum(unspaced.values())) > _LONG_WORD:
        log.warning(
            "%s: words have %.0f letters on average, as in a language written without spaces; a caption then "
            "is one or two words that never come again; give data/tokenizer=characters, or subwords",
            *(name, mean),
        )


def _paths(records: Iterable[Annotated]) -> set[str]:
    return {str(record.path) for record in records}
