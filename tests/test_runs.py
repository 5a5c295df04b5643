"""Runs as a whole: stopped and resumed inside epochs, signals, folders of their own, what only shows."""

import csv
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger

from captioning.cli.command import _new_folder, command
from captioning.cli.messages import input_error
from captioning.data import LengthBuckets
from captioning.errors import InputError
from captioning.training import AtomicCheckpointIO, Run, assemble
from captioning.training.callbacks import SampleCaptions
from captioning.training.checkpoint_io import parse_interval
from captioning.training.signals import StopRequest
from tests.conftest import compose_config
from tests.test_commands import ROOT, call


class At(Callback):
    """Does something once, at a hook and a step."""

    def __init__(self, hook: str, step: int, action: Callable[[], None]) -> None:
        self.step, self.action, self.is_done = step, action, False
        setattr(self, hook, self._act)

    def _act(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not self.is_done:
            self.is_done = True
            self.action()


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def prepare(options: list[str], folder: Path, *more: str, do: Callback | None = None) -> Run:
    run = assemble(compose_config("train", *options, f"output_dir={folder}", *more))
    if do:
        run.trainer.callbacks.insert(0, do)
    return run


def checkpoint_of(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def rows(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if value} for row in csv.DictReader(path.open())]


# Where files lay, what Lightning counts within a validation, and a score that is only shown.
UNEQUAL = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path", "best_k_models")
UNEQUAL += ("epoch_loop.val_loop.batch_progress", "current_score")


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if isinstance(other, torch.Tensor) and torch.equal(one, other) else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(one[key], other[key], f"{name}.{key}") for key in one if key not in UNEQUAL]
        return [found for pair in pairs for found in differences(*pair)]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for pair in zip(one, other, strict=True) for found in differences(*pair, name)]
    return [] if one == other else [name]


@pytest.fixture(scope="module")
def exact(toy_overrides: list[str]) -> list[str]:
    """Options under which everything that must be restored matters: dropout, a schedule, steps in the log."""
    return [
        *toy_overrides, "model.dropout=0.3", "scheduler=warmup_cosine", "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1", "optimizer.lr=0.01", "objective=scheduled_sampling", "objective.every=1",
        "keep_every_epoch=true",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(exact: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    prepare(exact, folder).fit()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "step", "options"),
    [
        ("on_train_batch_start", 3, []),
        ("on_train_batch_start", 10, ["data.num_workers=1"]),
        ("on_validation_batch_start", 8, []),  # the last batch of the epoch is trained
        ("on_train_batch_start", 15, ["trace_shapes=true"]),  # before the last validation
    ],
)
def test_a_run_stopped_inside_an_epoch_ends_as_one_that_was_not(
    exact: list[str], unbroken: Path, tmp_path: Path, hook: str, step: int, options: list[str]
) -> None:
    options = [*exact, *options]
    with pytest.raises(SystemExit) as stop:
        prepare(options, tmp_path / "run", do=At(hook, step, send(signal.SIGUSR1))).fit()
    assert stop.value.code == 128 + signal.SIGUSR1
    prepare(options, tmp_path / "run", "resume=auto").fit()
    for name in ("last.ckpt", "best.ckpt", "epoch01.ckpt"):
        found = differences(checkpoint_of(unbroken, name), checkpoint_of(tmp_path / "run", name))
        assert not [name for name in found if "num_workers" not in name]
    after = rows(tmp_path / "run" / "metrics.csv")
    whole = rows(unbroken / "metrics.csv")
    assert 0 < len(after) < len(whole) and whole[-len(after) :] == after
    before = rows(tmp_path / "run" / "metrics_1.csv")
    assert before == rows(unbroken / "metrics.csv")[: len(before)]
    assert (tmp_path / "run" / "summary.json").read_text() == (unbroken / "summary.json").read_text()


@pytest.mark.slow
def test_checkpoints_are_written_every_so_many_steps(
    exact: list[str], unbroken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    caplog.set_level(logging.INFO)
    # After steps 3, 6 and 8, the last of the epoch; then the epoch's own file; then after step 9.
    every = prepare(exact, tmp_path / "a", "checkpoint_every=3steps", do=At("on_train_batch_end", 11, crash))
    with pytest.raises(Crash):
        every.fit()
    content = checkpoint_of(tmp_path / "a")
    assert content["global_step"] == 9 and content["CaptionDataModule"]["batch"] == 1
    # Lightning would say so of each file.
    assert not [record for record in caplog.records if "weights_only" in record.getMessage()]
    prepare(exact, tmp_path / "b", f"resume={tmp_path / 'a'}").fit()
    assert not differences(checkpoint_of(unbroken), checkpoint_of(tmp_path / "b"))


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_goes_on_from_the_last_of_the_run_before(
    exact: list[str], unbroken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    unfinished = tmp_path / "run" / "checkpoints" / "last.ckpt.123.partial"
    unfinished.write_bytes(b"a kill left this")
    more = [*exact, "trainer.max_epochs=3"]
    with pytest.raises(Crash):
        prepare(more, tmp_path / "run", f"resume={unbroken}", do=At("on_train_batch_end", 18, crash)).fit()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt"]
    caplog.set_level(logging.INFO)
    run = prepare(more, tmp_path / "again", f"resume={tmp_path / 'run'}")
    assert run.resume == tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"going on from {run.resume}, after 2 epochs" in caplog.text
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(InputError, match="has no checkpoint to go on from, neither last.ckpt nor"):
        prepare(more, tmp_path / "again", f"resume={tmp_path / 'run'}")


def test_resuming_inside_an_epoch_with_other_batches_is_refused() -> None:
    one = LengthBuckets([3] * 100, 10, seed=0)
    one.go_on(2, 3, one.order())
    assert len(list(one)) == 7 and len(one) == 10
    one.set_epoch(3)
    assert len(list(one)) == 10
    together = LengthBuckets([3] * 100, 10, seed=0, images=[i // 5 for i in range(100)], per_image=5)
    before = {key: value for key, value in one.order().items() if key != "captions_per_image"}  # of old
    for order in (one.order(), before):
        with pytest.raises(InputError, match="shuffled with captions_per_image = 1 but this run has .* = 5"):
            together.go_on(2, 3, order)
    other = LengthBuckets([3] * 100, 5, seed=1)
    other.go_on(2, 0, one.order())  # between two epochs anything may change
    with pytest.raises(
        InputError, match="after batch 3, which was shuffled with batch_size = 10, seed = 0 but"
    ):
        other.go_on(2, 3, one.order())


@pytest.mark.parametrize(
    ("text", "interval"),
    [(None, (None, None)), ("30s", (30.0, None)), ("10m", (600.0, None)), ("2h", (7200.0, None))]
    + [("500steps", (None, 500)), ("1 step", (None, 1))],
)
def test_how_often_to_save_is_a_time_or_a_number_of_steps(text: str | None, interval: tuple) -> None:
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["10", "0m", "-1s", "m", "1.5h", "10 minutes", "1e9steps"])
def test_how_often_to_save_needs_a_unit(text: str) -> None:
    with pytest.raises(
        InputError, match=f"checkpoint_every={text} is not understood; give a time, such as 10m"
    ):
        parse_interval(text)


class TestSignals:
    def test_the_first_is_remembered_and_the_second_ends_the_process(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
        request = StopRequest()
        try:
            request.listen()
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal == signal.SIGINT and request.exit_status == 130
            with pytest.raises(SystemExit) as stop:
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.value.code == 143
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), before, strict=True):
                signal.signal(number, handler)

    def test_one_that_is_ignored_stays_so(self) -> None:
        handlers = {
            number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup, or a background job
            StopRequest().listen()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def test_outside_of_the_main_thread_nothing_is_installed(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=StopRequest().listen)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.slow
    def test_ctrl_c_saves_and_names_resume_only_where_something_was_saved(
        self, toy_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as stop:
            prepare(
                toy_overrides, tmp_path / "a", do=At("on_train_batch_start", 2, send(signal.SIGINT))
            ).fit()
        assert stop.value.code == 130 and checkpoint_of(tmp_path / "a")["global_step"] == 3
        assert f"stopped; go on with resume={tmp_path / 'a'}" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is handler

        def twice() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(SystemExit) as stop:
            prepare(toy_overrides, tmp_path / "b", do=At("on_train_batch_start", 0, twice)).fit()
        assert stop.value.code == 130 and not (tmp_path / "b" / "checkpoints" / "last.ckpt").exists()
        assert "stopped; no checkpoint was written yet" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_job_that_is_preempted_and_requeued_goes_on(self, exact: list[str], tmp_path: Path) -> None:
        """The command as a cluster runs it: the signal goes to loader processes too, then it starts again."""
        options = [*exact, "hydra.run.dir=job7", "resume=auto", "checkpoint_every=10m", "data.num_workers=1"]
        line = [sys.executable, "-m", "captioning.train", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [*line, "trainer.max_epochs=500"], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        ) as first:  # fmt: skip
            deadline = time.monotonic() + 400
            while not (tmp_path / "job7/checkpoints/epoch00.ckpt").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(first.pid, signal.SIGTERM)
            assert "stopped; go on with resume=" in first.communicate(timeout=100)[1]
        assert first.returncode == 143
        before = checkpoint_of(tmp_path / "job7")["global_step"]
        again = call("train", *options, f"trainer.max_epochs={before // 8 + 1}", cwd=tmp_path)
        assert again.returncode == 0 and f"going on from {tmp_path}/job7" in again.stdout, again.stderr
        assert checkpoint_of(tmp_path / "job7")["global_step"] == 8 * (before // 8 + 1) > before

    @pytest.mark.slow
    def test_weights_that_are_no_numbers_do_not_replace_a_checkpoint(
        self, toy_overrides: list[str], tmp_path: Path
    ) -> None:
        run = prepare(toy_overrides, tmp_path)
        module = run.module

        def spoil() -> None:
            next(module.parameters()).data.fill_(float("nan"))
            os.kill(os.getpid(), signal.SIGTERM)

        run.trainer.callbacks.insert(0, At("on_train_batch_end", 1, spoil))
        with pytest.raises(SystemExit):
            run.fit()
        assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


class TestResumeAuto:
    def test_begins_where_the_folder_holds_nothing_and_ends_where_all_is_done(
        self, exact: list[str], unbroken: Path, tmp_path: Path
    ) -> None:
        assert prepare(exact, tmp_path, "resume=auto").resume is None
        run = prepare(exact, unbroken, "resume=auto")
        assert run.resume == unbroken / "checkpoints" / "last.ckpt"
        before = (unbroken / "checkpoints" / "last.ckpt").read_bytes()
        assert run.fit() is not None  # requeued after its end: nothing to do, and no mistake
        assert (unbroken / "checkpoints" / "last.ckpt").read_bytes() == before
        assert (unbroken / "metrics.csv").is_file() and not (unbroken / "metrics_1.csv").exists()
        with pytest.raises(InputError, match="has trained 2 epochs and max_epochs is 1"):
            prepare(exact, unbroken, "resume=auto", "trainer.max_epochs=1")


class TestWhatOnlyShows:
    @pytest.mark.slow
    def test_it_never_ends_a_training_and_comes_after_the_checkpoint(
        self, toy_overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Attention pictures, sample captions, loggers and the progress bar fail in every way at once."""
        options = [
            *toy_overrides,
            "logger=tensorboard",
            "num_samples=3",
            "trace_shapes=true",
            "trainer.log_every_n_steps=1",
        ]
        config = compose_config("train", *options, f"output_dir={tmp_path}")
        run = _with_broken_parts(config)
        assert run.fit() is not None
        assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
        for part in (
            "SampleCaptions.on_train_end",
            "CSVLogger.log_metrics",
            "ProgressBar.on_train_batch_end",
        ):
            assert caplog.text.count(f"{part} failed (BrokenPipeError") == 1, part
        assert "the training goes on without it" in caplog.text

    @pytest.mark.slow
    def test_the_checkpoint_is_written_first(self, toy_overrides: list[str], tmp_path: Path) -> None:
        run = prepare(
            toy_overrides, tmp_path, "trainer.max_epochs=2", "keep_every_epoch=true", "num_samples=3"
        )
        there: list[list[str]] = []
        [samples] = [part for part in run.trainer.callbacks if isinstance(part, SampleCaptions)]
        folder = tmp_path / "checkpoints"
        samples._caption = lambda *_: there.append(sorted(path.name for path in folder.iterdir()))
        run.fit()
        assert there[0] == ["best.ckpt", "epoch00.ckpt", "last.ckpt"] and "epoch01.ckpt" in there[1]

    @pytest.mark.slow
    def test_captions_that_are_drawn_by_chance_change_nothing(
        self, toy_overrides: list[str], tmp_path: Path
    ) -> None:
        options = [
            *toy_overrides,
            "trainer.max_epochs=2",
            "model.dropout=0.3",
            "decoding=nucleus",
            "num_samples=3",
        ]
        prepare(options, tmp_path / "with").fit()
        without = prepare(options, tmp_path / "without")
        without.trainer.callbacks[:] = [
            c for c in without.trainer.callbacks if not isinstance(c, SampleCaptions)
        ]
        without.fit()
        assert not differences(checkpoint_of(tmp_path / "with"), checkpoint_of(tmp_path / "without"))


def _with_broken_parts(config: Any) -> Run:
    def broken(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("nobody reads this any more")

    patch = pytest.MonkeyPatch()
    with patch.context() as during:
        during.setattr(SampleCaptions, "_caption", broken)
        during.setattr(CSVLogger, "log_metrics", broken)
        during.setattr("lightning.pytorch.callbacks.RichProgressBar.on_train_batch_end", broken)
        run = assemble(config)
    assert any(isinstance(part, ProgressBar) for part in run.trainer.callbacks)
    for part in run.trainer.callbacks:
        if isinstance(part, SampleCaptions):
            part._caption = broken  # type: ignore[method-assign]
    return run


class TestFolders:
    def test_a_new_folder_is_one_that_no_other_run_has(self, tmp_path: Path) -> None:
        names = []
        for _ in range(3):
            _new_folder.cache_clear()
            names.append(Path(_new_folder(str(tmp_path / "runs" / "toy"))).name)
        assert names == ["toy", "toy_2", "toy_3"]
        assert (
            Path(_new_folder(str(tmp_path / "runs" / "toy"))).name == "toy_3"
        )  # the runs of a sweep share it

    def test_runs_that_start_at_once_share_no_folder(self, tmp_path: Path) -> None:
        """Processes: each has its own memory of what it made."""
        found = []
        for _ in range(20):
            read, write = os.pipe()
            if os.fork() == 0:
                try:
                    os.write(write, _new_folder.__wrapped__(str(tmp_path / "run")).encode())
                finally:
                    os._exit(0)
            os.close(write)
            found.append(read)
        names = {os.read(read, 1000).decode() for read in found}
        assert len(names) == 20 and all(Path(name).is_dir() for name in names)

    def test_a_place_where_none_can_be_made_is_left_to_hydra(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        _new_folder.cache_clear()
        assert _new_folder(f"{tmp_path}/file/run") == f"{tmp_path}/file/run"

    @pytest.mark.parametrize("name", ["train", "extract", "evaluate", "baseline"])
    @pytest.mark.slow
    def test_every_command_that_has_a_run_folder_makes_it_exclusively(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        made = [run_command(name, [], monkeypatch) for _ in range(2)]
        assert made[0] != made[1] and {path.parent for path in made} == {made[0].parent}
        given = [run_command(name, ["hydra.run.dir=mine"], monkeypatch) for _ in range(2)]
        assert given == [tmp_path / "mine"] * 2  # a folder that the user names is used again
        assert set(tmp_path.glob("runs/*/*")) == set(made)  # no empty ones beside them

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("file/run", "a file stands where a folder is needed"),
            ("x" * 300, "the file name is too long"),
        ],
    )
    def test_a_run_folder_that_can_not_be_made_is_one_sentence(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        place: str,
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit) as stop:
            run_command("train", [f"hydra.run.dir={place}"], monkeypatch)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def run_command(name: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run a command of that config in this process; return the folder it was given."""
    found: list[Path] = []

    @command(name)
    def main(config: Any) -> None:
        found.append(Path(HydraConfig.get().runtime.output_dir))
        if name == "evaluate" and "hydra.run.dir=mine" not in options:
            assert Path(config.output_dir).absolute() == found[0]

    handlers, root = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}, logging.getLogger()
    loggers, level = list(root.handlers), root.level
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr("sys.argv", [name, *options])
    try:
        main()
    finally:
        GlobalHydra.instance().clear()
        root.handlers[:] = loggers  # Hydra configures logging anew
        root.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return found[0]


@pytest.mark.parametrize(
    "name", ["EROFS", "EACCES", "EPERM", "ENAMETOOLONG", "EISDIR", "ENOTDIR", "EEXIST", "EIO", "EDQUOT"]
)
def test_a_checkpoint_that_can_not_be_written_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(errno, name)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), "checkpoints/last.ckpt")

    monkeypatch.setattr("captioning.files.os.replace", fail)
    with pytest.raises(OSError) as raised:
        AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    message = str(input_error(raised.value))
    assert message.startswith("checkpoints/last.ckpt: ") and "Errno" not in message
    assert not list(tmp_path.iterdir())
