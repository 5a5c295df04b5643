"""The commands as a user types them: in processes of their own, with mistakes."""

import csv
import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image

from captioning.caption import main as caption_command
from captioning.evaluation import CaptionFile, picture_paths
from captioning.predictor import decoding_options
from tests.test_predictor import photograph, write_run

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def call(command: str, *options: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", f"captioning.{command}", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture(scope="module")
def run_folder(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run made by the command from a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = call("train", *toy_overrides, "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_training_leaves_a_run_folder_that_tells_everything(run_folder: Path) -> None:
    assert (run_folder / ".hydra" / "config.yaml").is_file() and (run_folder / "metrics.csv").is_file()
    assert (run_folder / "checkpoints" / "best.ckpt").is_file()


def test_training_prints_sample_captions_and_scores(toy_overrides: list[str], tmp_path: Path) -> None:
    done = call("train", *toy_overrides, "num_samples=3", "hydra.run.dir=run", cwd=tmp_path)
    assert (
        done.stdout.count("train ") >= 3 and "val/cider_d" in done.stdout and "Traceback" not in done.stderr
    )


class TestCaption:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_run(tmp_path_factory.mktemp("runs") / "run")

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("photographs")
        for number in range(5):
            photograph(number).save(folder / f"{number}.jpg")
        return folder

    @pytest.fixture
    def caption(
        self, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
        """The command, in this process: a start takes seconds."""
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level

        def call_caption(*options: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
            names = [option for option in map(str, options) if option.startswith("checkpoint=")]
            line = [*([] if names else [f"checkpoint={run}"]), *map(str, options)]
            monkeypatch.setattr(sys, "argv", ["caption", *line])
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            capfd.readouterr()
            try:
                caption_command()
                status: int | str | None = 0
            except SystemExit as error:
                status = error.code
            return subprocess.CompletedProcess(line, int(status or 0), *capfd.readouterr())

        yield call_caption
        root.handlers[:] = handlers
        root.setLevel(level)

    def test_a_folder_a_pattern_and_a_list_are_captioned(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        images = sorted(folder.iterdir())
        for wanted, count in ((folder, 5), (f"{folder}/*3.jpg", 1), (f"[{images[0]},{images[1]}]", 2)):
            done = caption(f"image={wanted}", f"output={tmp_path / 'c.jsonl'}", "batch_size=2")
            assert done.returncode == 0 and len(done.stdout.splitlines()) == count, done.stderr
        lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
        assert [line["image"] for line in lines] == [str(image) for image in images[:2]]
        assert all(line["log_prob"] < 0 for line in lines)

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
    def test_a_list_of_names_comes_on_standard_input(
        self, caption: Callable, folder: Path, end: bytes
    ) -> None:
        names = [str(folder / "3.jpg").encode(), str(folder / "1.jpg").encode()]
        done = caption("image=-", stdin=end.join([*names, b""]))
        assert done.returncode == 0, done.stderr
        assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [n.decode() for n in names]
        assert "found no file name on standard input" in caption("image=-", stdin=end).stderr

    def test_twins_as_an_ensemble_say_what_the_twin_says(
        self, run_folder: Path, caption: Callable, toy_root: Path, tmp_path: Path
    ) -> None:
        image = next((toy_root / "toy" / "images").glob("test_*.jpg"))
        said = [
            caption(f"checkpoint={c}", f"image={image}").stdout
            for c in (run_folder, f"[{run_folder},{run_folder}]")
        ]
        assert said[0] and said[0] == said[1]
        options = [
            f"checkpoint=[{run_folder},{run_folder}]",
            "decoding=beam",
            "resamples=10",
            "output_dir=scores",
        ]
        done = call("evaluate", *options, cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / "scores" / "scores.json").is_file(), done.stderr

    def test_every_hypothesis_is_printed_and_written(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        image = folder / "0.jpg"
        done = caption(f"image={image}", "decoding.num_best=3", f"output={tmp_path / 'out.jsonl'}")
        assert done.returncode == 0, done.stderr
        said = json.loads((tmp_path / "out.jsonl").read_text())
        texts = [said["caption"], *(other["caption"] for other in said["alternatives"])]
        assert done.stdout.splitlines() == [f"{image}: {texts[0]}", f"    {texts[1]}", f"    {texts[2]}"]
        assert len(set(texts)) == 3

    def test_the_output_has_a_line_a_picture_in_each_format(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        for name in ("c.jsonl", "c.csv", "c.json"):
            assert caption(f"image={folder}", f"output={tmp_path / name}").returncode == 0
        records = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
        expected = [record["caption"] for record in records]
        with (tmp_path / "c.csv").open(newline="") as file:
            assert [row["caption"] for row in csv.DictReader(file)] == expected
        results = json.loads((tmp_path / "c.json").read_text())
        assert [entry["caption"] for entry in results] == expected and results[2]["image_id"] == 2
        assert sorted(os.listdir(tmp_path)) == ["c.csv", "c.json", "c.jsonl"]

    def test_what_goes_to_standard_output_is_the_format_alone(self, caption: Callable, folder: Path) -> None:
        for name in ("-", "/dev/stdout"):
            done = caption(f"image={folder}", f"output={name}")
            assert len([json.loads(line) for line in done.stdout.splitlines()]) == 5, done.stderr

    def test_two_pictures_of_one_id_are_refused_before_the_model_is_loaded(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        twins = f"image=[{folder / '0.jpg'},{folder / '0.jpg'}]"
        done = caption("checkpoint=nowhere", twins, f"output={tmp_path / 'results.json'}")
        assert done.returncode == 2 and "two pictures have the id 0" in done.stderr
        assert not os.listdir(tmp_path)

    def test_two_commands_do_not_write_one_file(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        with CaptionFile(tmp_path / "c.csv"):
            done = caption("checkpoint=nowhere", f"image={folder}", f"output={tmp_path / 'c.csv'}")
        assert done.returncode == 2 and "is being written by another command" in done.stderr

    def test_a_full_device_ends_the_command_with_a_sentence(self, caption: Callable, folder: Path) -> None:
        done = caption(f"image={folder}", "output=/dev/full")
        assert done.returncode == 2 and "error: output=/dev/full cannot be written (No space" in done.stderr
        assert stat.S_ISCHR(os.stat("/dev/full").st_mode)

    def test_names_and_words_never_reach_the_terminal_raw(self, caption: Callable, tmp_path: Path) -> None:
        names = [b"caf\xe9.png", b"red\x1b[31m.png", b"two\nlines.png", "\u202egnp.png".encode()]
        for name in names:
            photograph().save(tmp_path / os.fsdecode(name))
        (tmp_path / os.fsdecode(b"bad\x1b[31m\xe9.png")).write_bytes(b"nonsense")
        (tmp_path / os.fsdecode(b"clip\x9b\xff.mp4")).write_bytes(b"\0\0\0\x20ftypisom")
        for listed in (f"image={tmp_path}", "image=-"):
            done = caption(
                listed,
                f"output={tmp_path / 'c.jsonl'}",
                f"picture={tmp_path / 'pictures'}/" if listed == "image=-" else "picture=null",
                "decoding.max_words=2",
                stdin=b"\0".join(bytes(tmp_path / os.fsdecode(name)) for name in names) + b"\0",
            )
            assert done.returncode == (listed != "image=-"), done.stderr  # the list has no bad one
            shown = "".join((done.stdout + done.stderr).split("\n"))
            assert shown.isprintable() and "caf\\xe9.png: " in done.stdout
            written = [json.loads(line)["image"] for line in (tmp_path / "c.jsonl").read_text().splitlines()]
            assert {os.fsencode(Path(name).name) for name in written} == set(names)
        assert len(os.listdir(tmp_path / "pictures")) == 4

    def test_samples_are_those_of_the_seed(self, caption: Callable, folder: Path) -> None:
        options = [f"image={folder / '0.jpg'}", "decoding=nucleus", "decoding.num_samples=4"]
        said = [caption(*options, f"seed={seed}").stdout for seed in (1, 1, 2)]
        assert said[0] == said[1] != said[2] and said[0]

    def test_required_and_first_words_are_given_as_words(self, caption: Callable, folder: Path) -> None:
        options = [f"image={folder / '0.jpg'}", "decoding=beam"]
        done = caption(*options, "decoding.required=[yellow]", "decoding.prefix=there is")
        assert ": there is" in done.stdout and "yellow" in done.stdout, done.stderr
        assert "do not include 'giraffe'" in caption(*options, "decoding.required=[giraffe]").stderr

    def test_the_decoder_of_a_portable_file_is_used_unless_another_is_named(
        self, caption: Callable, run: Path, folder: Path, tmp_path: Path
    ) -> None:
        content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        content["captioning"]["decoding"] = {**decoding_options("beam"), "num_best": 2, "max_words": 2}
        content["captioning"]["card"] = {}
        torch.save(content, tmp_path / "x.captioner")
        options = [f"checkpoint={tmp_path / 'x.captioner'}", f"image={folder / '0.jpg'}"]
        assert len(caption(*options).stdout.splitlines()) == 2
        assert len(caption(*options, "decoding=greedy").stdout.splitlines()) == 1
        assert len(caption(*options, "decoding.num_best=3").stdout.splitlines()) == 3

    def test_the_picture_shows_the_image_and_each_word(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        done = caption(f"image={folder / '0.jpg'}", f"picture={tmp_path / 'a.png'}")
        assert done.returncode == 0, done.stderr
        assert Image.open(tmp_path / "a.png").width > 800

    def test_pictures_of_the_same_name_stay_apart(self, tmp_path: Path) -> None:
        paths = [Path("a/1.jpg"), Path("b/1.jpg"), Path("c/a/1.jpg"), Path("b/2.jpg")]
        names = picture_paths(str(tmp_path / "new"), paths)
        assert [name.name for name in names.values()] == ["1.png", "b_1.png", "a_1.png", "2.png"]
        assert (tmp_path / "new").is_dir()
        same = [Path(f"a/{name}.jpg") for name in ("dog", "Dog", "DOG")]  # one file on some file systems
        assert [name.name for name in picture_paths(str(tmp_path), same).values()] == [
            "dog.png", "a_Dog.png", "DOG_2.png",
        ]  # fmt: skip
        many = [
            Path(f"{number}/x/1.jpg") for number in range(20_000)
        ]  # minutes, if each looked at all others
        assert len(set(picture_paths(str(tmp_path), many).values())) == 20_000
        [alone] = picture_paths(f"{tmp_path}/folder/", paths[:1]).values()
        assert alone == tmp_path / "folder" / "1.png"

    def test_one_bad_file_is_reported_and_skipped(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"")
        (tmp_path / "clip.jpg").write_bytes(b"\0\0\0\x20ftypisom")
        (tmp_path / "page.jpg").write_bytes(b"%PDF-1.7")
        bad = ",".join(str(tmp_path / name) for name in ("bad.jpg", "clip.jpg", "page.jpg", "gone.jpg"))
        done = caption(f"image=[{bad},{folder / '0.jpg'}]", f"output={tmp_path / 'c.jsonl'}")
        assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
        for message in (
            "bad.jpg: the file is empty",
            "skipped {}: this is a video; save one frame".format(tmp_path / "clip.jpg"),
            "page.jpg: this is a PDF document; save the page",
            "gone.jpg: no such file",
            "4 of 5 pictures could not be read",
        ):
            assert message in done.stderr
        before = (tmp_path / "c.jsonl").read_text()
        assert len(before.splitlines()) == 1, "what could be captioned is in the file"
        again = caption(f"image={tmp_path / 'bad.jpg'}", f"output={tmp_path / 'c.jsonl'}")
        assert again.returncode == 1 and (tmp_path / "c.jsonl").read_text() == before

    def test_skipping_bad_pictures_can_be_asked_for(
        self, caption: Callable, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"")
        both = f"image=[{tmp_path / 'bad.jpg'},{folder / '0.jpg'}]"
        assert caption(both, "on_error=skip").returncode == 0
        assert caption(f"image={tmp_path / 'bad.jpg'}", "on_error=skip").returncode == 1
        assert "it is fail or skip" in caption(both, "on_error=ignore").stderr

    def test_other_files_of_a_folder_are_named_and_counted(self, caption: Callable, tmp_path: Path) -> None:
        photograph().save(tmp_path / "photograph.avif")
        photograph().save(tmp_path / "no suffix", "JPEG")
        (tmp_path / "notes.txt").write_text("notes")
        done = caption(f"image={tmp_path}")
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
        assert "skipped 1 file that is not in a picture format that Pillow reads: notes.txt" in done.stderr

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["checkpoint=none.ckpt", "image=a.jpg"], "there is no checkpoint none.ckpt"),
            (["image=/nowhere/*.jpg"], "no file matches /nowhere/*.jpg"),
            (["image=EMPTY"], "holds no picture"),
            (["image=https://example.org/dog.jpg"], "is a URL; download it first"),
            (["image=a.jpg", "decoding=beem"], "there is no decoding=beem; did you mean beam?"),
            (["image=a.jpg,b.jpg"], "image has several values; give a list, 'image=[a.jpg,b.jpg]', or -m"),
            (["checkpoint=a.ckpt"], "error: needed, and not given: image=…"),
            (["image=a.jpg", "picture=a.xyz"], "picture=a.xyz must end in one of .png"),
            (["image=[a.jpg,b.jpg]", "picture=a.png"], "names one file for 2 images; give a folder"),
            (["image=a.jpg", "output=EMPTY"], "is a folder; give"),
            (["image=a.jpg", "output=a.xlsx"], "output=a.xlsx must end in .jsonl, .csv or .json"),
            (["image=a.jpg", "batch_size=0"], "batch_size=0 must be a whole number from 1"),
            (["image=a.jpg", "picturre=x.png"], "there is no picturre; did you mean picture?"),
        ],
    )
    def test_mistakes_are_answered_in_a_sentence(
        self, caption: Callable, tmp_path: Path, options: list[str], message: str
    ) -> None:
        done = caption(*[option.replace("EMPTY", str(tmp_path)) for option in options])
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr

    def test_a_reader_that_leaves_ends_the_command_quietly(self, run: Path, folder: Path) -> None:
        line = [sys.executable, "-m", "captioning.caption", f"checkpoint={run}", f"image={folder}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


def test_only_coco_is_downloaded() -> None:
    done = call("extract", "data=flickr8k", "download=true")
    assert done.returncode == 2 and "download=true fetches COCO 2014 (19 GB), but the data are" in done.stderr


def test_an_experiment_that_needs_an_option_says_which() -> None:
    done = call("train", "experiment=mine")
    assert done.returncode == 2 and "error: needed, and not given: data.reader.file=…" in done.stderr
    assert "Traceback" not in done.stderr


class TestTrain:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["prepare=false", "features.path=gone.h5"],
                "there is no feature file gone.h5; make it with python -m captioning.extract",
            ),
            (["experiment=coco30k"], "no annotation file"),
            (["resume=nowhere"], "there is no checkpoint nowhere"),
            (["data.batch_size=0"], "data.batch_size=0 and eval_batch_size=64 must be"),
            (["data.vocabulary_size=3"], "vocabulary size 3 leaves no room"),
            (["model.dropout=2"], "can't be built as given: dropout probability"),
            (["experiment=coco3k"], "there is no experiment=coco3k; did you mean coco30k?"),
            (["seed=abc"], "seed=abc must be a whole number from 0"),
            (["max_epochs=2.5"], "max_epochs=2.5 must be a whole number"),
            (["optimizer.lr=fast"], "optimizer= and scheduler= can't be built as given"),
            (["optimizer.lr=-1"], "can't be built as given: Invalid learning rate: -1"),
            (
                ["optimizer.learning_rate=1"],
                "there is no optimizer.learning_rate; did you mean optimizer.lr?",
            ),
            (
                ["features=resnet101", "prepare=false", "features.path=TOY"],
                "architecture = 'inception_v3' but this run expects architecture = 'resnet101'",
            ),
        ],
    )
    def test_mistakes_are_answered_in_a_sentence(
        self, toy_overrides: list[str], toy_root: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        toy_features = next((toy_root / "features").glob("*.h5"))
        options = [option.replace("TOY", str(toy_features)) for option in options]
        done = call(
            "train",
            *[o for o in toy_overrides if "reader" not in o or "coco30k" not in options[0]],
            *options,
            cwd=tmp_path,
        )
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, (
            done.stderr[-2000:]
        )

    def test_killed_in_the_middle_it_resumes(self, toy_overrides: list[str], tmp_path: Path) -> None:
        line = [
            sys.executable,
            "-m",
            "captioning.train",
            *toy_overrides,
            "hydra.run.dir=run",
            "trainer.max_epochs=500",
            "keep_every_epoch=true",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.time() + 120
        while not (tmp_path / "run" / "checkpoints" / "epoch01.ckpt").exists() and time.time() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        reached = len(list((tmp_path / "run" / "checkpoints").glob("epoch*.ckpt")))
        done = call(
            "train",
            *toy_overrides,
            "hydra.run.dir=again",
            "resume=run",
            f"trainer.max_epochs={reached + 2}",
            "keep_every_epoch=true",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "again" / "checkpoints" / f"epoch{reached + 1:02d}.ckpt").exists()
        assert not (tmp_path / "again" / "checkpoints" / "epoch00.ckpt").exists()


class TestExtract:
    def options(self, toy_overrides: list[str], path: Path) -> list[str]:
        return [*toy_overrides, f"features.path={path}", "features.run.num_workers=0"]

    def test_extract_verify_damage_repair(self, toy_overrides: list[str], tmp_path: Path) -> None:
        options = self.options(toy_overrides, tmp_path / "f.h5")
        first = call("extract", *options, cwd=tmp_path)
        assert first.returncode == 0 and "40 extracted" in first.stdout, first.stderr
        assert call("extract", *options, "verify=true", cwd=tmp_path).returncode == 0
        content = bytearray((tmp_path / "f.h5").read_bytes())
        with h5py.File(tmp_path / "f.h5") as file:
            content[file["features"].id.get_chunk_info(3).byte_offset] ^= 0xFF
        (tmp_path / "f.h5").write_bytes(content)
        found = call("extract", *options, "verify=true", cwd=tmp_path)
        assert found.returncode == 1 and "corrupt: image" in found.stdout and "repair=true" in found.stdout
        assert call("extract", *options, "repair=true", cwd=tmp_path).returncode == 0
        assert call("extract", *options, "verify=true", cwd=tmp_path).returncode == 0

    def test_unreadable_images_decide_the_exit_status(self, tmp_path: Path) -> None:
        Image.new("RGB", (50, 50), "red").save(tmp_path / "good.jpg")
        (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not really")
        (tmp_path / "mine.csv").write_text("image,caption\ngood.jpg,a red square\nbad.jpg,nothing\n")
        options = [
            "data=pairs",
            f"data.reader.file={tmp_path / 'mine.csv'}",
            f"data_root={tmp_path}",
            "features.run.num_workers=0",
        ]
        done = call("extract", *options, cwd=tmp_path)
        assert (
            done.returncode == 1
            and "bad.jpg: " in done.stdout
            and "1 images could not be read" in done.stdout
        )
        assert call("extract", *options, "on_error=skip", cwd=tmp_path).returncode == 0
        assert "it is fail or skip" in call("extract", *options, "on_error=ignore", cwd=tmp_path).stderr


def test_what_a_terminated_command_has_started_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "import subprocess, pathlib\n"
        "from captioning.cli import command\n"
        "@command('baseline')\n"
        "def main(config):\n"
        "    subprocess.run(['sh', '-c', 'echo $$ > started; exec sleep 60'])\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(script), "retrieval=most_frequent", "hydra.run.dir=."]
    process = subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    started = tmp_path / "started"
    deadline = time.time() + 60
    while not (started.exists() and started.read_text().strip()) and time.time() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.wait(timeout=30)
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
