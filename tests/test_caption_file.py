"""Which pictures a user means, and where their captions go: nothing is lost, skipped in silence or shown raw."""

import csv
import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from captioning.errors import InputError
from captioning.evaluation.caption_file import CaptionFile, image_id_of
from captioning.features import find_images

ENTRIES = [
    (Path("a.jpg"), "a dog", -1.23456, (("a cat", -2.0), ("one, two", -3.0))),
    (Path("b.jpg"), "café", -2.0, ()),
]


def write(path: Path | str, images: list[Path] | None = None) -> None:
    with CaptionFile(path, images or []) as file:
        for entry in ENTRIES:
            file.add(*entry)


def picture(path: Path, kind: str | None = None) -> Path:
    Image.new("RGB", (8, 8), "red").save(path, kind)
    return path


class TestFormats:
    def test_json_lines_have_an_object_a_picture(self, tmp_path: Path) -> None:
        for name in ("out.jsonl", "out.ndjson", "out"):
            write(tmp_path / name)
            first, second = map(json.loads, (tmp_path / name).read_text().splitlines())
            assert first == {
                "image": "a.jpg",
                "caption": "a dog",
                "log_prob": -1.2346,
                "alternatives": [
                    {"caption": "a cat", "log_prob": -2.0},
                    {"caption": "one, two", "log_prob": -3.0},
                ],
            }
            assert second == {"image": "b.jpg", "caption": "café", "log_prob": -2.0}

    def test_csv_has_a_row_a_caption(self, tmp_path: Path) -> None:
        write(tmp_path / "out.csv")
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["image"], row["rank"], row["caption"], row["log_prob"]) for row in rows] == [
            ("a.jpg", "1", "a dog", "-1.2346"),
            ("a.jpg", "2", "a cat", "-2.0"),
            ("a.jpg", "3", "one, two", "-3.0"),
            ("b.jpg", "1", "café", "-2.0"),
        ]

    def test_json_is_what_cocos_server_takes(self, tmp_path: Path) -> None:
        with CaptionFile(tmp_path / "out.json") as file:
            file.add(Path("x/COCO_val2014_000000000042.jpg"), "a dog", -1.0)
            file.add(Path("mine.jpg"), "a cat", -1.0)
        assert json.loads((tmp_path / "out.json").read_text()) == [
            {"image_id": 42, "caption": "a dog"},
            {"image_id": "mine", "caption": "a cat"},
        ]
        assert os.listdir(tmp_path) == ["out.json"]
        assert image_id_of(Path("000000000000.jpg")) == "0" and image_id_of(Path("a_12.jpg")) == "a_12"

    @pytest.mark.parametrize("name", ["out.txt", "out.xlsx", "out.tsv", "out.json.gz"])
    def test_other_suffixes_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must end in .jsonl, .csv or .json"):
            CaptionFile(tmp_path / name)
        assert not os.listdir(tmp_path)

    def test_two_pictures_of_one_id_are_found_before_anything_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "out.json").write_text("old")
        for twins in (["a/7.jpg", "b/7.png"], ["42.jpg", "COCO_val2014_000000000042.jpg"]):
            images = [Path("1.jpg"), *map(Path, twins)]
            with pytest.raises(InputError, match=f"have the id .*: {twins[0]} and {twins[1]}; give"):
                CaptionFile(tmp_path / "out.json", images)
            CaptionFile(tmp_path / "out.jsonl", images).__exit__(None)
        assert (tmp_path / "out.json").read_text() == "old" and os.listdir(tmp_path) == ["out.json"]


class TestNames:
    """A file name is any bytes but NUL and the slash."""

    NAMES = (
        b"caf\xe9.jpg",
        b"red\x1b[31m.jpg",
        b"two\nlines.jpg",
        b'"quoted", and more.jpg',
        "\u202egnp.jpg".encode(),
    )

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
    def test_every_name_is_written_as_printable_utf_8(self, suffix: str, tmp_path: Path) -> None:
        paths = [Path(os.fsdecode(name)) for name in self.NAMES]
        with CaptionFile(tmp_path / f"out{suffix}", paths) as file:
            for path in paths:
                file.add(path, "a \x1b]0;dog", -1.0)
        text = (tmp_path / f"out{suffix}").read_text(encoding="utf-8")
        assert text.replace("\n", "").isprintable()

    def test_json_gives_every_name_back(self, tmp_path: Path) -> None:
        paths = [Path(os.fsdecode(name)) for name in self.NAMES]
        with CaptionFile(tmp_path / "out.jsonl") as file:
            for path in paths:
                file.add(path, "a dog", -1.0)
        entries = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        assert [os.fsencode(entry["image"]) for entry in entries] == list(self.NAMES)

    def test_csv_rows_stay_rows(self, tmp_path: Path) -> None:
        with CaptionFile(tmp_path / "out.csv") as file:
            for name in self.NAMES:
                file.add(Path(os.fsdecode(name)), "a, b", -1.0)
        rows = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
        assert len(rows) == 1 + len(self.NAMES) and {len(row) for row in rows} == {4}
        assert rows[1][0] == "caf\\xe9.jpg" and rows[2][0] == "red\\x1b[31m.jpg"


class TestNothingIsLost:
    def test_an_error_leaves_the_old_file_and_what_came_so_far(self, tmp_path: Path) -> None:
        (tmp_path / "out.jsonl").write_text("old")
        with pytest.raises(RuntimeError), CaptionFile(tmp_path / "out.jsonl") as file:
            file.add(*ENTRIES[0])
            raise RuntimeError
        assert (tmp_path / "out.jsonl").read_text() == "old"
        assert json.loads((tmp_path / "out.jsonl.partial").read_text())["caption"] == "a dog"
        assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.partial"]

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
    def test_without_a_single_caption_the_old_file_stays(self, suffix: str, tmp_path: Path) -> None:
        (tmp_path / f"out{suffix}").write_text("old")
        CaptionFile(tmp_path / f"out{suffix}").__exit__(None)
        assert (tmp_path / f"out{suffix}").read_text() == "old" and len(os.listdir(tmp_path)) == 1

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
    def test_links_are_followed(self, suffix: str, tmp_path: Path) -> None:
        (tmp_path / "far").mkdir()
        target, link = tmp_path / "far" / f"target{suffix}", tmp_path / f"link{suffix}"
        link.symlink_to(target)
        for _ in range(2):  # dangling, then to a file
            write(link)
            assert link.is_symlink() and "a dog" in target.read_text()
        assert os.listdir(tmp_path / "far") == [target.name]

    def test_a_link_to_itself_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
        (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
        with pytest.raises(InputError, match="a.jsonl is a link that leads in a circle"):
            CaptionFile(tmp_path / "a.jsonl")
        assert (tmp_path / "a.jsonl").is_symlink() and len(os.listdir(tmp_path)) == 2

    @pytest.mark.parametrize("suffix", ["", ".csv", ".json"])
    def test_a_named_pipe_is_written_to(self, suffix: str, tmp_path: Path) -> None:
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        received: list[str] = []
        reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
        reader.start()
        write(pipe)
        reader.join()
        write(tmp_path / f"file{suffix}")
        assert received == [(tmp_path / f"file{suffix}").read_text()]
        assert stat.S_ISFIFO(pipe.stat().st_mode) and len(os.listdir(tmp_path)) == 2

    @pytest.mark.parametrize("name", ["full", "full.csv", "full.json"])
    def test_a_full_device_is_reported_and_stays_a_device(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(InputError, match=r"full.* cannot be written \(No space left on device\); give"):
            write(tmp_path / name)
        assert stat.S_ISCHR(os.stat("/dev/full").st_mode) and (tmp_path / name).is_symlink()

    @pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
    @pytest.mark.parametrize("old", ["", "old\n"])
    def test_standard_output_goes_where_the_shell_sends_it(self, name: str, old: str, tmp_path: Path) -> None:
        (tmp_path / "out").write_text(old)
        with (tmp_path / "out").open("a") as file:
            saved = os.dup(1)
            os.dup2(file.fileno(), 1)
            try:
                with CaptionFile(name) as output:
                    assert output.is_stdout
                    output.add(*ENTRIES[1])
                # The very file by its own name is standard output too: it is neither replaced nor cut.
                with CaptionFile(tmp_path / "out") as output:
                    assert output.is_stdout
                    output.add(*ENTRIES[1])
            finally:
                os.dup2(saved, 1)
                os.close(saved)
        lines = (tmp_path / "out").read_text().removeprefix(old).splitlines()
        assert [json.loads(line)["caption"] for line in lines] == ["café", "café"]
        assert os.listdir(tmp_path) == ["out"]

    def test_a_second_writer_of_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link.jsonl").symlink_to(tmp_path / "out.jsonl")
        with CaptionFile(tmp_path / "out.jsonl") as first:
            first.add(*ENTRIES[0])
            for name in ("out.jsonl", "link.jsonl"):
                with pytest.raises(InputError, match="is being written by another command .*out.jsonl.lock"):
                    CaptionFile(tmp_path / name)
            first.add(*ENTRIES[1])
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
        write(tmp_path / "link.jsonl")
        assert sorted(os.listdir(tmp_path)) == ["link.jsonl", "out.jsonl"]

    def test_a_killed_writer_blocks_nobody(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire();"
            "print('locked', flush=True); os.kill(os.getpid(), 9)"
        )
        lock = tmp_path / "out.jsonl.lock"
        done = subprocess.run([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, check=False)
        assert done.stdout == b"locked\n" and lock.exists()
        write(tmp_path / "out.jsonl")
        assert os.listdir(tmp_path) == ["out.jsonl"]

    def test_of_many_writers_one_wins_each_round(self, tmp_path: Path) -> None:
        refused, errors = [], []

        def write_once(number: int) -> None:
            try:
                with CaptionFile(tmp_path / "out.jsonl") as file:
                    for _ in range(50):
                        file.add(Path(f"{number}.jpg"), "a dog", -1.0)
            except InputError as error:
                refused.append(error)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=write_once, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        images = [json.loads(line)["image"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert len(images) == 50 and len(set(images)) == 1 and len(refused) < 8 and not errors

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("", r"is a folder; give the name of a file, such as .*/captions.jsonl"),
            ("/proc/none.jsonl", "cannot be written"),
            (f"{'x' * 300}.jsonl", "cannot be written .*File name too long"),
            ("a.jpg/out.jsonl", "cannot be written .*(File exists|Not a directory)"),
            ("/dev/fd/77", r"cannot be written \(Bad file descriptor"),
        ],
    )
    def test_places_that_cannot_be_written_are_named(self, name: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        with pytest.raises(InputError, match=message):
            CaptionFile(tmp_path / name if not name.startswith("/") else name)

    def test_the_lock_of_a_file_elsewhere_is_no_matter(self, tmp_path: Path) -> None:
        with FileLock(tmp_path / "other.jsonl.lock"):
            write(tmp_path / "out.jsonl")


class TestFindImages:
    def test_what_pillow_reads_is_found_by_its_content(self, tmp_path: Path) -> None:
        for suffix, kind in (
            (".jfif", "JPEG"),
            (".jpe", "JPEG"),
            (".avif", "AVIF"),
            (".jp2", "JPEG2000"),
            ("", "PNG"),
        ):
            picture(tmp_path / f"picture{suffix}", kind)
        picture(tmp_path / "a.jpg.download", "JPEG")
        picture(tmp_path / "B.JPG")
        found = find_images(str(tmp_path))
        names = [
            "B.JPG",
            "a.jpg.download",
            "picture",
            "picture.avif",
            "picture.jfif",
            "picture.jp2",
            "picture.jpe",
        ]
        assert [path.name for path in found.paths] == names and found.skipped == []

    def test_the_rest_is_named_and_counted(self, tmp_path: Path) -> None:
        picture(tmp_path / "a.png")
        (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
        (tmp_path / "notes.txt").write_text("notes")
        (tmp_path / ".DS_Store").write_bytes(b"system")
        (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")  # what macOS leaves beside a.png
        (tmp_path / "below").mkdir()
        os.mkfifo(tmp_path / "pipe.x")  # opening it would wait for ever
        for given in (str(tmp_path), f"{tmp_path}/*"):
            found = find_images(given)
            assert [path.name for path in found.paths] == ["a.png"]
            assert found.describe_skipped() == (
                "skipped 3 files that are not in a picture format that Pillow reads: clip.mp4, notes.txt, pipe.x"
            )

    def test_many_skipped_files_are_listed_in_part(self, tmp_path: Path) -> None:
        picture(tmp_path / "a.png")
        for number in range(30):
            (tmp_path / f"{number:02d}.txt").touch()
        assert find_images(str(tmp_path)).describe_skipped().endswith("18.txt, 19.txt and 10 more")

    def test_a_file_that_is_named_is_returned_as_it_is(self, tmp_path: Path) -> None:
        picture(tmp_path / "[1].png")
        names = [str(tmp_path / "[1].png"), "gone.jpg", "notes.txt"]
        assert find_images(names).paths == [Path(name) for name in names]
        assert find_images("gone.jpg") == ([Path("gone.jpg")], [])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("https://example.org/a.jpg", "https://example.org/a.jpg is a URL; download it first, then give"),
            ("s3://bucket/*.jpg", "is a URL; download it first"),
            (
                "FOLDER",
                r"the folder .* holds no picture \(.jpg, .*it has notes.txt; for pictures in folders below",
            ),
            ("FOLDER/*.jpg", "no file matches .*jpg"),
            ("FOLDER/*", r"no picture matches .*; it has notes.txt"),
        ],
    )
    def test_what_gives_no_picture_is_refused(self, name: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("notes")
        with pytest.raises(InputError, match=message):
            find_images(["a.jpg", name.replace("FOLDER", str(tmp_path))])
