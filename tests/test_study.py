"""Trainings side by side, read from folders that say everything themselves."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from captioning.errors import InputError
from captioning.evaluation import close, write_study
from captioning.evaluation.curves import curves_figure
from captioning.evaluation.runs import describe_runs, read_runs
from captioning.evaluation.study import group_runs


def write_run(
    folder: Path,
    scores: list[float],
    *,
    finished: bool = True,
    overrides: tuple[str, ...] = (),
    model: str = "gru",
    images: int = 30,
    scored: str = "Penn Treebank tokens",
    **options: object,
) -> Path:
    """A run folder as a training leaves it, with CIDEr-D by epoch."""
    epochs = [
        {"epoch": n, "cider_d": score, "bleu_4": score / 2, "nll": 3.0 - n} for n, score in enumerate(scores)
    ]
    best = max(epochs, key=lambda epoch: epoch["cider_d"], default=None)
    config = {
        "seed": 0,
        "optimizer": {"lr": 0.001},
        "model": {"_target_": model},
        "output_dir": "${hydra:x}",
        **options,
    }
    hydra = {
        "hydra": {
            "job": {"config_name": "train"},
            "runtime": {"choices": {"model": model, "hydra/launcher": "basic"}},
        }
    }
    (folder / ".hydra").mkdir(parents=True)
    for name, content in (("config", config), ("hydra", hydra), ("overrides", list(overrides))):
        (folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    if best:
        summary = {
            "name": "toy", "finished": finished, "parameters": 1234, "scored": scored, "best": best, "epochs": epochs,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        noise = np.random.default_rng(sum(map(ord, folder.name))).normal(0, 1, images)
        rows = [
            [best["epoch"], f"i{n}", "a dog", best["cider_d"] + noise[n] - noise.mean()]
            for n in range(images)
        ]
        with (folder / "validation.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["epoch", "image_id", "caption", "cider_d"], *rows])
    return folder


def sweep(folder: Path) -> Path:
    """Two rates with three seeds each."""
    scores = {0.01: (30, 31, 32), 0.001: (20, 24, 22)}
    for number, (rate, seed) in enumerate((rate, seed) for rate in scores for seed in range(3)):
        write_run(
            folder / str(number), [1.0, scores[rate][seed]], overrides=(f"optimizer.lr={rate:.0e}", f"seed={seed}"),
            seed=seed, optimizer={"lr": rate},
        )  # fmt: skip
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_setting_has_its_mean_and_students_interval_over_seeds(tmp_path: Path) -> None:
    tables = write_study([sweep(tmp_path / "sweep")], tmp_path / "out")
    best, other = read_csv(tmp_path / "out" / "comparison.csv")
    assert (best["setting"], best["runs"]) == ("optimizer.lr=0.01", "3")
    assert float(best["cider_d"]) == 31 and float(other["cider_d"]) == 22
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees; standard deviations 1 and 2
    assert float(best["cider_d_high"]) == pytest.approx(31 + half, abs=1e-5)
    assert float(other["cider_d_low"]) == pytest.approx(22 - 2 * half, abs=1e-5)
    assert tables[0].rows[0] == ["optimizer.lr=0.01", "3", "31.0 ± 2.5", "15.5 ± 1.2", "2.000 ± 0.000", "1"]
    assert "over other seeds, on the same validation images" in tables[0].note


def test_runs_are_named_by_what_differs_only(tmp_path: Path) -> None:
    tables = write_study([sweep(tmp_path / "sweep")], tmp_path / "out")
    assert tables[1].rows[0][0] == "optimizer.lr=0.01 seed=0"
    runs = read_csv(tmp_path / "out" / "runs.csv")
    assert (
        len(runs) == 6
        and runs[0]["folder"] == str(tmp_path / "sweep" / "0")
        and runs[0]["parameters"] == "1234"
    )


def test_settings_are_tested_over_seeds_and_images_together(tmp_path: Path) -> None:
    table = write_study([sweep(tmp_path / "sweep")], tmp_path / "out")[2]
    assert table.title == "CIDEr-D, difference from optimizer.lr=0.01"
    [[name, difference, p]] = table.rows
    assert (
        name == "optimizer.lr=0.001" and difference.startswith("-9.0 [") and 0 < float(p.lstrip("<")) < 0.01
    )
    assert "seeds and other images together (30 validation images); p times the 1 pairs" in table.note


def test_settings_scored_on_other_images_are_not_tested(tmp_path: Path) -> None:
    for number in range(4):
        write_run(
            tmp_path / f"sweep/{number}", [30.0 + number], images=30 - number // 2, seed=number,
            overrides=(f"model={'ab'[number // 2]}",), model="ab"[number // 2],
        )  # fmt: skip
    assert write_study([tmp_path / "sweep"], tmp_path / "out")[2].rows == [["model=a", "–", "–"]]


def test_a_single_image_is_not_tested(tmp_path: Path) -> None:
    for number in range(4):
        name = "ab"[number // 2]
        write_run(
            tmp_path / f"sweep/{number}", [30.0 + number], images=1, seed=number,
            overrides=(f"model={name}",), model=name,
        )  # fmt: skip
    assert write_study([tmp_path / "sweep"], tmp_path / "out")[2].rows == [["model=a", "–", "–"]]


def test_scores_over_other_tokens_are_neither_ranked_nor_tested(tmp_path: Path) -> None:
    scores = {
        ("words", 0.1): 20.0,
        ("words", 0.3): 30.0,
        ("characters", 0.1): 60.0,
        ("characters", 0.3): 25.0,
    }
    for number, ((unit, dropout), score) in enumerate(scores.items()):
        for seed in range(2):
            write_run(
                tmp_path / f"sweep/{2 * number + seed}", [score + seed], scored=unit, dropout=dropout, seed=seed,
                data={"tokenizer": unit}, overrides=(f"data.tokenizer={unit}", f"dropout={dropout}"),
            )  # fmt: skip
    settings, _, first, second = write_study([tmp_path / "sweep"], tmp_path / "out")
    assert settings.headings[2] == "scored over"
    ranked = [(row[0], row[2]) for row in settings.rows]
    assert ranked == [
        (f"data.tokenizer={unit} dropout={dropout}", unit)
        for unit, dropout in (("characters", 0.1), ("characters", 0.3), ("words", 0.3), ("words", 0.1))
    ]
    assert "ranks and tests are among the same tokens" in settings.note
    assert "Nats a word are of the tokenizer's own tokens" in settings.note
    for table, unit, dropouts in ((first, "characters", (0.1, 0.3)), (second, "words", (0.3, 0.1))):
        names = [f"data.tokenizer={unit} dropout={dropout}" for dropout in dropouts]
        assert table.title.endswith(f"from {names[0]}") and [row[0] for row in table.rows] == names[1:]
    assert {row["scored"] for row in read_csv(tmp_path / "out" / "comparison.csv")} == {"words", "characters"}


def test_a_run_that_does_not_say_what_it_scored_compares_as_before(tmp_path: Path) -> None:
    for number in range(4):
        name = "ab"[number // 2]
        write_run(
            tmp_path / f"sweep/{number}", [30.0 + number], scored=("", "words")[number // 2], seed=number,
            overrides=(f"model={name}",), model=name,
        )  # fmt: skip
    settings, _, differences = write_study([tmp_path / "sweep"], tmp_path / "out")
    assert "scored over" not in settings.headings and "tokens" not in settings.note
    assert [row[0] for row in differences.rows] == ["model=a"]


def test_the_page_and_the_curves_are_written(tmp_path: Path) -> None:
    write_study([sweep(tmp_path / "sweep")], tmp_path / "out")
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "31.0 ± 2.5" in page and "data:image/png;base64," in page and "$" not in page
    assert "style-src 'unsafe-inline'\">" in page and "--back: #fff" in page  # the shared head; no scripts


def test_folders_may_be_an_iterator(tmp_path: Path) -> None:
    write_study(iter([sweep(tmp_path / "sweep")]), tmp_path / "out")
    assert f"<title>{tmp_path / 'sweep'}</title>" in (tmp_path / "out" / "comparison.html").read_text()


def test_the_mean_curve_is_over_finished_runs_and_every_run_has_a_thin_line(tmp_path: Path) -> None:
    for number, (scores, finished) in enumerate(
        (([1.0, 5], True), ([3.0, 7], True), ([9.0], False), ([], False))
    ):
        write_run(tmp_path / str(number), scores, finished=finished, seed=number)
    [setting] = group_runs(read_runs([tmp_path]))
    figure = curves_figure({setting.name: setting.runs})
    lines = [(line.get_linewidth(), *map(list, line.get_data())) for line in figure.axes[0].get_lines()]
    thin = [([0, 1], [1, 5]), ([0, 1], [3, 7]), ([0], [9]), ([], [])]
    assert lines == [*((0.8, *curve) for curve in thin), (2.5, [0, 1], [2, 6])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all runs (2 of 4)"]
    close(figure)


def test_a_run_that_has_not_finished_is_shown_and_does_not_count(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    write_run(
        folder / "6",
        [99.0],
        finished=False,
        overrides=("optimizer.lr=1e-2", "seed=3"),
        seed=3,
        optimizer={"lr": 0.01},
    )
    write_run(folder / "7", [], overrides=("optimizer.lr=1e-2", "seed=4"), seed=4, optimizer={"lr": 0.01})
    tables = write_study([folder], tmp_path / "out")
    assert tables[0].rows[0][:3] == ["optimizer.lr=0.01", "3 of 5", "31.0 ± 2.5"]
    assert "Runs that have not finished do not count." in tables[0].note
    states = {row[0]: row[-1] for row in tables[1].rows}
    assert states["optimizer.lr=0.01 seed=3"] == states["optimizer.lr=0.01 seed=4"] == "unfinished"
    assert states["optimizer.lr=0.01 seed=0"] == ""


def test_one_run_a_setting_says_that_it_tells_nothing_about_seeds(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name, [20.0], overrides=(f"model={name}",), model=name)
    tables = write_study([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert len(tables) == 2 and tables[0].rows[0][:3] == ["model=a", "1", "20.0"]
    assert "say nothing about other seeds" in tables[0].note


def test_the_same_value_given_or_not_is_the_same_setting(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0], overrides=("optimizer.lr=1e-3",))
    write_run(tmp_path / "b", [2.0], overrides=("+resume=auto",), seed=1, resume="auto", logger={"csv": 1})
    assert describe_runs(read_runs([tmp_path])) == ["", ""]


def test_options_that_change_no_number_make_no_setting(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0])
    write_run(
        tmp_path / "b", [2.0], checkpoint_every="10m", trainer={"enable_progress_bar": False, "log_every_n_steps": 5},
        data={"check": False}, features={"run": {"num_workers": 8}},
        overrides=("checkpoint_every=10m", "trainer.log_every_n_steps=5", "data.check=false"),
    )  # fmt: skip
    assert describe_runs(read_runs([tmp_path])) == ["", ""]


@pytest.mark.parametrize(
    ("starts", "settings"),
    [
        (["a", "b", "c"], 1),  # each seed from a run of its own
        (["a", "a", "b"], 2),  # two seeds from the same run: what differs is the start
        ([None, "a", "b"], 3),
    ],
)
def test_seeds_that_start_from_runs_of_their_own_are_one_setting(
    tmp_path: Path, starts: list[str | None], settings: int
) -> None:
    for seed, start in enumerate(starts):
        write_run(
            tmp_path / str(seed), [1.0], seed=seed, start_from=start,
            overrides=(f"seed={seed}", f"start_from={start}"),
        )  # fmt: skip
    assert len(group_runs(read_runs([tmp_path]))) == settings


def test_the_same_seed_from_two_runs_is_two_settings(tmp_path: Path) -> None:
    for number, (seed, start) in enumerate(((0, "a"), (0, "b"), (1, "a"), (1, "b"))):
        write_run(tmp_path / str(number), [1.0], seed=seed, start_from=start)
    assert [setting.name for setting in group_runs(read_runs([tmp_path]))] == ["start_from=a", "start_from=b"]


def test_what_differs_without_being_given_separates_settings(tmp_path: Path) -> None:
    """After a change of the YAML, say."""
    write_run(tmp_path / "a", [1.0], overrides=("seed=0",))
    write_run(tmp_path / "b", [2.0], overrides=("seed=1",), seed=1, optimizer={"lr": 0.01})
    assert describe_runs(read_runs([tmp_path])) == ["optimizer.lr=0.001", "optimizer.lr=0.01"]


def test_the_order_of_the_folders_is_that_of_their_numbers_and_each_counts_once(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / "sweep" / str(number), [1.0], seed=number)
    runs = read_runs([tmp_path / "sweep", tmp_path / "sweep" / "9"])
    assert [run.folder.name for run in runs] == ["1", "9", "10"]
    assert len(group_runs(runs)) == 1


def test_folders_of_other_commands_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [1.0])
    (tmp_path / "evaluate" / ".hydra").mkdir(parents=True)
    (tmp_path / "evaluate" / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: evaluate}}")
    assert [run.folder.name for run in read_runs([tmp_path])] == ["run"]
    with pytest.raises(InputError, match="evaluate holds no training run"):
        read_runs([tmp_path / "evaluate"])


def test_what_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read_runs([tmp_path / "nowhere"])
    folder = write_run(tmp_path / "run", [1.0])
    (folder / "validation.csv").write_text("epoch,image_id\n0,a\n")
    with pytest.raises(InputError, match="is no file of scored captions"):
        read_runs([folder])[0].scored_captions()
    (folder / "summary.json").write_text('{"best": [1]}')
    with pytest.raises(InputError, match="is not what captioning train writes"):
        read_runs([folder])
    (folder / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary.json can't be read .*is it whole"):
        read_runs([folder])


def test_captions_of_another_epoch_than_the_best_are_not_used(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [1.0, 2.0])
    assert len(read_runs([folder])[0].scored_captions()) == 30
    text = (folder / "validation.csv").read_text()
    (folder / "validation.csv").write_text(text.replace("\n1,", "\n0,"))
    assert read_runs([folder])[0].scored_captions() == {}
