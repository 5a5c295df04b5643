"""Captions to tokens and back, and what counts as the same text."""

import string
import sys
import unicodedata

import pytest

from captioning.errors import InputError
from captioning.tokenizers import Characters, Subwords, Tokenizer, Words, tokenize
from captioning.vocabulary import END, START, UNKNOWN, Vocabulary

GERMAN = [
    "Ein Hund springt ins Wasser.",
    "Ein Hundewelpe springt über ein Holzhaus.",
    "Ein Mädchen springt in ein Holzboot.",
    "Ein Mann steht vor einem Holzhaus.",
    "Ein Junge springt ins Wasser.",
] * 5
CHINESE = [
    "一个穿着T恤的女人在跑步。",
    "一只狗，在海滩上奔跑。",
    "一个女人和一只狗在海滩上。",
    "一只狗在跑步。",
] * 5
TOKENIZERS = {"words": Words, "characters": Characters, "subwords": Subwords}


def learnt(captions: list[str], size: int = 80) -> Subwords:
    subwords = Subwords()
    subwords.build(captions, size=size, min_count=1)
    return subwords


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


def test_chinese_is_split_into_characters_and_latin_words_stay_whole() -> None:
    assert Characters()("一个穿T恤的女人，在 New York 跑步。") == [
        *"一个穿",
        "t",
        *"恤的女人在",
        "new",
        "york",
        *"跑步",
    ]
    assert Characters()("人々がカフェで。") == list("人々がカフェで")


@pytest.mark.parametrize(
    ("tokenizer", "text", "joined"),
    [
        (Words(), "Ein Hund, im Schnee!", "ein hund im schnee"),
        (Characters(), "一个穿T恤的女人，在 New York 跑步。", "一个穿t恤的女人在new york跑步"),
        (learnt(GERMAN), "Ein Hundehaus, im Wasser!", "ein hundehaus im wasser"),
        (learnt(CHINESE), "一个穿T恤的女人，在 New York 跑步。", "一个穿t恤的女人在new york跑步"),
    ],
)
def test_joining_puts_spaces_where_the_script_has_them(tokenizer: Tokenizer, text: str, joined: str) -> None:
    tokens = tokenizer(text)
    assert tokenizer.join(tokens) == joined == "".join(tokenizer.pieces(tokens))
    assert tokenizer(joined) == tokens  # so scores of a text are scores of its tokens


def test_frequent_pairs_become_one_subword_and_rare_words_fall_into_known_parts() -> None:
    vocabulary = Vocabulary.build(GERMAN, size=70, tokenizer=Subwords())
    assert vocabulary.tokenizer("springt") == ["▁springt"]
    assert len(vocabulary.tokenizer("Holzhund")) > 1 and UNKNOWN not in vocabulary.encode("Ein Holzhund")
    assert vocabulary.decode(vocabulary.encode("Ein Holzhund springt.")) == "ein holzhund springt"


def test_subwords_of_chinese_cross_no_space_and_carry_no_mark() -> None:
    subwords = learnt(CHINESE)
    assert "".join(subwords("一只狗，在海滩上")) == "一只狗在海滩上"
    assert any(len(token) > 1 for token in subwords("一只狗在海滩上"))


def test_a_vocabulary_of_subwords_keeps_to_its_size_and_is_sorted_by_frequency() -> None:
    vocabulary = Vocabulary.build(GERMAN, size=40, tokenizer=Subwords())
    counts = [0] * len(vocabulary)
    for caption in GERMAN:
        for index in vocabulary.encode(caption)[1:-1]:
            counts[index] += 1
    assert len(vocabulary) == 40 and counts[4:] == sorted(counts[4:], reverse=True)


def test_learning_twice_gives_the_same_subwords() -> None:
    first, second = (Vocabulary.build(GERMAN, size=60, tokenizer=Subwords()) for _ in range(2))
    assert first.words == second.words and first.tokenizer.options() == second.tokenizer.options()


def test_characters_that_are_too_rare_are_unknown_one_by_one() -> None:
    vocabulary = Vocabulary.build([*GERMAN, "ein Q"], size=80, min_count=2, tokenizer=Subwords())
    assert vocabulary.tokenizer("ein Qñ Hund")[2:4] == ["q", "ñ"]  # themselves, so that scores see them
    assert vocabulary.encode("q") == [START, vocabulary.id("▁"), UNKNOWN, END]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_comes_back_from_its_options(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.build(GERMAN, size=80, min_count=1)
    options = tokenizer.options()
    assert options.pop("_target_") == f"captioning.tokenizers.{type(tokenizer).__name__}"
    again = TOKENIZERS[kind](**options)
    assert all(again(caption) == tokenizer(caption) for caption in [*GERMAN, *CHINESE])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_strings_in_text_are_ordinary_in_every_tokenizer(kind: str) -> None:
    vocabulary = Vocabulary.build(["<start> a <end>"] * 3, size=40, tokenizer=TOKENIZERS[kind]())
    ids = vocabulary.encode("<start> a <end>")
    assert ids[0] == START and ids[-1] == END and all(index > UNKNOWN for index in ids[1:-1])
    assert vocabulary.decode(ids) == "<start> a <end>"


def test_a_mark_in_a_caption_is_a_space() -> None:
    assert learnt(GERMAN).join(learnt(GERMAN)("ein▁hund")) == "ein hund"


def test_subwords_that_have_learnt_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="has learnt nothing yet; give checkpoint=<run>"):
        Subwords()("ein Hund")


@pytest.mark.parametrize("merges", ["ab", "a b c", "a "])
def test_merges_that_are_no_pairs_are_refused(merges: str) -> None:
    with pytest.raises(InputError, match="lines of two tokens, found"):
        Subwords(merges=merges)


def test_without_the_library_subwords_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'captioning\[subwords\]'"):
        Subwords().build(GERMAN, size=80, min_count=1)
