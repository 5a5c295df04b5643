"""Training as a whole on the small toy set: exact resuming, checkpoints that say what they hold, logs."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig

from captioning import checkpoint
from captioning.data import Batch, CaptionDataModule, LengthBuckets
from captioning.errors import InputError
from captioning.objectives import CrossEntropy
from captioning.training import AtomicCheckpointIO, assemble, trace_shapes
from captioning.training.assembly import build_data, build_module
from captioning.training.callbacks import move_batch
from captioning.training.module import refuse_damaged_features
from captioning.training.schedules import step_decay, warmup_cosine
from tests.conftest import batch_of, compose_config
from tests.test_commands import call

pytestmark = pytest.mark.slow


def run(overrides: list[str], folder: Path, *more: str) -> DictConfig:
    config = compose_config("train", *overrides, f"output_dir={folder}", *more)
    assemble(config).fit()
    return config


@pytest.fixture(scope="module")
def trained(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(toy_overrides, folder, "trainer.max_epochs=2", "trace_shapes=true")
    return folder


def test_two_and_two_epochs_equal_four_bit_for_bit(toy_overrides: list[str], tmp_path: Path) -> None:
    options = [*toy_overrides, "model.dropout=0.3", "scheduler=none"]
    run(options, tmp_path / "four", "trainer.max_epochs=4")
    run(options, tmp_path / "two", "trainer.max_epochs=2")
    run(options, tmp_path / "two_more", "trainer.max_epochs=4", f"resume={tmp_path / 'two'}")
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("four", "two_more")
    )
    assert one["epoch"] == other["epoch"] == 3
    for name, weights in one["state_dict"].items():
        assert torch.equal(weights, other["state_dict"][name]), name
    states = [c["optimizer_states"][0]["state"] for c in (one, other)]
    assert all(torch.equal(states[0][k]["exp_avg"], states[1][k]["exp_avg"]) for k in states[0])


def test_a_run_is_the_same_whether_its_features_were_there_or_not(
    toy_overrides: list[str], tmp_path: Path
) -> None:
    options = [*toy_overrides, f"data_root={tmp_path}", "prepare=true", "features.run.num_workers=0"]
    for name in ("extracting", "extracted"):
        run(options, tmp_path / name)
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("extracting", "extracted")
    )
    assert all(torch.equal(weights, other[name]) for name, weights in one.items())


def test_there_are_a_best_and_a_last_checkpoint(trained: Path) -> None:
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_every_epoch_has_a_checkpoint_where_asked(toy_overrides: list[str], tmp_path: Path) -> None:
    run(toy_overrides, tmp_path, "trainer.max_epochs=2", "keep_every_epoch=true")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"epoch00.ckpt", "epoch01.ckpt", "best.ckpt", "last.ckpt"}


def test_a_checkpoint_needs_nothing_else(trained: Path, toy_data: CaptionDataModule) -> None:
    loaded = checkpoint.load(trained / "checkpoints" / "last.ckpt")
    assert toy_data.vocabulary is not None and loaded.vocabulary.words == toy_data.vocabulary.words
    assert loaded.metadata["features"]["extractor"]["node"] == "maxpool2"
    assert loaded.metadata["provenance"]["architecture"] == "inception_v3"
    assert loaded.model.vocabulary_size == len(loaded.vocabulary) and not loaded.model.training


def test_the_log_holds_loss_perplexity_and_scores(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    last = {key: float(value) for row in rows for key, value in row.items() if value}
    assert last["val/perplexity"] == pytest.approx(math.exp(last["val/nll"]), rel=1e-3)
    assert 0 <= last["val/bleu_4"] <= 100 and last["val/cider_d"] >= 0
    assert last["train/nll_epoch"] < 4


def test_training_lowers_the_loss(toy_overrides: list[str], tmp_path: Path) -> None:
    run(toy_overrides, tmp_path, "trainer.max_epochs=6", "optimizer.lr=0.01")
    rows = [row["val/nll"] for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["val/nll"]]
    assert float(rows[-1]) < 0.8 * float(rows[0])


def test_shapes_are_traced_once_for_every_module(
    toy_overrides: list[str], toy_data: CaptionDataModule
) -> None:
    module = build_module(compose_config("train", *toy_overrides, "output_dir=none"), toy_data)
    batch = next(iter(toy_data.train_dataloader()))
    lines = trace_shapes(module, batch)
    words = int((batch.tokens[:, 1:] != 0).sum())
    assert "encoder.linear (Linear): 16×64×192 -> 16×64×8" in lines
    assert any(
        line.startswith("output (Sequential)") and line.endswith(f"{words}×{len(module.vocabulary)}")
        for line in lines
    )
    assert len(lines) == len(set(line.partition(" ")[0] for line in lines))


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = batch_of([[4], [5]], counts=[1, 2])._replace(image_rows=torch.tensor([0, 1]))
    moved = move_batch(batch, torch.device("meta"))
    assert {part.device.type for part in moved if isinstance(part, torch.Tensor)} == {"meta"}
    assert (
        moved.image_ids == batch.image_ids and move_batch(batch_of([[4]]), torch.device("meta")).mask is None
    )


def test_a_trace_of_shapes_changes_nothing(toy_overrides: list[str], toy_data: CaptionDataModule) -> None:
    small = [o for o in toy_overrides if not o.startswith("model.")]
    hard = ["model=show_attend_tell_hard", "objective=reinforce", "objective.baseline=average"]
    module = build_module(compose_config("train", *small, *hard, "output_dir=none"), toy_data)
    random = torch.get_rng_state()
    trace_shapes(module, next(iter(toy_data.train_dataloader())))
    assert module.objective.state_dict() == {"average": None}
    assert torch.equal(torch.get_rng_state(), random)


def test_a_loss_that_is_no_number_stops_with_the_remedy(toy_overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is .* lower optimizer.lr"):
        run(toy_overrides, tmp_path, "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "scheduler=none")


def test_a_loss_that_damaged_features_spoil_names_their_image(ragged: Batch) -> None:
    refuse_damaged_features(ragged)
    ragged.features[2, 1, 3] = float("nan")
    with pytest.raises(InputError, match="features of the image image2 hold NaN or Inf; .* repair=true"):
        refuse_damaged_features(ragged)


def test_a_broken_or_foreign_checkpoint_is_refused(tmp_path: Path, trained: Path) -> None:
    whole = trained / "checkpoints" / "last.ckpt"
    (tmp_path / "half.ckpt").write_bytes(whole.read_bytes()[:1000])
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    content = torch.load(whole, weights_only=True)
    content["captioning"]["model"]["hidden_dim"] = 17
    torch.save(content, tmp_path / "other.ckpt")
    content["captioning"]["model"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "evil.ckpt")
    path = {"_target_": "captioning.files.Path", "_args_": [str(tmp_path / "written")]}
    write = {"_target_": "captioning.files.write_text", "path": path, "text": "by a stranger"}
    content["captioning"]["model"] |= {"_target_": "captioning.models.GRUAttention", "activation": write}
    torch.save(content, tmp_path / "sly.ckpt")
    content["captioning"]["model"]["activation"] = "${oc.create:'{_target_: os.system}'}"
    torch.save(content, tmp_path / "hidden.ckpt")
    for name, message in (
        ("none", "there is no checkpoint"),
        ("half", "not a readable checkpoint"),
        ("foreign", "not a checkpoint of this project"),
        ("other", "the weights do not fit the model"),
        ("evil", "names os.system as its model"),
        ("sly", "names captioning.files"),
        ("hidden", "holds the interpolation .*oc.create"),
    ):
        with pytest.raises(InputError, match=message):
            checkpoint.load(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "written").exists()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioning.files.os.replace", fail)
    with pytest.raises(InputError, match="is the disk full. Make room and run the command again"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=f"go on with resume={tmp_path / name}, which is untouched"):
            AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
        (tmp_path / name).unlink()
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["c.ckpt"]


def test_starting_from_a_checkpoint_keeps_its_words_and_takes_the_new_rate(
    toy_overrides: list[str], trained: Path, tmp_path: Path
) -> None:
    run(toy_overrides, tmp_path, f"start_from={trained}", "optimizer.lr=1e-12", "scheduler=none")
    before, after = (
        torch.load(path / "checkpoints" / name, weights_only=True)
        for path, name in ((trained, "best.ckpt"), (tmp_path, "last.ckpt"))
    )
    assert after["captioning"]["words"] == before["captioning"]["words"] and after["epoch"] == 0
    for name, weights in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_has_an_order_of_its_own_and_a_resumed_one_the_same(
    toy_overrides: list[str], tmp_path: Path, workers: int
) -> None:
    """Through a real Trainer: what calls `set_epoch`, and when, is Lightning's business."""
    first_images: list[tuple[str, ...]] = []

    class Watch(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                first_images.append(tuple(batch.image_ids))

    def fit(epochs: int, ckpt: Path | None = None) -> Trainer:
        config = compose_config(
            "train",
            *toy_overrides,
            f"data.num_workers={workers}",
            f"output_dir={tmp_path}",
            "optimizer.lr=1e-9",
        )
        datamodule = build_data(config)
        trainer = Trainer(
            max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            limit_val_batches=0, enable_model_summary=False, callbacks=[Watch()],
        )  # fmt: skip
        trainer.fit(
            build_module(config, datamodule), datamodule=datamodule, ckpt_path=ckpt, weights_only=True
        )
        return trainer

    fit(3)
    straight, first_images[:] = list(first_images), []
    assert len(set(straight)) == 3
    fit(1).save_checkpoint(tmp_path / "one.ckpt")
    fit(3, tmp_path / "one.ckpt")
    assert first_images == straight


def test_starting_from_another_model_names_what_it_was(
    toy_overrides: list[str], trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds a captioning.models.GRUAttention whose weights do not fit"):
        run(toy_overrides, tmp_path, f"start_from={trained}", "model.hidden_dim=12")


def test_resuming_with_another_model_is_refused(
    toy_overrides: list[str], trained: Path, tmp_path: Path
) -> None:
    resume = [*toy_overrides, "trainer.max_epochs=3", f"resume={trained}"]
    with pytest.raises(InputError, match="whose weights do not fit"):
        run(resume, tmp_path / "a", "model.hidden_dim=12")


@pytest.mark.parametrize("share", ["warmup_share", "final_share"])
def test_a_share_of_the_schedule_outside_0_to_1_is_refused(share: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match=f"scheduler.{share} is 10; it is a share from 0 to 1"):
        warmup_cosine(optimizer, 100, **{"warmup_share": 0.1, "final_share": 0.0, share: 10})
    for wrong in ({"times": -1, "factor": 0.5}, {"times": 2, "factor": -2.0}):
        with pytest.raises(InputError, match="needed are numbers from 0, and above 0"):
            step_decay(optimizer, 100, **wrong)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optimizer=rmsprop", "was trained with optimizer Adam, found RMSprop; give that optimizer= again"),
        (
            "scheduler=none",
            "was trained with scheduler warmup_cosine, found none; give that scheduler= again",
        ),
        (
            "objective=doubly_stochastic",
            "was trained with objective FocusedAttention, found DoublyStochastic; give that objective= again, or "
            "start_from=",
        ),
    ],
)
def test_resuming_with_another_objective_optimizer_or_schedule_is_refused(
    toy_overrides: list[str], tmp_path: Path, option: str, message: str
) -> None:
    options = [*toy_overrides, "scheduler=warmup_cosine"]
    run(options, tmp_path / "one", "trainer.max_epochs=1")
    with pytest.raises(InputError, match=message):
        run(options, tmp_path, "trainer.max_epochs=2", f"resume={tmp_path / 'one'}", option)


@pytest.mark.parametrize(("scheduler", "share"), [("none", 1.0), ("warmup_cosine", 0.01)])
def test_a_resumed_run_takes_the_learning_rate_it_is_given(
    toy_overrides: list[str], tmp_path: Path, scheduler: str, share: float
) -> None:
    options = [*toy_overrides, f"scheduler={scheduler}", "optimizer.lr=1e-3"]
    run(options, tmp_path / "one", "trainer.max_epochs=1")
    lower = ["trainer.max_epochs=2", f"resume={tmp_path / 'one'}", "optimizer.lr=1e-4"]
    run(options, tmp_path / "two", *lower)
    last = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(share * 1e-4, rel=0.05)


@pytest.mark.parametrize("how", ["start_from", "resume"])
def test_going_on_with_features_of_another_kind_is_refused(
    toy_overrides: list[str], trained: Path, tmp_path: Path, how: str
) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    content["captioning"]["provenance"]["node"] = "Mixed_7b"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="holds features with node = 'Mixed_7b'"):
        run(toy_overrides, tmp_path / "run", f"{how}={tmp_path / 'other.ckpt'}", "trainer.max_epochs=9")


def test_features_of_other_weights_are_refused(toy_overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights = 'random' but this run expects weights = 'IMAGENET1K_V1'"):
        run(toy_overrides, tmp_path, "features.extractor.weights=IMAGENET1K_V1")


@pytest.mark.parametrize(
    "objective", ["cross_entropy", "scheduled_sampling", "doubly_stochastic", "focused_attention"]
)
def test_hard_attention_is_refused_an_objective_that_can_not_teach_it(
    toy_overrides: list[str], tmp_path: Path, objective: str
) -> None:
    small = [o for o in toy_overrides if not o.startswith("model.")]
    with pytest.raises(InputError, match="choose objective=reinforce"):
        run(small, tmp_path, "model=show_attend_tell_hard", f"objective={objective}")


def test_self_critical_training_on_captions_is_refused(toy_overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give data.train_on=images"):
        run(toy_overrides, tmp_path, "objective=self_critical")


def test_self_critical_training_from_nothing_is_warned_of(
    toy_overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(
        toy_overrides,
        tmp_path,
        "objective=self_critical",
        "data.train_on=images",
        "trainer.limit_train_batches=1",
    )
    assert "give start_from=" in caplog.text


def test_an_objective_is_prepared_with_training_captions_only_and_given_the_epoch(
    toy_overrides: list[str], tmp_path: Path, toy_data: CaptionDataModule
) -> None:
    given: dict[str, Any] = {}

    class Recorder(CrossEntropy):
        def prepare(self, references: Any, vocabulary: Any) -> None:
            given.update(references=references, vocabulary=vocabulary)

        def begin_epoch(self, epoch: int) -> None:
            given.setdefault("epochs", []).append(epoch)

    module = build_module(compose_config("train", *toy_overrides, f"output_dir={tmp_path}"), toy_data)
    module.objective = Recorder()
    trainer = Trainer(
        max_epochs=2, limit_train_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=toy_data)
    assert given["references"] == {record.image_id: record.captions for record in toy_data.split("train")}
    assert given["vocabulary"] is module.vocabulary and given["epochs"] == [0, 1]


def test_a_resumed_run_inherits_the_best_epoch_so_far(
    toy_overrides: list[str], trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    [key] = [key for key in content["callbacks"] if key.startswith("BestCheckpoint")]
    content["callbacks"][key]["best_model_score"] = torch.tensor(1e6)
    old = tmp_path / "old" / "checkpoints"
    old.mkdir(parents=True)
    torch.save(content, old / "last.ckpt")
    shutil.copy(trained / "checkpoints" / "best.ckpt", old)
    run(toy_overrides, tmp_path / "more", "trainer.max_epochs=3", f"resume={tmp_path / 'old'}")
    best = tmp_path / "more" / "checkpoints" / "best.ckpt"
    assert best.read_bytes() == (trained / "checkpoints" / "best.ckpt").read_bytes()


def test_where_all_epochs_score_the_same_the_one_with_the_lowest_loss_is_best(
    toy_overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = ("data.eval_batch_size=1", "+trainer.limit_val_batches=1")  # CIDEr-D of a single image is 0
    run(toy_overrides, tmp_path, *alone, "trainer.max_epochs=3", "optimizer.lr=1e-3")
    summary = json.loads((tmp_path / "summary.json").read_text())
    losses = [epoch["nll"] for epoch in summary["epochs"]]
    assert len(losses) == 3 and {epoch["cider_d"] for epoch in summary["epochs"]} == {0.0}
    lowest = losses.index(min(losses))
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert lowest > 0 and best["epoch"] == lowest == summary["best"]["epoch"]
    assert caplog.text.count("there is one validation image, on which CIDEr-D is always 0") == 1


def test_resuming_what_has_ended_is_refused(toy_overrides: list[str], trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has trained 2 epochs and max_epochs is 2; give a larger"):
        run(toy_overrides, tmp_path, "trainer.max_epochs=2", f"resume={trained}")


def test_training_goes_on_without_the_pictures_it_would_draw_on(
    toy_overrides: list[str], toy_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = toy_root / "toy" / "images"
    images.rename(images.with_name("elsewhere"))
    try:
        run(toy_overrides, tmp_path, "logger=tensorboard", "num_samples=3")
    finally:
        images.with_name("elsewhere").rename(images)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert caplog.text.count("no attention picture of") == 1


def test_a_run_folder_used_again_holds_the_newer_run(
    toy_overrides: list[str], trained: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        run(toy_overrides, tmp_path, f"seed={seed}")
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["best.ckpt", "last.ckpt"]


def test_the_default_precision_optimizer_and_clipping_go_together(
    toy_overrides: list[str], tmp_path: Path
) -> None:
    """Lightning refuses a fused optimizer under mixed precision, unless the module clips by itself."""
    kept = [option for option in toy_overrides if not option.startswith("trainer.precision")]
    config = compose_config("train", *kept, "trainer.max_epochs=1", f"output_dir={tmp_path}")
    assert config.trainer.precision == "bf16-mixed" and config.optimizer.fused
    assert assemble(config).fit() is not None


def test_gradients_are_clipped_to_the_norm(toy_overrides: list[str], tmp_path: Path) -> None:
    norms: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            parts = [
                p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None
            ]
            norms.append(float(torch.stack(parts).norm()))
            return result

    config = compose_config(
        "train",
        *toy_overrides,
        "trainer.gradient_clip_val=0.01",
        "trainer.max_epochs=1",
        f"output_dir={tmp_path}",
    )
    datamodule = build_data(config)
    module = build_module(config, datamodule)
    module._optimizer = lambda parameters: Spy(parameters, lr=0.1)
    trainer = Trainer(
        max_epochs=1,
        gradient_clip_val=0.01,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=datamodule)
    assert norms and max(norms) == pytest.approx(0.01, rel=1e-3)


def test_any_decoding_option_captions_while_it_trains(toy_overrides: list[str], tmp_path: Path) -> None:
    """Rules of beam search are given as words and must be turned into ids here too."""
    config = compose_config("train", *toy_overrides, "decoding=beam", f"output_dir={tmp_path}")
    assert assemble(config).fit() is not None


def test_two_processes_share_the_batches_and_agree(toy_overrides: list[str], tmp_path: Path) -> None:
    options = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=run"]
    done = call("train", *toy_overrides, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["epochs"]) == 1 and summary["best"]["cider_d"] >= 0


def test_processes_take_different_batches_and_equally_many() -> None:
    ranks = [LengthBuckets([3] * 103, 10, seed=0, rank=rank, processes=2) for rank in (0, 1)]
    taken = [[index for batch in sampler for index in batch] for sampler in ranks]
    assert len(list(ranks[0])) == len(list(ranks[1])) == len(ranks[0]) == 5
    assert not set(taken[0]) & set(taken[1])


def test_float16_can_not_clip_a_fused_optimizer_and_says_so(toy_overrides: list[str]) -> None:
    config = compose_config("train", *toy_overrides, "output_dir=none")
    module = build_module(config, build_data(config))
    module._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))  # no GPU in tests
    fused = torch.optim.Adam(module.parameters(), fused=True)
    with pytest.raises(InputError, match="set optimizer.fused=false"):
        module.configure_gradient_clipping(fused, 5.0, None)
