"""Words to ids in the options of decoders: users write `required=[dog]`, decoders need `required=[17]`.

The options are plain dicts and lists, as they stand in `conf/decoding`; nothing is built here.
"""

from typing import Any

from captioning.errors import InputError
from captioning.vocabulary import SPECIAL_WORDS, UNKNOWN, Vocabulary

WORD_OPTIONS = ("required", "prefix", "ids")


def words_to_ids(options: Any, vocabulary: Vocabulary) -> Any:
    """Return a copy of decoder options in which every list of words is a list of their ids.

    Args:
        options: nested dicts and lists. The values of `required`, `prefix` and `ids`, at any depth, are lists
            of words, or one string of words; ids among them stay as they are.
        vocabulary: the model's words.

    Raises:
        InputError: a word that the vocabulary does not have, or a value that is no list of words.
    """
    if isinstance(options, dict):
        return {
            key: _list_of_ids(key, value, vocabulary)
            if key in WORD_OPTIONS
            else words_to_ids(value, vocabulary)
            for key, value in options.items()
        }
    return [words_to_ids(value, vocabulary) for value in options] if isinstance(options, list) else options


def _list_of_ids(key: str, words: Any, vocabulary: Vocabulary) -> list[int]:
    listed = words.split() if isinstance(words, str) else words or []
    if not isinstance(listed, list) or not all(isinstance(word, str | int) for word in listed):
        raise InputError(f"decoding.{key} is {words!r}; needed is a list of words, such as [a,dog]")
    ids = [_word_ids(word, vocabulary) for word in listed]
    for word, parts in zip(listed, ids, strict=True):
        # Only a prefix says that its words follow each other.
        if key != "prefix" and len(parts) > 1:
            shown = " ".join(vocabulary.words[part] for part in parts)
            raise InputError(
                f"decoding.{key} has {word!r}, for this model {len(parts)} {vocabulary.tokenizer.unit}: "
                f"{shown}; needed is one that is a single one"
            )
    return [index for parts in ids for index in parts]


def _word_ids(word: str | int, vocabulary: Vocabulary) -> list[int]:
    if isinstance(word, int):
        return [word]
    # Vocabulary.id gives UNKNOWN for any word that it lacks; here only <unk> itself may become that.
    if word == SPECIAL_WORDS[UNKNOWN]:
        return [UNKNOWN]
    tokens = vocabulary.tokenizer(word)  # as the captions were
    missing = [token for token in tokens if token not in vocabulary and token != SPECIAL_WORDS[UNKNOWN]]
    if missing or not tokens:
        shown = vocabulary.tokenizer.join(missing[:1]) or word
        raise InputError(
            f"the model's {len(vocabulary)} words do not include {shown!r}; decoding needs a word it knows"
        )
    return [vocabulary.id(token) for token in tokens]
