"""SPICE, with a Python script in place of its Java program: what it is given, and how its output is read."""

import json
import math
import os
from pathlib import Path

import pytest

from captioning.evaluation.scoring import score
from captioning.metrics.spice import _MODELS, score_spice

PROGRAM = """#!/usr/bin/env python3
import json, os, sys
assert sys.argv[1:4] == ["-jar", "-Xmx8G", "spice-1.0.jar"], sys.argv
given = json.load(open(sys.argv[4]))
print("out of memory", file=sys.stderr)
{does}
"""
WRITES = "open(sys.argv[6], 'w').write({text})"
SCORES = "json.dumps([{'image_id': g['image_id'], 'scores': {'All': {'pr': 0.9, 're': 0.8, 'f': F[g['image_id']]}}} for g in given[::-1]])"
CANDIDATES = [["a", "dog"], ["a", "cat"]]
REFERENCES = [[["a", "dog", "runs"]], [["a", "cat"], ["cats"]]]


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    """Return a function that makes `java` a program which runs the given Python code."""
    jar = tmp_path / "spice-1.0.jar"
    (tmp_path / "lib").mkdir()
    for name in _MODELS:
        (tmp_path / "lib" / name).touch()
    monkeypatch.setitem(score_spice.__globals__, "find_jar", lambda *_: jar)

    def becomes(does: str) -> None:
        program = tmp_path / "java"
        program.write_text(PROGRAM.format(does=does))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return becomes


def test_an_images_value_is_its_f_score_whatever_the_order(java) -> None:  # noqa: ANN001
    java("F = [0.25, 0.75]\n" + WRITES.format(text=SCORES))
    score = score_spice(CANDIDATES, REFERENCES)
    assert score.per_image == [0.25, 0.75] and score.corpus == 0.5


def test_the_program_gets_one_candidate_and_all_references_an_image(
    java,
    tmp_path: Path,  # noqa: ANN001
) -> None:
    java(
        f"F = [1, 1]\nopen({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(given))\n"
        + WRITES.format(text=SCORES)
    )
    score_spice(CANDIDATES, REFERENCES)
    assert json.loads((tmp_path / "seen").read_text()) == [
        {"image_id": 0, "test": "a dog", "refs": ["a dog runs"]},
        {"image_id": 1, "test": "a cat", "refs": ["a cat", "cats"]},
    ]


def test_no_value_for_an_image_is_nan_as_in_the_toolkit(java) -> None:  # noqa: ANN001
    java("F = [0.25, None]\n" + WRITES.format(text=SCORES))
    score = score_spice(CANDIDATES, REFERENCES)
    assert score.per_image[0] == 0.25 and math.isnan(score.per_image[1]) and math.isnan(score.corpus)


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (WRITES.format(text="'[{'"), "wrote no scores for these 2 images"),
        (WRITES.format(text="'[]'"), "KeyError"),
        (WRITES.format(text="'[{\"image_id\": 0}]'"), "KeyError"),
        ("sys.exit(3)", "exit status 3; its output ended: out of memory"),
        ("pass", "exit status 0; its output ended"),
    ],
    ids=["broken", "empty", "no_scores", "fails", "writes_nothing"],
)
def test_a_program_that_fails_costs_its_own_column_only(java, does: str, message: str) -> None:  # noqa: ANN001
    java(does)
    with pytest.raises(RuntimeError, match=message):
        score_spice(CANDIDATES, REFERENCES)
    captions = {"one": "a dog", "two": "a cat"}
    references = {"one": ["a dog runs"], "two": ["a cat", "cats"]}
    found = score(captions, references, metrics=("bleu", "spice"), resamples=10)
    assert "bleu_4" in found.scores and message in found.unavailable["spice"]
