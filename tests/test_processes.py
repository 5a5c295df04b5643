"""Several processes that train or extract together: from nothing, to the same results as one, and stopped."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from captioning import processes
from captioning.data.samplers import SharedBatches
from captioning.errors import InputError
from captioning.metrics.pointing import Pointing, pool_pointing
from captioning.processes import (
    Process,
    first_process_first,
    from_first,
    is_first,
    shield_worker,
    this_process,
)
from captioning.training import assemble
from captioning.training.attention_statistics import AttentionStatistics
from captioning.training.validation import Captions, Loss, Validation
from tests.conftest import compose_config
from tests.test_commands import ROOT, call
from tests.test_runs import checkpoint_of, differences

WORD_COUNTS = {"train": 96, "val": 20, "test": 8}
OPTIONS = [
    "data_root=data", f"data.reader.scenes={json.dumps(WORD_COUNTS).replace(chr(34), '')}", "prepare=true",
    "logger=csv", "trainer.precision=32", "trainer.max_epochs=3", "data.batch_size=8", "data.eval_batch_size=7",
    "model.encoder.output_dim=8", "model.attention_dim=8", "model.embedding_dim=8", "model.hidden_dim=16",
    "model.dropout=0.3", "optimizer.lr=0.01", "features.run.num_workers=0", "trainer.log_every_n_steps=1",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


def start(
    command: str, *options: object, cwd: Path, torchrun: bool = False, **environment: str
) -> subprocess.Popen:
    """Start a command by itself, or twice by torchrun."""
    line = [*TORCHRUN, str(free_port())] if torchrun else [sys.executable]
    line += ["-m", f"captioning.{command}", *map(str, options)]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment,
    }  # fmt: skip
    return subprocess.Popen(
        line, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    return output


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def history(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())["epochs"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which torchrun has trained, in two processes, from nothing: `log` and `runs`, `data`."""
    folder = tmp_path_factory.mktemp("world")
    output = finish(start("train", "trainer=ddp", *OPTIONS, cwd=folder, torchrun=True))
    (folder / "log").write_text(output)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    [folder] = (world / "runs" / "toy").iterdir()
    return folder


@pytest.mark.slow
class TestTraining:
    def test_torchrun_prepares_once_and_makes_one_run_that_reports_once(
        self, world: Path, trained: Path
    ) -> None:
        output = (world / "log").read_text()
        for line in ("drawing 124 toy scenes", "124 extracted", "epoch 0: train/loss", "epoch 2: train/loss"):
            assert output.count(line) == 1, output
        assert len(history(trained)) == 3 and (trained / "checkpoints" / "best.ckpt").is_file()

    def test_lightnings_own_launcher_trains_the_same(self, world: Path, trained: Path) -> None:
        done = call("train", "trainer=ddp", "trainer.devices=2", *OPTIONS, "hydra.run.dir=own", cwd=world)
        assert done.returncode == 0, done.stderr
        assert not differences(checkpoint_of(trained), checkpoint_of(world / "own"))
        assert rows(trained / "metrics.csv") == rows(world / "own" / "metrics.csv")

    def test_the_processes_draw_different_numbers(self, trained: Path) -> None:
        metadata = checkpoint_of(trained)["captioning"]
        [other] = metadata["other_processes"]
        assert not torch.equal(metadata["random_state"], other["random_state"])

    def test_validation_and_the_means_of_training_equal_those_of_one_process(
        self, world: Path, trained: Path
    ) -> None:
        """With a rate of 0 the weights stay those of the start."""
        options = [
            *OPTIONS,
            f"start_from={trained}",
            "optimizer.lr=0",
            "model.dropout=0",
            "trainer.max_epochs=1",
        ]
        for name, more in (("one", []), ("two", ["trainer=ddp", "trainer.devices=2"])):
            done = call("train", *options, *more, f"hydra.run.dir={name}", cwd=world)
            assert done.returncode == 0, done.stderr
        assert history(world / "one") == history(world / "two")
        assert history(world / "one")[0]["cider_d"] > 0

        def logged(name: str, metric: str) -> list[float]:
            return [float(row[metric]) for row in rows(world / name / "metrics.csv") if row[metric]]

        assert logged("one", "train/loss_epoch") == pytest.approx(logged("two", "train/loss_epoch"), rel=1e-6)
        first, both = logged("one", "train/loss_step")[:2], logged("two", "train/loss_step")[0]
        assert min(first) < both < max(first)  # the mean of the first two batches

    def test_processes_that_srun_starts_find_each_other(
        self, world: Path, trained: Path, tmp_path: Path
    ) -> None:
        """As far as the environment says it: here the first process serves the store, there is no agent."""
        job = {
            "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "captions", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        }  # fmt: skip
        options = ["trainer=ddp", "trainer.devices=2", *OPTIONS]
        tasks = [
            start("train", *options, cwd=tmp_path, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank)
            for rank in ("0", "1")
        ]
        outputs = [finish(task) for task in tasks]
        assert "epoch 2: train/loss" in outputs[0] and "epoch" not in outputs[1]
        [folder] = (tmp_path / "runs" / "toy").iterdir()
        assert not differences(checkpoint_of(trained), checkpoint_of(folder))

    def test_a_signal_to_one_process_stops_all_and_they_go_on_as_if_never_stopped(
        self, world: Path, trained: Path
    ) -> None:
        options = [
            "trainer=ddp",
            "trainer.devices=2",
            *OPTIONS,
            "hydra.run.dir=stopped",
            "checkpoint_every=3steps",
        ]
        process = start("train", *options, "data.num_workers=1", cwd=world)
        wait_for(world / "stopped" / "checkpoints" / "best.ckpt", process)
        process.send_signal(signal.SIGUSR1)
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 128 + signal.SIGUSR1, output
        assert f"stopped; go on with resume={world / 'stopped'}" in output and "Traceback" not in output
        output = finish(start("train", *options, "resume=auto", cwd=world, torchrun=True))
        found = differences(checkpoint_of(trained), checkpoint_of(world / "stopped"))
        assert not [name for name in found if "num_workers" not in name]

    def test_a_stop_of_torchrun_saves(self, world: Path) -> None:
        options = ["trainer=ddp", *OPTIONS, "hydra.run.dir=terminated", "trainer.max_epochs=500"]
        process = start("train", *options, cwd=world, torchrun=True)
        wait_for(world / "terminated" / "checkpoints" / "best.ckpt", process)
        process.terminate()
        output = process.communicate(timeout=200)[0]
        assert "stopped; go on with resume=" in output, output
        assert 30 <= checkpoint_of(world / "terminated")["global_step"] < 30 * 500

    def test_another_number_of_processes_is_refused_where_it_would_train_something_else(
        self, world: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(world)
        options = [*OPTIONS, "trainer.max_epochs=4", "output_dir=alone"]
        inside = world / "stopped" / "checkpoints" / "inside.ckpt"
        content = checkpoint_of(trained)
        content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = 2
        content["CaptionDataModule"]["batch"], content["CaptionDataModule"]["epoch"] = 7, 2
        inside.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, inside)
        with pytest.raises(InputError, match=r"was trained by 2 process\(es\) and this run has 1"):
            assemble(compose_config("train", *options, f"resume={inside}")).fit()
        with pytest.raises(InputError, match=r"was trained by 2 process\(es\) .* its scheduler counts steps"):
            assemble(compose_config("train", *options, f"resume={trained}")).fit()

    def test_after_a_whole_epoch_without_a_schedule_another_number_of_processes_goes_on(
        self, world: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(world)
        options = [*OPTIONS, "scheduler=none"]
        done = call("train", "trainer=ddp", "trainer.devices=2", *options, "hydra.run.dir=steady", cwd=world)
        assert done.returncode == 0, done.stderr
        resumed = [*options, "trainer.max_epochs=4", "output_dir=alone", "resume=steady"]
        assemble(compose_config("train", *resumed)).fit()
        assert len(history(Path("alone"))) == 4

    def test_a_trainer_of_fewer_processes_than_were_started_is_refused(
        self, toy_overrides: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_PROCID", "1")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        with pytest.raises(
            InputError, match="2 processes were started but the trainer is of 1; give trainer=ddp"
        ):
            assemble(compose_config("train", *toy_overrides, "output_dir=none"))


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 400
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), process.communicate(timeout=10)[0] if process.poll() is not None else "too slow"


class TestWhoIsFirst:
    @pytest.mark.parametrize(
        ("environment", "process", "first"),
        [
            ({}, (0, 1), True),
            ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, (3, 4), False),
            ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2), False),
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 1), True),  # a batch script, which runs once
            ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (0, 1), False),  # started by Lightning's own launcher
        ],
    )
    def test_the_environment_says_it(
        self, environment: dict[str, str], process: tuple, first: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert this_process() == process and is_first() is first

    def test_all_get_what_the_first_makes_and_it_goes_first(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The second process is a thread that the patched environment gives another number."""
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        monkeypatch.setattr(
            processes, "this_process", lambda: Process(int(threading.current_thread().name), 2)
        )
        order: list[str] = []

        def work() -> None:
            name = threading.current_thread().name
            for job in ("one", "two"):  # as in a multirun
                with first_process_first("data"):
                    time.sleep(0.3 * (name == "0"))  # the second process would be faster
                    order.append(f"{name} {job}")
            order.append(from_first("folder", lambda: f"made by {name}"))

        threads = [threading.Thread(target=work, name=name) for name in ("0", "1")]
        processes._store.cache_clear()
        try:
            threads[0].start()  # it serves the store
            while processes._store.cache_info().currsize == 0:
                time.sleep(0.01)
            threads[1].start()
            for thread in threads:
                thread.join(timeout=60)
        finally:
            processes._store.cache_clear()
        for job in ("one", "two"):
            assert order.index(f"0 {job}") < order.index(f"1 {job}")
        assert order.count("made by 0") == 2

    def test_processes_that_can_not_find_each_other_say_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_PROCID", "1")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        with pytest.raises(
            InputError, match="MASTER_ADDR and MASTER_PORT are not set, by which they find each"
        ):
            from_first("folder", str)

    def test_a_port_that_is_taken_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("MASTER_PORT", str(port))
            processes._store.cache_clear()
            with pytest.raises(InputError, match=rf"can't meet the others at 127.0.0.1:{port} .*free port"):
                from_first("folder", str)

    def test_one_whose_first_has_ended_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Gone:
            def check(self, keys: list[str]) -> bool:
                raise RuntimeError("Connection reset by peer")

        monkeypatch.setattr(processes, "this_process", lambda: Process(1, 2))
        monkeypatch.setattr(processes, "_store", Gone)
        with pytest.raises(InputError, match=r"process 1 waited for the first one \(data\), which has ended"):
            from_first("data", str)


class TestShares:
    @pytest.mark.parametrize("num_items", [1, 10, 11, 24])
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_together_they_are_the_batches_of_one_and_equally_many(self, num_items: int, size: int) -> None:
        whole = list(SharedBatches(range(num_items), 4))
        shares = [SharedBatches(range(num_items), 4, rank=rank, processes=size) for rank in range(size)]
        assert len({len(share) for share in shares}) == 1
        dealt = {
            number: batch for share in shares for number, batch in zip(share.numbers, share, strict=True)
        }
        assert [dealt[number] for number in range(len(whole))] == whole

    def test_what_two_processes_found_is_what_one_finds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where the second process gets the first batch again, as three do not go round."""
        losses = [Loss(0.1, 3), Loss(0.2, 7), Loss(0.7, 1)]
        found = [
            Captions(
                {str(i): f"text {i}"},
                {str(i): [f"reference {i}"]},
                AttentionStatistics(0.5, 0.1 * i, 2, 1),
                Pointing(i, 2),
            )
            for i in range(3)
        ]
        parts = [Validation(), Validation()]
        for part, numbers in zip(parts, ((0, 2), (1, 0)), strict=True):
            for number in numbers:
                part.losses[number], part.captions[number] = losses[number], found[number]
        one = Validation()
        one.losses, one.captions = dict(enumerate(losses)), dict(enumerate(found))
        both = [(part.losses, part.captions) for part in parts]
        monkeypatch.setattr("captioning.training.validation.gather", lambda _: both)
        whole = parts[0].gathered()
        assert whole.nll == one.nll == (0.1 * 3 + 0.2 * 7 + 0.7) / 11
        assert list(whole.candidates.items()) == list(one.candidates.items())
        assert whole.references == one.references and whole.attention == one.attention
        assert pool_pointing(whole.pointing) == Pointing(3, 6)


class Slow(torch.utils.data.Dataset):
    """Items that say in which process they were made, slowly enough to be interrupted."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return os.getpid()


@pytest.fixture(params=["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def loader(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Of a process that is forked, or asked of a server that forks for all (Python 3.14's default)."""
    options = {"num_workers": 1, "multiprocessing_context": request.param}
    yield iter(DataLoader(Slow(), **options, worker_init_fn=shield_worker))


class TestLoaderProcesses:
    @pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
    def test_signals_to_a_whole_job_do_not_end_them(self, loader: Any, name: str) -> None:
        worker = int(next(loader))
        # From a process that is not the parent.
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)
        assert [int(item) for item in loader] == [worker] * 19

    def test_their_parent_ends_them(self, loader: Any) -> None:
        worker = int(next(loader))
        os.kill(worker, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
        else:
            assert not Path(f"/proc/{worker}").exists()
