"""What a run leaves behind for its loggers and for later: options, curves, captions, pictures, the environment."""

import csv
import importlib.util
import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks.progress.progress_bar import get_standard_metrics
from PIL import Image

from captioning.files import describe_commit
from captioning.training.assembly import assemble
from captioning.training.callbacks import ProgressBar
from captioning.training.environment import describe_environment
from captioning.training.samples import Sample, log_samples
from tests.conftest import compose_config
from tests.test_module import run

HAS_WANDB = importlib.util.find_spec("wandb") is not None


@pytest.fixture(scope="module")
def folder(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, with a picture of each split in TensorBoard, files and, if there, W&B."""
    folder = tmp_path_factory.mktemp("logged")
    extra = ["logger=wandb", "logger.wandb.offline=true"] if HAS_WANDB else ["logger=csv"]
    tensorboard = (
        "+logger.tensorboard={_target_: lightning.pytorch.loggers.TensorBoardLogger, "
        f"save_dir: {folder}, name: '', version: tensorboard}}"
    )
    options = [*toy_overrides, *extra, tensorboard, "num_samples=1", "trainer.log_every_n_steps=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_CONSOLE", "off")  # or W&B would go on listening to the tests after this one
        run(options, folder, "trainer.max_epochs=2", "scheduler=warmup_cosine")
    return folder


def test_a_run_needs_no_logger_and_the_progress_bar_shows_no_version(
    toy_overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [*toy_overrides, "trainer.limit_train_batches=1"]
    run(options, tmp_path / "a", "logger=[]")
    assert (tmp_path / "a" / "checkpoints" / "last.ckpt").is_file() and "failed" not in caplog.text
    job = assemble(compose_config("train", *options, f"output_dir={tmp_path / 'b'}", "logger=tensorboard"))
    trainer = job.trainer
    job.fit()
    shown = ProgressBar().get_metrics(trainer, trainer.lightning_module)
    assert shown and "v_num" in get_standard_metrics(trainer) and "v_num" not in shown


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
class TestFiles:
    def test_learning_rate_and_gradient_norm_are_logged(self, folder: Path) -> None:
        metrics = rows(folder / "metrics.csv")
        rates = [float(row["lr-Adam"]) for row in metrics if row.get("lr-Adam")]
        norms = [float(row["train/grad_norm"]) for row in metrics if row.get("train/grad_norm")]
        assert len(rates) >= 16 and max(rates) > rates[-1] and len(norms) >= 16 and min(norms) > 0

    def test_options_are_hyper_parameters(self, folder: Path) -> None:
        options = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert options["seed"] == 0 and options["model"]["hidden_dim"] == 16 and "words" not in options

    def test_captions_and_pictures_are_files(self, folder: Path) -> None:
        for epoch in ("epoch00", "epoch01"):
            place = folder / "samples" / epoch
            captions = rows(place / "captions.csv")
            assert [row["split"] for row in captions] == ["train", "val"] and captions[0]["caption"]
            pictures = sorted(place.glob("*.jpg"))
            assert len(pictures) == sum(bool(row["caption"]) for row in captions)
            assert Image.open(pictures[0]).width > 200

    def test_the_best_epochs_captions_are_kept_with_their_scores(self, folder: Path) -> None:
        summary, kept = json.loads((folder / "summary.json").read_text()), rows(folder / "validation.csv")
        assert len(kept) == 8 and {int(row["epoch"]) for row in kept} == {summary["best"]["epoch"]}
        mean = sum(float(row["cider_d"]) for row in kept) / 8
        assert mean == pytest.approx(summary["best"]["cider_d"], abs=1e-3) and summary["finished"] is True

    def test_the_environment_is_recorded(self, folder: Path) -> None:
        recorded = json.loads((folder / "environment.json").read_text())
        assert recorded["packages"]["torch"] == version("torch") and recorded["commit"]


@pytest.mark.slow
def test_tensorboard_gets_the_same(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [events] = (folder / "tensorboard").glob("events*")
    log = EventAccumulator(str(events))
    log.Reload()
    tags = log.Tags()
    assert {"lr-Adam", "train/grad_norm", "val/cider_d"} <= set(tags["scalars"])
    assert (
        any(tag.startswith("val/") for tag in tags["images"])
        and "_hparams_/experiment" in log.summary_metadata
    )
    assert any(tag.startswith("train/") and tag.endswith("/text_summary") for tag in tags["tensors"])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WANDB, reason="needs the extra `track`")
def test_wandb_gets_the_same_without_a_network(folder: Path) -> None:
    import wandb

    wandb.teardown()  # writes what it still holds
    [offline] = (folder / "wandb").glob("offline-run-*")
    content = b"".join(path.read_bytes() for path in offline.glob("*.wandb"))
    for key in (b"lr-Adam", b"train/grad_norm", b"val/cider_d", b"hidden_dim", b"samples/captions"):
        assert key in content, key
    assert list(offline.rglob("media/images/**/*.png")) or list(offline.rglob("media/images/**/*.jp*g"))


def test_an_image_id_may_be_a_path(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    picture = Image.new("RGB", (8, 8))
    logger = CSVLogger(tmp_path, name="", version="")
    log_samples([logger], [Sample("val", "a/../b.jpg", "a dog", picture)], epoch=3)
    place = tmp_path / "samples" / "epoch03"
    assert sorted(path.name for path in place.iterdir()) == ["captions.csv", "val-a_.._b.jpg.jpg"]


def test_the_commit_is_that_of_a_checkout_only(tmp_path: Path) -> None:
    assert describe_commit(tmp_path) == {"commit": None, "uncommitted_changes": None}
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    found = describe_commit(tmp_path)
    assert len(found["commit"]) == 40 and found["uncommitted_changes"] is False
    assert json.dumps(describe_environment())
