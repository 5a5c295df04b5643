"""Result files with every mistake, laws of scores and comparisons, the page, and the command from end to end."""

import base64
import csv
import io
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from captioning import evaluate
from captioning.data import Annotated
from captioning.errors import InputError
from captioning.evaluation import (
    Evaluation,
    References,
    check_options,
    compare,
    read_references,
    read_results,
    results_json,
    score,
    write_report,
)
from captioning.evaluation.comparison import Example, choose, pair, render_page, thumbnail
from captioning.evaluation.results import system_names
from captioning.evaluation.scoring import compare_settings, to_json
from captioning.evaluation.tables import images_csv, score_table, settings_score_table
from captioning.features import CacheWriter, FeatureCache, Shard
from captioning.features.cache import Row
from captioning.files import short_commit, write_text
from captioning.metrics import PENN_TREEBANK, MetricUnavailable, Score, score_all, scored_tokens
from captioning.metrics.statistics import Difference, mean_statistics, randomization_test
from captioning.tokenizers import Characters
from captioning.training.assembly import build_data, build_module, own_options
from tests.conftest import compose_config
from tests.test_commands import call


def run(config: DictConfig) -> list[Evaluation]:
    """The command in this process, without Hydra's handling of errors."""
    return evaluate.main.__wrapped__(config)


GROUPS = ("decoding", "data", "features")
REFERENCES = {
    "1": ("A black dog runs through the snow.", "a dog in snow"),
    "2": ("Two men ride bicycles.", "two men on bikes"),
    "b.jpg": ("A child eats an apple.", "the girl has a red apple"),
    "4": ("A red bus on a street.", "a bus drives down the road"),
}
GOOD = {
    "1": "a dog runs in the snow",
    "2": "two men ride",
    "b.jpg": "a child eats",
    "4": "a red bus on a road",
}
WEAK = {"1": "a cat", "2": "two men ride bicycles", "b.jpg": "a man on a", "4": "a bus bus"}
METRICS = ("bleu", "rouge_l", "cider_d")
NAN_SCORE = Score(math.nan, [0.5, math.nan, 0.1, 0.2])  # as SPICE may give


def evaluated(captions: dict[str, str], name: str = "system", **options: Any) -> Evaluation:
    return score(captions, REFERENCES, name=name, **{"metrics": METRICS, "resamples": 200, **options})


class TestResultFiles:
    def write(self, folder: Path, content: object) -> Path:
        (folder / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return folder / "a.json"

    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        captions = {**GOOD, "2": 'a "dog"\n犬 🐕 </script>'}
        assert read_results(self.write(tmp_path, results_json(captions)), REFERENCES.keys()) == captions

    def test_ids_that_are_plain_integers_are_written_as_integers(self) -> None:
        ids = ["1", "-7", "007", "1_000", "1.0", "٣", "", "b.jpg", "9" * 5000]
        found = [entry["image_id"] for entry in json.loads(results_json(dict.fromkeys(ids, "a dog")))]
        assert found == [1, -7, *ids[2:]]

    def test_ids_without_the_suffix_of_the_references_are_named_as_such(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, results_json({"b": "a dog"}))
        with pytest.raises(
            InputError, match=r"1 image ids without the suffix that the references' have \('b'\)"
        ):
            read_results(path, ["b.jpg"])

    def test_captions_come_in_the_order_of_the_references(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, results_json(dict(reversed(GOOD.items()))))
        assert list(read_results(path, REFERENCES.keys())) == list(REFERENCES)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"image_id": 77, "caption": "a"},
                "has 1 image ids that are unknown to the references ('77'); needed is one entry for each of the 4 images",
            ),
            ({"image_id": "2", "caption": "a"}, "has 1 further captions of images that have one ('2')"),
            (
                {"image_id": math.nan, "caption": "a"},
                "1 image ids that are neither an integer nor text (nan)",
            ),
            ({"image_id": True, "caption": "a"}, "1 image ids that are neither an integer nor text (True)"),
            ({"image_id": 1.0, "caption": "a"}, "1 image ids that are neither an integer nor text (1.0)"),
            ({"image_id": 1}, "1 entries that are no record of image_id and caption (number 5)"),
            ("a dog", "1 entries that are no record of image_id and caption (number 5)"),
        ],
    )
    def test_a_wrong_entry_is_named(self, tmp_path: Path, change: object, message: str) -> None:
        path = self.write(tmp_path, [*json.loads(results_json(GOOD)), change])
        with pytest.raises(InputError) as error:
            read_results(path, REFERENCES.keys())
        assert str(error.value).startswith(f"{path} has ") and message in str(error.value)

    @pytest.mark.parametrize(
        ("caption", "message"),
        [
            (
                "",
                "has 1 empty captions ('2'); needed is one entry for each of the 4 images of the references, or allow_empty=true",
            ),
            (" \n", "has 1 empty captions ('2')"),
            (None, "has 1 captions that are not text ('2')"),
            (math.nan, "has 1 captions that are not text ('2')"),
            (["a dog"], "has 1 captions that are not text ('2')"),
            ("\ud83d", "has 1 captions with half a character (a lone surrogate) ('2')"),
        ],
    )
    def test_a_wrong_caption_is_named(self, tmp_path: Path, caption: object, message: str) -> None:
        entries = [
            {"image_id": key, "caption": caption if key == "2" else text} for key, text in GOOD.items()
        ]
        with pytest.raises(InputError) as error:
            read_results(self.write(tmp_path, entries), REFERENCES.keys())
        assert message in str(error.value)

    def test_empty_captions_are_read_on_demand(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, results_json({**GOOD, "2": ""}))
        assert read_results(path, REFERENCES.keys(), allow_empty=True)["2"] == ""

    def test_images_without_references_may_have_a_caption(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, results_json({**GOOD, "9": "a cat"}))
        assert read_results(path, REFERENCES.keys(), optional={"9", "10"}) == GOOD

    def test_several_mistakes_come_in_one_message_with_counts(self, tmp_path: Path) -> None:
        entries = [{"image_id": i, "caption": "a"} for i in range(10, 15)] + [{"image_id": 1, "caption": ""}]
        with pytest.raises(InputError) as error:
            read_results(self.write(tmp_path, entries), REFERENCES.keys())
        assert (
            "has 5 image ids that are unknown to the references ('10', '11', '12', …); 1 empty captions ('1'); "
            in str(error.value)
        )
        assert "3 images without a caption ('2', 'b.jpg', '4'); needed" in str(error.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('[{"image_id": 1,', "a.json is not JSON (Expecting property name"),
            ("", "a.json is not JSON (Expecting value"),
            ("[" * 100_000, "a.json is not JSON ("),
            ('{"annotations": []}', "a.json is no result file: needed a list"),
            ("NaN", 'a.json is no result file: needed a list [{"image_id": …, "caption": …}, …], found nan'),
        ],
    )
    def test_what_is_no_result_file_is_refused(self, tmp_path: Path, content: str, message: str) -> None:
        with pytest.raises(InputError) as error:
            read_results(self.write(tmp_path, content), REFERENCES.keys())
        assert message in str(error.value)

    def test_missing_files_and_other_bytes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"the result file .*none.json can't be read: No such file"):
            read_results(tmp_path / "none.json", REFERENCES.keys())
        (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match=r"b.json is not JSON \('utf-8' codec"):
            read_results(tmp_path / "b.json", REFERENCES.keys())

    def test_a_file_is_written_whole_or_not_at_all(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a.txt", "before")
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / "a.txt", "after \ud83d")
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (
            tmp_path / "a.txt"
        ).read_text() == "before"


class TestScores:
    def test_scores_are_those_of_the_metrics_inside_their_intervals(self) -> None:
        found = to_json(evaluated(GOOD))["scores"]
        expected = score_all(METRICS, GOOD, REFERENCES)
        assert found.keys() == expected.keys()
        for metric, values in found.items():
            assert values["score"] == pytest.approx(100 * expected[metric].corpus, abs=1e-4)
            assert values["low"] <= values["score"] <= values["high"]

    def test_intervals_score_what_the_table_scores(self) -> None:
        evaluation = evaluated({**GOOD, "1": '22 3/4 dogs\'s "snow" (a dog)'})
        for metric, interval in evaluation.intervals.items():
            assert interval.score == pytest.approx(evaluation.scores[metric].corpus)

    def test_one_image_has_scores_without_intervals(self) -> None:
        found = to_json(score({"1": "a dog"}, {"1": REFERENCES["1"]}, metrics=("bleu",)))["scores"]
        assert found["bleu_1"]["low"] is None and found["bleu_1"]["score"] > 0

    def test_the_seed_decides_the_intervals(self) -> None:
        assert evaluated(GOOD, seed=3).intervals == evaluated(GOOD, seed=3).intervals

    def test_novelty_is_unknown_without_training_captions(self) -> None:
        assert to_json(evaluated(GOOD))["diversity"]["novel"] is None
        training = ["Two men, ride!", "A dog."]
        assert to_json(evaluated(GOOD, training=training))["diversity"]["novel"] == 0.75

    def test_what_has_no_value_does_not_differ_significantly(self) -> None:
        first, second = mean_statistics([0.5, math.nan, 0.1]), mean_statistics([0.4, 0.3, 0.1])
        test = randomization_test(first, second, np.random.default_rng(0), 50)
        assert math.isnan(test.difference) and math.isnan(test.p_value)
        one = evaluated(GOOD, metrics=("rouge_l",))
        [row] = score_table([one, one], {"rouge_l": test}).rows
        assert row[-2:] == ["–", "–"]

    @pytest.mark.parametrize(
        ("p_value", "shown"), [(1 / 1001, "<0.001"), (2 / 1001, "0.002"), (1.0, "1.000")]
    )
    def test_no_p_value_is_shown_as_zero_or_above_itself(self, p_value: float, shown: str) -> None:
        one = evaluated(GOOD, metrics=("rouge_l",))
        [row] = score_table([one, one], {"rouge_l": Difference(0.1, p_value)}).rows
        assert row[-2:] == ["+10.0", shown]

    def test_a_metric_without_a_value_has_dashes_in_the_table_of_several_runs(self) -> None:
        nan = mean_statistics(NAN_SCORE.per_image)
        runs = [
            evaluated(GOOD, metrics=("rouge_l",))._replace(
                scores={"spice": NAN_SCORE}, statistics={"spice": nan}
            )
        ] * 2
        tests = compare_settings(runs, runs)
        assert settings_score_table(runs, runs, tests).rows == [["spice", "–", "–", "–", "–"]]

    def test_runs_on_a_single_image_are_scored_and_not_tested(self, tmp_path: Path) -> None:
        references = References.of("one", [Annotated("1", Path(), "val", REFERENCES["1"])], "val")
        runs = [
            score({"1": captions["1"]}, references.captions, metrics=("rouge_l",), name=f"run {number}")
            for number, captions in enumerate((GOOD, WEAK, WEAK, WEAK))
        ]
        tables = write_report(tmp_path, runs, references, num_first=2)
        [row] = tables[0].rows
        assert row[0] == "rouge_l" and " ± " in row[1] and row[-2:] == ["–", "–"]
        written = json.loads((tmp_path / "scores.json").read_text())
        assert written["paired"] == {} and written["commit"] == short_commit()

    def test_a_metric_that_cannot_be_had_leaves_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lacking(*_: object) -> None:
            raise MetricUnavailable("METEOR needs Java")

        monkeypatch.setattr("captioning.metrics.score_meteor", lacking)
        evaluation = evaluated(GOOD, metrics=("meteor", "cider_d"))
        assert list(evaluation.scores) == ["cider_d"] and evaluation.unavailable == {
            "meteor": "METEOR needs Java"
        }
        assert evaluated(GOOD, metrics=("meteor",)).lengths == []

    def test_nan_becomes_null(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "captioning.evaluation.scoring.score_all",
            lambda names, *_, **__: {name: NAN_SCORE for name in names},
        )
        written = json.dumps(to_json(evaluated(GOOD, metrics=("spice",))), allow_nan=False)
        assert json.loads(written)["scores"]["spice"]["score"] is None

    def test_other_languages_are_scored_on_the_tokens_that_the_report_names(self, tmp_path: Path) -> None:
        tokens = scored_tokens("zh", Characters.unit, Characters())
        chinese = {"1": ("一只狗在雪里跑。", "雪里有一只狗"), "2": ("两个男人骑自行车",)}
        captions = {"1": "一只狗在跑", "2": "两个男人骑车"}
        references = References("zh val", {}, frozenset(), [], tokens=tokens)
        evaluation = score(captions, chinese, metrics=(*METRICS, "meteor"), tokens=tokens, resamples=50)
        spaced = {key: " ".join(Characters()(text)) for key, text in captions.items()}
        expected = score_all(
            METRICS, spaced, {k: [" ".join(Characters()(t)) for t in v] for k, v in chinese.items()}
        )
        assert {name: found.corpus for name, found in evaluation.scores.items()} == {
            name: found.corpus for name, found in expected.items()
        }
        assert "knows English only" in evaluation.unavailable["meteor"] and evaluation.num_words == [5, 6]
        scores, diversity, lengths = write_report(tmp_path, [evaluation], references)
        assert scores.title == "scores × 100 over characters (language zh) [95 % interval]"
        assert (
            "characters a caption" in {row[0] for row in diversity.rows}
            and lengths.headings[0] == "characters"
        )
        assert "ends in a function word" not in {row[0] for row in diversity.rows}
        content = json.loads((tmp_path / "scores.json").read_text())
        assert content["tokens"] == "characters (language zh)"
        assert content["systems"][0]["diversity"]["bad_endings"] is None

    def test_english_is_scored_on_penn_treebank_tokens_whatever_the_tokenizer(self) -> None:
        assert scored_tokens("en", Characters.unit, Characters()) is PENN_TREEBANK

    def test_unknown_metrics_are_refused(self) -> None:
        with pytest.raises(
            InputError, match=r"metrics=\['cider'\] has \['cider'\]; choose among bleu, rouge_l, cider_d"
        ):
            evaluated(GOOD, metrics=("cider",))
        with pytest.raises(InputError, match=r"metrics=\[\] has nothing"):
            evaluated(GOOD, metrics=())

    def test_the_csv_has_a_line_an_image(self) -> None:
        captions = {**GOOD, "2": 'two "men",\nand bikes'}
        lines = list(csv.DictReader(io.StringIO(images_csv([evaluated(captions)]), newline="")))
        assert {line["image_id"]: line["caption"] for line in lines} == captions and lines[1]["words"] == "4"
        both = list(csv.DictReader(io.StringIO(images_csv([evaluated(GOOD), evaluated(WEAK)]), newline="")))
        assert both[0]["caption_second"] == "a cat" and float(both[0]["cider_d_second"]) < float(
            both[0]["cider_d_first"]
        )


class TestComparison:
    def test_a_system_does_not_differ_from_itself(self) -> None:
        for test in compare(evaluated(GOOD), evaluated(GOOD)).values():
            assert test.difference == 0 and test.p_value == 1

    def test_swapping_the_systems_turns_the_sign(self) -> None:
        there, back = compare(evaluated(GOOD), evaluated(WEAK)), compare(evaluated(WEAK), evaluated(GOOD))
        assert {metric: -test.difference for metric, test in there.items()} == pytest.approx(
            {metric: test.difference for metric, test in back.items()}
        )

    def test_names_tell_files_apart(self) -> None:
        assert system_names(["x/greedy.json", "y/beam.json"]) == ["greedy", "beam"]
        assert system_names(["runs/x/captions.json", "runs/y/captions.json"]) == ["x/captions", "y/captions"]
        assert system_names(["a.json", "a.json"]) == ["a (1)", "a (2)"]

    @pytest.mark.parametrize(
        ("limit", "better", "worse"), [(100, 6, 4), (8, 4, 4), (4, 2, 2), (9, 5, 4), (1, 1, 0), (0, 0, 0)]
    )
    def test_the_largest_differences_either_way_are_chosen(self, limit: int, better: int, worse: int) -> None:
        examples = [Example(str(i), Path(), (), ("", ""), (float(i), 3.5)) for i in range(10)]
        chosen = [example.image_id for example in choose(examples, limit)]
        assert chosen == [str(i) for i in range(9, 9 - better, -1)] + [
            str(i) for i in range(worse - 1, -1, -1)
        ]

    def test_scores_of_nan_count_as_zero(self) -> None:
        evaluation = evaluated(GOOD)._replace(scores={"spice": NAN_SCORE})
        assert [
            example.scores[1]
            for example in pair([evaluation] * 2, REFERENCES, dict.fromkeys(REFERENCES, Path()), "spice")
        ] == [0.5, 0, 0.1, 0.2]


class Parsed(HTMLParser):
    """Rows, attributes and text of a page; refuses tags that don't nest."""

    VOID = ("meta", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class TestPage:
    HOSTILE = (
        "</dd></script><script>alert(1)</script><img src=http://x.y/z onerror=alert(2)> $first ${x} & \"'"
    )

    def build(self, folder: Path, captions: dict[str, str] = GOOD) -> str:
        Image.new("RGB", (900, 300), "red").save(folder / "1.png")
        first, second = evaluated(captions, "a <b>"), evaluated(WEAK, "weak")
        paths = {image_id: folder / f"{image_id}.png" for image_id in REFERENCES}
        examples = choose(pair([first, second], REFERENCES, paths, "cider_d"), 200)
        tables = [score_table([first, second], compare(first, second))]
        return render_page(
            examples, names=("a <b>", "weak"), data="toy & val", metric="cider_d", tables=tables, total=4
        )

    def test_rows_hold_captions_references_and_differences_sorted(self, tmp_path: Path) -> None:
        parsed = Parsed(self.build(tmp_path))
        rows = [attributes for attributes in parsed.of("li") if attributes.get("class") == "row"]
        differences = [float(row["data-first"] or 0) - float(row["data-second"] or 0) for row in rows]
        assert {row["data-id"] for row in rows} == REFERENCES.keys() and differences == sorted(
            differences, reverse=True
        )
        assert differences[0] > 0 > differences[-1]
        assert set(GOOD.values()) | set(WEAK.values()) == set(parsed.text["dd"])
        assert {text for captions in REFERENCES.values() for text in captions} <= set(parsed.text["li"])
        assert "randomization test over images" in self.build(tmp_path)
        assert "toy & val" in parsed.text["title"][0] and "a <b>" in parsed.text["title"][0]

    def test_captions_stay_text_whatever_they_hold(self, tmp_path: Path) -> None:
        plain_page, hostile = (
            Parsed(self.build(tmp_path)),
            Parsed(self.build(tmp_path, {**GOOD, "2": self.HOSTILE})),
        )
        assert sorted(tag for tag, _ in hostile.tags) == sorted(tag for tag, _ in plain_page.tags)
        assert "".join(hostile.text["dd"]).count(self.HOSTILE) == 1

    def test_it_asks_for_nothing_from_outside(self, tmp_path: Path) -> None:
        parsed = Parsed(self.build(tmp_path))
        links = [
            value or ""
            for _, attributes in parsed.tags
            for name, value in attributes.items()
            if name in ("src", "href")
        ]
        assert links and all(link.startswith("data:image/jpeg;base64,") for link in links)
        assert "default-src 'none'" in (parsed.of("meta")[2]["content"] or "") and not parsed.of("link")

    def test_pictures_are_small_and_missing_ones_are_named(self, tmp_path: Path) -> None:
        text = self.build(tmp_path)
        [image] = Parsed(text).of("img")
        content = base64.b64decode((image["src"] or "").partition(",")[2])
        assert Image.open(io.BytesIO(content)).size == (320, 107) and text.count("no picture") == 3
        (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no")
        assert thumbnail(tmp_path / "bad.jpg") is None

    def test_pictures_look_as_the_network_sees_them(self, tmp_path: Path) -> None:
        """Transparent places are white, whatever colour hides there, and 16 bits are scaled to 8."""
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
        Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "deep.png")
        for name, grey in (("clear.png", 255), ("deep.png", 117)):
            content = thumbnail(tmp_path / name)
            assert content is not None
            shown = np.asarray(Image.open(io.BytesIO(content)))
            assert np.abs(shown.astype(int) - grey).max() <= 2

    def test_controls_have_names(self, tmp_path: Path) -> None:
        parsed = Parsed(self.build(tmp_path))
        assert any("script-src 'unsafe-inline'" in meta.get("content", "") for meta in parsed.of("meta"))
        assert all(image["alt"] for image in parsed.of("img")) and parsed.of("html")[0]["lang"] == "en"
        assert [button.get("aria-pressed") for button in parsed.of("button")[:3]] == [
            "true",
            "false",
            "false",
        ]


@pytest.fixture(scope="module")
def checkpoint(toy_root: Path, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model on the toy data."""
    config = compose_config(
        "train", *toy_overrides, "output_dir=none", "data.reader.root=" + str(toy_root / "toy")
    )
    data = build_data(config)
    torch.manual_seed(0)
    module = build_module(config, data)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    torch.save(content, path)
    return path


def configured(folder: Path, *options: object) -> Any:
    return compose_config("evaluate", f"output_dir={folder}", "resamples=50", *map(str, options))


class TestCommand:
    @pytest.mark.slow
    def test_a_checkpoint_then_a_comparison_without_one_of_the_metrics(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = call(
            "evaluate",
            f"checkpoint={checkpoint}",
            "split=test",
            "decoding=nucleus",
            "resamples=50",
            "output_dir=first",
            cwd=tmp_path,
        )
        assert (
            first.returncode == 0 and "cider_d" in first.stdout and "frequencies in toy test" in first.stdout
        ), first.stderr
        folder = tmp_path / "first"
        assert {"captions.json", "scores.json", "images.csv"} <= {path.name for path in folder.iterdir()}
        captions, scores = (
            json.loads((folder / name).read_text()) for name in ("captions.json", "scores.json")
        )
        assert len(captions) == scores["num_images"] == 8 and isinstance(captions[0]["image_id"], int)
        assert (
            scores["references"] == "toy test"
            and scores["decoding"]["top_p"] == 0.9
            and scores["milliseconds_per_image"] > 0
        )
        for entry in captions:
            entry["caption"] = "a red circle"
        (tmp_path / "constant.json").write_text(json.dumps(captions))
        monkeypatch.setenv("PATH", "")  # no Java
        second = call(
            "evaluate", f"compare=[{folder / 'captions.json'},constant.json]", f"checkpoint={checkpoint}", "split=test",
            "metrics=[bleu,rouge_l,cider_d,meteor]", "allow_empty=true", "resamples=50", "output_dir=second", cwd=tmp_path,
        )  # fmt: skip
        assert second.returncode == 2 and "error: no meteor: METEOR needs" in second.stderr, second.stderr
        assert "difference" in second.stdout and "Traceback" not in second.stderr
        again = json.loads((tmp_path / "second" / "scores.json").read_text())
        assert again["systems"][0]["scores"] == scores["systems"][0]["scores"]
        assert again["paired"]["cider_d"]["p_value"] > 0
        parsed = Parsed((tmp_path / "second" / "comparison.html").read_text())
        assert len(parsed.of("img")) == 8

    def test_a_result_file_scores_as_the_model_that_wrote_it(self, checkpoint: Path, tmp_path: Path) -> None:
        options = f"checkpoint={checkpoint}", "allow_empty=true"
        [model] = run(configured(tmp_path, *options))
        [file] = run(configured(tmp_path, *options, f"results={tmp_path / 'captions.json'}"))
        assert file.scores == model.scores and file.diversity == model.diversity and file.name == "captions"
        for name in ("b", "c"):
            shutil.copy(tmp_path / "captions.json", tmp_path / f"{name}.json")
        several = f"results=[{tmp_path}/captions.json,{tmp_path}/b.json,{tmp_path}/c.json]"
        scored = run(configured(tmp_path, *options, several))
        assert [each.scores for each in scored] == [model.scores] * 3

    @pytest.mark.slow
    def test_a_mistake_leaves_no_file(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('[{"image_id": 5, "caption": NaN}]')
        done = call("evaluate", "results=a.json", f"checkpoint={checkpoint}", "output_dir=run", cwd=tmp_path)
        assert (
            done.returncode == 2
            and "error: a.json has 1 image ids that are unknown" in done.stderr
            and "Traceback" not in done.stderr
        )
        assert not [
            path
            for path in (tmp_path / "run").iterdir()
            if path.suffix in (".json", ".csv", ".html", ".partial")
        ]

    def test_the_seed_decides_what_is_sampled(self, checkpoint: Path, tmp_path: Path) -> None:
        def captions(seed: int) -> dict[str, str]:
            options = f"checkpoint={checkpoint}", "decoding=nucleus", f"seed={seed}"
            return run(configured(tmp_path, *options))[0].captions

        assert captions(1) == captions(1) != captions(2)

    def test_features_may_lie_in_a_folder_of_shards(self, checkpoint: Path, tmp_path: Path) -> None:
        [whole] = run(configured(tmp_path, f"checkpoint={checkpoint}"))
        content = torch.load(checkpoint, weights_only=True)["captioning"]
        cache, folder = FeatureCache(content["data"]["features_path"]), tmp_path / "shards.h5"
        for number in range(2):
            ids, path = cache.image_ids[number::2], Shard(number, 2).path(folder)
            with CacheWriter(path, ids, cache.shape, cache.provenance) as writer:
                for row, features in enumerate(cache.read(ids)):
                    writer.write(row, Row(features, len(features)))
                writer.finish()
        options = f"checkpoint={checkpoint}", f"features_path={folder}"
        [found] = run(configured(tmp_path, *options))
        assert found.captions == whole.captions and found.scores == whole.scores
        Shard(1, 2).path(folder).unlink()
        with pytest.raises(InputError, match="lacks 1 of its 2 shards"):
            run(configured(tmp_path, *options))

    def test_data_given_on_the_command_line_replace_the_checkpoints(
        self, checkpoint: Path, toy_root: Path, tmp_path: Path
    ) -> None:
        options = [
            f"checkpoint={checkpoint}",
            "data=toy",
            f"data_root={toy_root}",
            "data.reader.scenes={train: 24, val: 8, test: 8}",
        ]
        [given] = run(configured(tmp_path, *options))
        [described] = run(configured(tmp_path, options[0]))
        assert given.captions == described.captions

    def test_beam_search_takes_words_as_words(self, checkpoint: Path, tmp_path: Path) -> None:
        options = f"checkpoint={checkpoint}", "decoding=beam", "decoding.required=[circle]"
        captions = run(configured(tmp_path, *options))[0].captions
        assert all("circle" in caption.split() for caption in captions.values())

    def test_model_options_reach_the_model(self, checkpoint: Path, tmp_path: Path) -> None:
        for options, message in (
            ("{encoder.output_dim: 9}", "the weights do not fit the model"),
            ("{depth: 2}", "model_options has 'depth', which the model does not have"),
        ):
            with pytest.raises(InputError, match=message):
                run(configured(tmp_path, f"checkpoint={checkpoint}", f"model_options={options}"))

    def test_a_trusted_package_may_bring_the_reader(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine.py").write_text("from captioning.data import read_toy as read\n")
        monkeypatch.syspath_prepend(tmp_path)
        content = torch.load(checkpoint, weights_only=True)
        content["captioning"]["data"]["reader"]["_target_"] = "mine.read"
        torch.save(content, tmp_path / "mine.ckpt")
        options = f"checkpoint={tmp_path / 'mine.ckpt'}", "trust=[mine]"
        [found] = run(configured(tmp_path, *options))
        results = f"results={tmp_path / 'captions.json'}", "allow_empty=true"
        assert run(configured(tmp_path, *options, *results))[0].scores == found.scores
        for untrusted in ((), results):
            with pytest.raises(InputError, match=r"names mine.read as its reader.*give trust=\[mine\]"):
                run(configured(tmp_path, options[0], *untrusted))

    def test_alternatives_are_written_beside_the_captions(self, checkpoint: Path, tmp_path: Path) -> None:
        options = f"checkpoint={checkpoint}", "decoding=beam", "decoding.num_best=3"
        run(configured(tmp_path, *options))
        alternatives = json.loads((tmp_path / "alternatives.json").read_text())
        captions = json.loads((tmp_path / "captions.json").read_text())
        assert [entry["image_id"] for entry in alternatives] == [entry["image_id"] for entry in captions]
        for entry, first in zip(alternatives, captions, strict=True):
            assert len({first["caption"], *entry["captions"]}) == 3

    @pytest.mark.slow
    def test_files_are_compared_with_nothing_but_data(self, toy_root: Path, tmp_path: Path) -> None:
        """No features are named, nor needed; the whole command, as what it composes matters here."""
        content = json.loads((toy_root / "toy" / "captions_val.json").read_text())
        for name, caption in (("a", "a red circle"), ("b", "a blue square")):
            entries = [{"image_id": image["id"], "caption": caption} for image in content["images"]]
            (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        done = call(
            "evaluate", "compare=[a.json,b.json]", "data=toy", f"data_root={toy_root}", "resamples=50",
            "data.reader.scenes={train: 24, val: 8, test: 8}", "output_dir=both", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0 and "difference" in done.stdout, done.stderr

    def test_several_runs_of_two_settings_are_tested_over_seeds_and_images(
        self, toy_root: Path, tmp_path: Path
    ) -> None:
        references = toy_root / "toy" / "captions_val.json"
        content = json.loads(references.read_text())
        texts = {a["image_id"]: a["caption"] for a in content["annotations"]}
        for number, name in enumerate(("a0", "a1", "b0", "b1")):
            entries = [
                {
                    "image_id": key,
                    "caption": text if number < 2 and place % 4 != number else f"a blue circle {name}",
                }
                for place, (key, text) in enumerate(texts.items())
            ]
            (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        a0, a1, b0, b1 = (tmp_path / f"{name}.json" for name in ("a0", "a1", "b0", "b1"))
        found = run(
            configured(
                tmp_path,
                f"compare=[[{a0},{a1}],[{b0},{b1}]]",
                f"references={references}",
                "metrics=[bleu,cider_d]",
            )
        )
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert len(found) == len(scores["systems"]) == 4
        means = [sum(run.scores["cider_d"].corpus for run in side) / 2 for side in (found[:2], found[2:])]
        for metric in ("cider_d", "bleu_1"):
            test = scores["paired"][metric]
            assert test["low"] < test["difference"] < test["high"] and 0 < test["p_value"] < 0.2
        assert scores["paired"]["cider_d"]["difference"] == pytest.approx(
            100 * (means[0] - means[1]), abs=1e-3
        )
        options = f"compare=[{a0},{b0}]", f"references={references}", "metrics=[bleu]", "page_images=0"
        run(configured(tmp_path / "no_page", *options))
        assert not (tmp_path / "no_page" / "comparison.html").exists()
        page = (tmp_path / "comparison.html").read_text()
        assert "all runs of either setting" in page and "test over images" not in page
        header = (tmp_path / "images.csv").read_text().splitlines()[0]
        assert "caption_1" in header and "cider_d_4" in header

    def test_stored_frequencies_make_the_score_of_one_image_mean_something(
        self, checkpoint: Path, toy_root: Path, tmp_path: Path
    ) -> None:
        stored = tmp_path / "train.json"
        common = f"checkpoint={checkpoint}", "document_frequencies=training"
        run(configured(tmp_path / "a", *common, f"save_document_frequencies={stored}"))
        written = json.loads((tmp_path / "a" / "scores.json").read_text())
        assert written["document_frequencies"] == "toy train"
        content = json.loads((toy_root / "toy" / "captions_val.json").read_text())
        one = content["images"][0]["id"]
        content["images"] = content["images"][:1]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == one]
        (tmp_path / "one.json").write_text(json.dumps(content))
        caption = content["annotations"][0]["caption"]
        (tmp_path / "result.json").write_text(json.dumps([{"image_id": one, "caption": caption}]))
        options = f"results={tmp_path / 'result.json'}", f"references={tmp_path / 'one.json'}"
        [alone] = run(configured(tmp_path / "b", *options))
        [weighed] = run(configured(tmp_path / "c", *options, f"document_frequencies={stored}"))
        assert alone.scores["cider_d"].corpus == 0 and weighed.scores["cider_d"].corpus > 1
        with pytest.raises(
            InputError, match=r"document_frequencies=no.json can't be read .*; make such a file"
        ):
            run(configured(tmp_path / "d", *options, "document_frequencies=no.json"))

    def test_references_may_be_a_coco_file(self, toy_root: Path, tmp_path: Path) -> None:
        options = (
            f"references={toy_root / 'toy' / 'captions_val.json'}",
            f"images={toy_root / 'toy' / 'images'}",
        )
        path, images = (option.partition("=")[2] for option in options)
        references = read_references(None, coco=(path, images), split="val")
        assert len(references.captions) == 8 and references.training == []
        assert all(record.path.is_file() for record in references.records.values())

    def test_images_without_captions_are_not_scored(self) -> None:
        records = [Annotated(str(i), Path(), "val", ("a dog",) * (i % 2)) for i in range(4)]
        references = References.of("mine", records, "val")
        assert list(references.captions) == ["1", "3"] and references.without_captions == {"0", "2"}
        with pytest.raises(
            InputError, match="no image of mine val has a caption, so there is nothing to score"
        ):
            References.of("mine", records[::2], "val")

    def test_people_are_scored_by_one_caption_of_each_image_against_the_others(self) -> None:
        texts = [("a dog", "a dog runs", "the dog"), ("a cat", "a cat sits")]
        records = [Annotated(str(i), Path(), "val", captions) for i, captions in enumerate(texts)]
        captions, others = References.of("mine", records, "val").hold_one_out()
        assert captions == {"0": "a dog", "1": "a cat"}
        assert others.captions == {"0": ("a dog runs", "the dog"), "1": ("a cat sits",)}
        with pytest.raises(InputError, match="1 of mine val has one only; choose data with several captions"):
            others.hold_one_out()

    def test_training_frequencies_need_training_captions(self) -> None:
        records = [Annotated("1", Path("1.jpg"), "val", ("a dog",))]
        with pytest.raises(
            InputError, match="document_frequencies=training needs data with training captions"
        ):
            References.of("mine", records, "val").with_frequencies("training")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                [],
                "nothing to evaluate: give checkpoint=…, results=a.json, compare=[a.json,b.json] or people=true",
            ),
            (["results=a", "compare=[a,b]"], "results= scores files, compare= makes a page of two"),
            (["results=a", "people=true"], "and people=true scores the references; give one of them"),
            (["compare=[a]"], r"compare=['a'] must be a list of two files"),
            (["compare=a.json"], "compare=a.json must be a list of two files"),
            (["compare=[[a,b],[c]]"], "or of two lists, with the files of several runs of each setting"),
            (["results=a", "page_images=null"], "page_images=None must be a whole number from 0"),
            (["results=a", "resamples=0"], "resamples=0 must be a whole number from 1"),
            (["checkpoint=a", "references=b"], "references= goes with results=, compare= or people=true"),
            (["results=a", "metrics=cider"], "metrics=['cider'] has ['cider']"),
            (["results=a", "metrics=[cider]"], "metrics=['cider'] has ['cider']"),
            (
                ["compare=[a,b]", "page_metric=spice"],
                "page_metric=spice is not scored here; it is one of bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d",
            ),
        ],
    )
    def test_options_that_mean_nothing_are_refused(
        self, tmp_path: Path, options: list[str], message: str
    ) -> None:
        with pytest.raises(InputError) as error:
            check_options(own_options(configured(tmp_path, *options), GROUPS))
        assert message in str(error.value)

    def test_every_page_metric_is_accepted(self, tmp_path: Path) -> None:
        for metric in ("bleu_4", "rouge_l", "cider_d"):
            check_options(own_options(configured(tmp_path, "compare=[a,b]", f"page_metric={metric}"), GROUPS))

    def test_references_that_are_not_there_are_named(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match="no references: give references=captions.json, data=… or checkpoint=…"
        ):
            read_references(None, split="val")
        with pytest.raises(
            InputError, match="toy has no split 'tset'; it has test, train, val: choose one with split="
        ):
            read_references(None, [str(checkpoint)], split="tset")
        with pytest.raises(InputError, match="references=gone.json is not a file; give the COCO captions"):
            read_references(None, coco=("gone.json", ""), split="val")
        with pytest.raises(InputError, match=r"references=\['a', 'b'\] has several files; give one"):
            check_options(own_options(configured(tmp_path, "results=c", "references=[a,b]"), GROUPS))

    def test_data_that_moved_are_named_with_the_remedy(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"there is no feature file gone.h5; make it .*give features_path=…"
        ):
            run(configured(tmp_path, f"checkpoint={checkpoint}", "features_path=gone.h5"))
        content = torch.load(checkpoint, weights_only=True)
        content["captioning"]["data"]["reader"] = {
            "_target_": "captioning.data.read_pairs",
            "_partial_": True,
            "file": "gone.csv",
        }
        torch.save(content, tmp_path / "moved.ckpt")
        with pytest.raises(
            InputError, match=r"there is no annotation file gone.csv; .*: give data=… \(and features=…"
        ):
            run(configured(tmp_path, f"checkpoint={tmp_path / 'moved.ckpt'}"))
        content["captioning"]["data"]["surplus"] = 1
        torch.save(content, tmp_path / "old.ckpt")
        with pytest.raises(InputError, match=r"unexpected keyword argument 'surplus'.*: give data=…"):
            run(configured(tmp_path, f"checkpoint={tmp_path / 'old.ckpt'}"))
