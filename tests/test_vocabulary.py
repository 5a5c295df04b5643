"""Words and their ids."""

import sys
from pathlib import Path

import pytest

from captioning.errors import InputError
from captioning.vocabulary import END, PAD, START, UNKNOWN, Vocabulary, printable


def test_printable_text_can_go_to_any_terminal() -> None:
    assert printable("caf\u00e9 \u4e00 a\u3000b") == "caf\u00e9 \u4e00 a\u3000b"
    assert printable("\x1b[2Ja\nb\u202ec\ud800") == "\\x1b[2Ja\\nb\\u202ec\\ud800"
    assert printable(Path("caf\udce9.png")) == "caf\\xe9.png"
    printable("".join(map(chr, range(sys.maxunicode + 1)))).encode("utf-8")


def test_most_frequent_words_come_first_and_ties_are_alphabetical() -> None:
    vocabulary = Vocabulary.build(["b a", "b c", "d"], size=7)
    assert vocabulary.words[4:] == ["b", "a", "c"]


def test_size_counts_the_special_ids() -> None:
    assert len(Vocabulary.build(["a b c d e f"], size=6)) == 6
    with pytest.raises(InputError, match="leaves no room"):
        Vocabulary.build(["a"], size=4)


def test_rare_words_become_unknown() -> None:
    vocabulary = Vocabulary.build(["a a b"], size=9, min_count=2)
    assert vocabulary.encode("a b") == [START, vocabulary.id("a"), UNKNOWN, END]


def test_special_strings_in_text_are_ordinary_words() -> None:
    vocabulary = Vocabulary.build(["<start> a <end> <start>"], size=20)
    ids = vocabulary.encode("<start> a <end>")
    assert ids[0] == START and ids[-1] == END
    assert all(index > UNKNOWN for index in ids[1:-1])
    assert vocabulary.decode(ids) == "<start> a <end>"
    assert Vocabulary.build(["a"], size=20).encode("<end> a")[1] == UNKNOWN


def test_a_long_caption_keeps_its_end() -> None:
    vocabulary = Vocabulary.build(["a b c d"], size=20)
    assert vocabulary.encode("a b c d", max_words=2) == [START, vocabulary.id("a"), vocabulary.id("b"), END]


def test_decoding_undoes_encoding_and_stops_at_the_end() -> None:
    vocabulary = Vocabulary.build(["a dog runs"], size=20)
    assert vocabulary.decode([*vocabulary.encode("a dog runs"), PAD, vocabulary.id("a")]) == "a dog runs"


def test_a_vocabulary_comes_back_from_its_plain_list() -> None:
    vocabulary = Vocabulary.build(["a dog runs"], size=20)
    assert Vocabulary(vocabulary.words).encode("a cat runs") == vocabulary.encode("a cat runs")


def test_a_list_without_the_special_words_is_refused() -> None:
    with pytest.raises(ValueError, match="opens with <pad> <start> <end> <unk>"):
        Vocabulary(["a", "b"])


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
