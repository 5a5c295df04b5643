"""Laws of the metrics: equal to the COCO caption toolkit on golden files, and by hand elsewhere."""

import functools
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from captioning.metrics import (
    CiderD,
    DocumentFrequencies,
    MetricUnavailable,
    ptb_tokenize,
    score_agreement,
    score_all,
    toolkit,
)
from captioning.metrics.bleu import count_bleu, score_bleu
from captioning.metrics.cider import score_cider_d
from captioning.metrics.diversity import by_length, measure
from captioning.metrics.meteor import _program, meteor_of_statistics, score_meteor
from captioning.metrics.ngrams import count_ngrams
from captioning.metrics.rouge import common_subsequence_lengths, score_rouge_l
from captioning.metrics.spice import _run, score_spice
from captioning.metrics.statistics import bleu_statistics, bootstrap, mean_statistics, randomization_test

GOLDEN = Path(__file__).parent / "golden"
PTB = json.loads((GOLDEN / "ptb.json").read_text(encoding="utf-8"))
SCORES = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))
IN_PYTHON = ["bleu", "rouge_l", "cider_d"]


def needs_java(test: Callable) -> Callable:
    missing = shutil.which("java") is None or find_spec("pycocoevalcap") is None
    skip = pytest.mark.skipif(missing, reason="needs Java and pip install 'captioning[metrics]'")
    return pytest.mark.java(skip(test))


def system(name: str) -> tuple[dict, dict, dict]:
    references = SCORES["edge_references" if name == "edge" else "references"]
    return SCORES["systems"][name]["candidates"], references, SCORES["systems"][name]["scores"]


def words(*sentences: str) -> list[list[str]]:
    return [sentence.split() for sentence in sentences]


def random_sentences(seed: int, count: int) -> list[list[str]]:
    generator = np.random.default_rng(seed)
    return [generator.choice(list("abcd"), generator.integers(0, 9)).tolist() for _ in range(count)]


@pytest.mark.parametrize("kind", ["hostile", "random", "coco"])
def test_tokens_are_those_of_the_toolkit(kind: str) -> None:
    different = [
        (text, ptb_tokenize(text), tokens) for text, tokens in PTB[kind] if ptb_tokenize(text) != tokens
    ]
    assert not different


@needs_java
def test_golden_tokens_are_those_of_the_jar() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = [row for kind in ("hostile", "random", "coco") for row in PTB[kind]]
    captions = {i: [{"caption": c} for c in ("A man", text, "A man")] for i, (text, _) in enumerate(rows)}
    found = PTBTokenizer().tokenize(captions)
    assert [found[i][1] for i in captions] == [" ".join(tokens) for _, tokens in rows]


def test_no_text_takes_exponential_time() -> None:
    for text in ("a" * 9000, "<a" + " " * 9000, "ก็" * 3000 + "'", "a.b-" * 2000, "n't" * 3000, "(:" * 3000):
        assert ptb_tokenize(text)


@pytest.mark.parametrize("name", ["left_out", "shuffled", "edge"])
def test_scores_are_those_of_the_toolkit(name: str) -> None:
    candidates, references, expected = system(name)
    for metric, found in score_all(IN_PYTHON, candidates, references).items():
        corpus, per_image = expected[metric]
        assert [found.corpus, *found.per_image] == pytest.approx([corpus, *per_image], abs=1e-9), metric


@needs_java
def test_meteor_is_that_of_the_toolkit() -> None:
    candidates, references, expected = system("edge")
    score = score_all(["meteor"], candidates, references)["meteor"]
    assert [score.corpus, score.per_image] == expected["meteor"]


@needs_java
def test_meteors_statistics_give_its_scores_so_that_it_can_be_resampled() -> None:
    candidates, references, _ = system("left_out")
    some = dict(list(candidates.items())[:40])
    first = next(iter(some))
    some[first] = references[first][0]  # a perfect caption pools differently
    score = score_all(["meteor"], some, {image: references[image] for image in some})["meteor"]
    statistics = np.array(score.statistics)
    assert meteor_of_statistics(statistics.sum(0)) == pytest.approx(score.corpus, abs=1e-12)
    found = meteor_of_statistics(statistics)
    assert found[1:] == pytest.approx(score.per_image[1:], abs=1e-12) and found[0] == 1.0


def test_meteor_by_hand() -> None:
    """Four of five words matched exactly, one of them a function word, in two chunks; six words in the reference."""
    values = np.zeros(23)
    values[:4] = 5, 6, 2, 3  # lengths, function words: candidate, reference
    values[4:8] = 3, 3, 1, 1  # exact: content words of both, function words of both
    values[20:] = 2, 4, 4
    precision, recall = (0.75 * 3 + 0.25) / (0.75 * 3 + 0.25 * 2), (0.75 * 3 + 0.25) / (0.75 * 3 + 0.25 * 3)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert meteor_of_statistics(values) == pytest.approx(mean * (1 - 0.6 * (2 / 4) ** 0.2))
    assert meteor_of_statistics(np.zeros(23)) == 0


def test_a_java_that_does_not_start_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_bytes(b"\x00no program")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys.modules[score_meteor.__module__], "find_jar", lambda *_: tmp_path / "meteor.jar")
    with pytest.raises(MetricUnavailable, match="METEOR needs Java, but the command `java` does not start"):
        score_meteor([["a"]], [[["a"]]])


def test_order_of_images_is_irrelevant() -> None:
    candidates, references, _ = system("left_out")
    backwards = score_all(IN_PYTHON, dict(reversed(candidates.items())), references)
    for metric, score in score_all(IN_PYTHON, candidates, references).items():
        assert backwards[metric].corpus == pytest.approx(score.corpus, abs=1e-12)
        assert backwards[metric].per_image[::-1] == pytest.approx(score.per_image, abs=1e-12)


def test_identical_sentences_score_one_and_ten() -> None:
    sentences = words("a man rides a horse", "two dogs play in snow", "the red bus waits here")
    references = [[sentence] for sentence in sentences]
    for score in (*score_bleu(sentences, references), score_rouge_l(sentences, references)):
        assert score.corpus == pytest.approx(1) and score.per_image == pytest.approx([1, 1, 1])
    assert score_cider_d(sentences, references).per_image == pytest.approx([10, 10, 10])


def test_an_empty_candidate_scores_zero_and_changes_no_other() -> None:
    captions, references = {1: "", 2: "a dog runs fast"}, {1: ["a man"], 2: ["a dog runs fast"]}
    for score in score_all(["bleu", "rouge_l"], captions, references).values():
        assert score.per_image == pytest.approx([0, 1], abs=1e-6)


def test_bleu_by_hand() -> None:
    (one, two, *_) = score_bleu(words("the the the cat"), [words("the cat sat down", "the the dog")])
    assert one.corpus == pytest.approx(3 / 4)  # "the" twice at most, "cat" once
    assert two.corpus == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert score_bleu(words("a b"), [words("a b c d")])[0].corpus == pytest.approx(math.exp(1 - 4 / 2))


def test_longest_common_subsequence_agrees_with_the_textbook() -> None:
    @functools.cache
    def textbook(a: tuple, b: tuple) -> int:
        if not (a and b):
            return 0
        return 1 + textbook(a[1:], b[1:]) if a[0] == b[0] else max(textbook(a[1:], b), textbook(a, b[1:]))

    for a, b in zip(random_sentences(0, 300), random_sentences(1, 300), strict=True):
        assert common_subsequence_lengths(a, [b]) == [textbook(tuple(a), tuple(b))]


def test_ngram_counts_agree_with_a_counter() -> None:
    sentences = random_sentences(2, 50)
    ngrams, occurrences = count_ngrams(sentences)
    for order, found in enumerate(occurrences, start=1):
        each = [Counter(zip(*(s[i:] for i in range(order)), strict=False)) for s in sentences]
        assert ngrams.size(order) == len(set().union(*each))
        assert found.times.tolist() and sorted(found.times) == sorted(n for c in each for n in c.values())


def test_the_reward_equals_the_metric_for_any_tokens_and_any_batch() -> None:
    candidates, references, _ = system("left_out")
    tokens = {image: ptb_tokenize(caption) for image, caption in candidates.items()}
    expected = {
        image: [ptb_tokenize(caption) for caption in captions] for image, captions in references.items()
    }
    metric = score_cider_d(list(tokens.values()), list(expected.values()))
    number: dict[str, int] = {}
    code = lambda sentence: [number.setdefault(word, len(number)) for word in sentence]  # noqa: E731
    coded = {image: [code(caption) for caption in captions] for image, captions in expected.items()}
    reward = CiderD(coded, DocumentFrequencies.of(coded.values(), source="corpus"))
    batch = [(image, code(sentence)) for image, sentence in tokens.items()]
    assert reward.scores(batch) == pytest.approx(metric.per_image, abs=1e-9)
    assert reward.scores(batch[::-1] + batch[:3])[-3:] == pytest.approx(metric.per_image[:3], abs=1e-9)
    assert reward.scores([]).shape == (0,)


def test_the_end_token_makes_an_unfinished_caption_worse() -> None:
    references = {1: [["a", "dog", "END"]], 2: [["a", "cat", "END"]], 3: [["the", "sea", "END"]]}
    reward = CiderD(references, DocumentFrequencies.of(references.values(), source="corpus"))
    whole, cut = reward.scores([(1, ["a", "dog", "END"]), (1, ["a", "dog"])])
    assert whole > cut > 0


def test_one_image_scores_by_declared_frequencies_and_not_by_its_own() -> None:
    documents = [words("a dog runs"), words("a cat sleeps"), words("the sea")]
    declared = DocumentFrequencies.of(documents, source="three documents")
    assert score_cider_d(words("a dog runs"), documents[:1]).corpus == 0
    assert score_cider_d(words("a dog runs"), documents[:1], declared).corpus == pytest.approx(
        7.5
    )  # no 4-grams


def test_document_frequencies_survive_a_file(tmp_path: Path) -> None:
    references = {1: [[3, 5, 7], [3, 5]], 2: [["a", "dog", 5]], 3: [[]]}
    frequencies = DocumentFrequencies.of(references.values(), source="a test")
    frequencies.save(tmp_path / "df.json")
    loaded = DocumentFrequencies.load(tmp_path / "df.json")
    assert (loaded.source, loaded.num_documents) == ("a test", 3)
    batch = [(1, [3, 5, 9]), (2, ["a", "dog"]), (3, [5])]
    before, after = (CiderD(references, record).scores(batch).tolist() for record in (frequencies, loaded))
    assert before == after
    assert [path.name for path in tmp_path.iterdir()] == ["df.json"]


def test_bad_frequency_files_and_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no documents to count n-grams in for the source 'nothing'"):
        DocumentFrequencies.of([], source="nothing")
    with pytest.raises(TypeError, match="only strings and integers can be saved as words"):
        DocumentFrequencies.of([[[(1, 2)]]], source="tuples").save(tmp_path / "df.json")
    (tmp_path / "df.json").write_text("{}")
    with pytest.raises(ValueError, match=r"df.json holds no document frequencies .* with DocumentFreq"):
        DocumentFrequencies.load(tmp_path / "df.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("orders",), [], "needed are distinct words and 4 orders of n-grams"),
        (("words",), ["a", "a"], "needed are distinct words and 4 orders of n-grams"),
        (("orders", 0, "count"), [1, -1], "whole numbers from 1 to 2, found"),
        (("orders", 0, "count"), [1, 3], "whole numbers from 1 to 2, found"),
        (("orders", 0, "count"), [1], "the columns of an order differ in length"),
        (("orders", 0, "word"), [0, 2], "whole numbers from 0 to 1, found"),
        (("orders", 1, "prefix"), [True], "whole numbers from 0 to 1, found"),
        (("orders", 1, "prefix"), [float("inf")], "whole numbers from 0 to 1, found"),
        (("num_documents",), 10**19, "whole numbers from 1 to"),
    ],
)
def test_a_damaged_frequency_file_is_refused(
    path: tuple[str | int, ...], value: object, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "df.json"
    DocumentFrequencies.of([[["a", "b"]], [["a"]]], source="two").save(file)
    record = json.loads(file.read_text())
    parent = record
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        DocumentFrequencies.load(file)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "no candidates to score"),
        ({1: "a", 2: "b"}, {1: ["a"]}, r"no references for candidates of images 2 \(1 in all\)"),
        ({1: "a"}, dict.fromkeys(range(7), ["a"]), r"no candidate for references of images 0, 2, 3, … \(6"),
        ({1: "a"}, {1: []}, "empty list of references for images 1"),
        ({1: "a"}, {1: "a dog"}, "one string is given for images 1"),
        ({1: ["a"]}, {1: ["a"]}, "candidates must be strings, but other types are given for images 1"),
        ({1: "a"}, {1: ["a", None]}, "references must be strings, but other types are given for images 1"),
    ],
)
def test_captions_that_cannot_be_scored_are_refused(candidates: dict, references: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_all(["bleu"], candidates, references)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown metrics \['blue'\]; choose among bleu, rouge_l"):
        score_all(["blue"], {1: "a"}, {1: ["a"]})
    for metric in (score_bleu, score_rouge_l, score_cider_d, score_meteor, score_spice):
        with pytest.raises(ValueError, match="1 candidates but references for 2 images"):
            metric(words("a"), [words("a"), words("b")])
        with pytest.raises(ValueError, match="no candidates to score"):
            metric([], [])
        with pytest.raises(ValueError, match="empty list of references for images 0"):
            metric(words("a"), [[]])
    with pytest.raises(ValueError, match=r"CIDEr-D needs references of every image; 1 have none: \[7\]"):
        CiderD({7: []}, DocumentFrequencies.of([words("a")], source="x"))
    with pytest.raises(ValueError, match="1 candidates are of images without references, first 8"):
        CiderD({7: words("a")}, DocumentFrequencies.of([words("a")], source="x")).scores([(8, ["a"])])


def test_missing_java_or_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MetricUnavailable, match="METEOR needs Java, .* install a Java runtime"):
        toolkit.find_java("METEOR")
    monkeypatch.setattr(toolkit, "_PACKAGE", "no_such_package")
    with pytest.raises(MetricUnavailable, match="METEOR needs the package no_such_package, which is missing"):
        score_all(["meteor"], {1: "a"}, {1: ["a"]})


@needs_java
def test_java_programs_are_killed_and_the_end_of_their_output_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _program() as program:
        raise KeyboardInterrupt
    assert program.process.returncode is not None
    with pytest.raises(RuntimeError, match="METEOR stopped before it answered"), _program() as program:
        program.process.kill()
        program.ask("SCORE ||| a ||| a")
    assert program.process.returncode is not None
    with pytest.raises(
        RuntimeError, match="SPICE failed with exit status 1; its output ended: .*nothing.jar"
    ):
        _run("java", tmp_path / "nothing.jar", [])
    with pytest.raises(MetricUnavailable, match="METEOR needs nothing.jar in"):
        toolkit.find_jar("METEOR", "nothing.jar")
    lib = toolkit.find_jar("SPICE", "spice", "spice-1.0.jar").parent / "lib"
    if not (lib / "stanford-corenlp-3.6.0-models.jar").is_file():  # no test downloads them
        with pytest.raises(MetricUnavailable, match="SPICE needs .* get_stanford_models"):
            score_spice(words("a"), [words("a")])


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_their_level() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap(
            mean_statistics(generator.random(60).tolist()), generator, resamples=200, level=0.9
        )
        covered += interval.low < 0.5 < interval.high
    assert 0.82 < covered / 200 < 0.96


def test_sufficient_statistics_sum_to_the_corpus_score() -> None:
    candidates, references = random_sentences(3, 40), [random_sentences(s, 3) for s in range(10, 50)]
    scores, counts = score_bleu(candidates, references), count_bleu(candidates, references)
    for order, score in enumerate(scores, start=1):
        statistics = bleu_statistics(counts, order)
        assert statistics.corpus(statistics.per_image.sum(0)) == pytest.approx(score.corpus)
        interval = bootstrap(statistics, np.random.default_rng(0))
        assert interval == bootstrap(statistics, np.random.default_rng(0)) and interval.low <= interval.high


def test_a_system_does_not_differ_from_itself_but_does_from_a_better_one() -> None:
    generator = np.random.default_rng(0)
    first, better = mean_statistics(values := generator.random(300)), mean_statistics(values + 0.1)
    assert randomization_test(first, first, generator) == (0, 1)
    assert randomization_test(better, first, generator) == pytest.approx((0.1, 1 / 1001))
    alike = [[mean_statistics(generator.random(50)) for _ in range(2)] for _ in range(200)]
    chances = np.array([randomization_test(*pair, generator, resamples=200).p_value for pair in alike])
    assert 0.01 < (chances < 0.05).mean() < 0.1  # a true null is rejected as often as it should be
    with pytest.raises(ValueError, match="needs at least 2 images"):
        bootstrap(mean_statistics([1.0]), generator)
    with pytest.raises(ValueError, match="paired systems need the same images, not 2 and 3"):
        randomization_test(mean_statistics([1.0, 2.0]), mean_statistics([1.0, 2.0, 3.0]), generator)


# Two documents without n-grams: every n-gram is as rare as every other.
EQUAL = DocumentFrequencies.of([[[]], [[]]], source="none")


def test_the_caption_that_the_others_agree_with_most_scores_highest() -> None:
    group = words("a dog runs on grass", "a dog runs on snow", "purple ideas sleep", "a dog runs on grass")
    scores, alone = score_agreement([group, words("a cat sleeps here")], EQUAL)
    assert scores.argmax() in (0, 3) and scores.argmin() == 2
    assert alone == pytest.approx([10.0])  # nothing to compare with but itself
    np.testing.assert_array_equal(scores, score_agreement([group], EQUAL)[0])


@pytest.mark.parametrize(
    "frequencies", [EQUAL, DocumentFrequencies.of([words("a dog", "the cat"), words("a cat")], source="two")]
)
def test_agreement_is_cider_d_against_the_rest_of_the_group(frequencies: DocumentFrequencies) -> None:
    group = words("a dog runs", "a dog sits", "the cat")
    expected = [
        score_cider_d([own], [group[:i] + group[i + 1 :]], frequencies).corpus for i, own in enumerate(group)
    ]
    assert score_agreement([group], frequencies)[0] == pytest.approx(expected)


def test_diversity_by_hand() -> None:
    found = measure(words("a man on a", "a man on a", "dog dog", "x y z x y z"), training=words("dog dog"))
    assert found.mean_length == 4 and found.vocabulary == 7
    assert (found.distinct_1, found.distinct_2) == (7 / 16, 7 / 12)
    assert (found.novel, found.unique, found.bad_endings) == (0.75, 0.5, 0.5)
    assert (found.repeated_words, found.repeated_trigrams) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no captions to measure"):
        measure([])


def test_length_buckets_contain_every_caption_once() -> None:
    captions = [["a"] * length for length in (1, 7, 8, 9, 20)]
    buckets = by_length(captions, [1.0, 3.0, 5.0, 7.0, 9.0])
    assert buckets == [(0, 7, 2, 2.0), (8, 9, 2, 6.0), (15, None, 1, 9.0)]
    with pytest.raises(ValueError, match="5 captions but 1 scores"):
        by_length(captions, [1.0])
