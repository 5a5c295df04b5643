"""Words, their ids, and what counts as the same text."""

import string
import sys
import unicodedata
from pathlib import Path

import pytest

from captioning.errors import InputError
from captioning.vocabulary import END, PAD, START, UNKNOWN, Vocabulary, printable, tokenize


def test_text_is_lower_cased_and_split_as_keras_does() -> None:
    words = ["a", "man's", "best", "dog", "on", "a", "t", "shirt", "red"]
    assert tokenize('A man\'s "best" dog, on a T-shirt (red).') == words


def test_every_printable_ascii_character_is_treated_as_in_the_post() -> None:
    filters = '!"#$%&()*+.,-/:;=?@[\\]^_`{|}~'
    for char in string.printable:
        expected = f"a{char}B".lower().translate(str.maketrans(filters, " " * len(filters))).split()
        assert tokenize(f"a{char}B") == expected


def test_every_white_space_separates_words() -> None:
    assert tokenize("a\tdog\nruns  very\r\nfast ") == ["a", "dog", "runs", "very", "fast"]


@pytest.mark.parametrize(
    ("text", "as_typed"),
    [
        ("the dog\u2019s \u201cbest\u201d friend\u2026", 'the dog\'s "best" friend...'),
        ("black\u2013white\u2014red \u00abgo\u00bb", "black-white--red go"),
        ("cafe\u0301", "caf\u00e9"),
        ("CAFE\u0301", "caf\u00e9"),
        ("Tom &amp; Jerry&#39;s &quot;caf&eacute;&quot;&nbsp;bar", 'Tom & Jerry\'s "caf\u00e9" bar'),
        ("a &dog; &notes; AT&T; &#xZZ;", "a dog notes at t xzz"),
        ("soft\u00adware \ufeffdog\u200e", "software dog"),
        ("zero\u200bwidth\u00a0space\u3000wide", "zero width space wide"),
        ("\u4e00\u53ea\u72d7\uff0c\u5728\u8dd1\u3002", "\u4e00\u53ea\u72d7 \u5728\u8dd1"),
        ("\u00bfqu\u00e9? \u00a1s\u00ed!", "qu\u00e9 s\u00ed"),
        ("red\x1b[31m\x07 dog\ud800", "red 31m dog"),
        ("\uff0b5\uff05", "+5%"),
        ("I \u2764\ufe0f dogs", "i \u2764 dogs"),
    ],
)
def test_what_looks_the_same_gives_the_same_words(text: str, as_typed: str) -> None:
    assert tokenize(text) == tokenize(as_typed)


@pytest.mark.parametrize(
    "text", ["col\u00b7lecci\u00f3", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "m\u00e4dchen"]
)
def test_what_belongs_to_a_word_stays_in_it(text: str) -> None:
    assert tokenize(text) == [text]


@pytest.mark.slow
def test_every_character_gives_words_in_one_form() -> None:
    for char in map(chr, range(sys.maxunicode + 1)):
        for word in tokenize(f"a{char}"):
            assert unicodedata.is_normalized("NFC", word) and tokenize(word) == [word]


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
