"""The benchmarks run, at their smallest; what they measure is no test's business."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_all_are_listed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = set(done.stdout.split())
    assert {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")} - listed == {
        "growth_paths",
        "references",
    }


@pytest.mark.slow
def test_all_can_be_imported() -> None:
    """What they take from the package is there under its name; that they run is tested in the exhaustive tier."""
    names = [path.stem for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py"))]
    script = "".join(f"import benchmarks.{name}\n" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_that_of_a_gpu_needs_neither_lightning_nor_hydra() -> None:
    """The machine with the GPU may have little more than torch."""
    script = """if True:
        import sys
        sys.modules |= dict.fromkeys(("lightning", "hydra", "omegaconf"))
        import benchmarks.gpu
    """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("beam", ["--threads", "1", "--images", "2", "--repeats", "1"], "one at a time"),
        ("cache", ["--rows", "64", "--repeats", "1"], "int8"),
        ("extraction", ["--threads", "1", "--images", "4", "--repeats", "1"], "1 loader processes"),
        ("extraction", ["--memory", "20"], "20 images:"),
        ("own_parts", ["--threads", "1", "--repeats", "1"], "attention over 20 words"),
        (
            "growth",
            ["--axes", "captions", "images", "beams", "--repeats", "1", "--output", os.devnull],
            "read_encoded_and_ready  MB",
        ),
        ("gpu", ["--tiny", "--seconds", "60"], "Transformer, eager"),
        ("metrics", ["--images", "100", "--repeats", "1"], "reward of 320 candidates"),
        ("self_critical", ["--threads", "1", "--repeats", "1", "--models", "gru_attention_flickr"], "gru"),
        ("training_step", ["--threads", "1", "--repeats", "1"], "an ordinary good loop"),
    ],
)
def test_it_runs_and_says_what_it_compares(name: str, options: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and says in done.stdout, done.stdout + done.stderr[-2000:]
