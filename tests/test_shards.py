"""The feature cache in shards: made apart, by one process or many, and read as one."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from captioning.errors import InputError
from captioning.features import (
    Backbone,
    CacheWriter,
    FeatureCache,
    Shard,
    choose_shards,
    extract,
    files_of,
    verify,
)
from captioning.features.cache import Row
from captioning.files import partial_path
from tests.test_commands import call
from tests.test_features import image_files
from tests.test_processes import finish, start

SHAPE = (2, 3)


def write_shard(
    folder: Path, shard: Shard, ids: list[str], with_boxes: bool = False, **provenance: str
) -> None:
    generator = np.random.default_rng(shard.number)
    options = {"node": "x", **provenance}
    with CacheWriter(shard.path(folder), ids, SHAPE, options, with_boxes=with_boxes) as writer:
        for row in writer.to_do:
            features = generator.normal(size=SHAPE).astype(np.float16)
            boxes = generator.random((2, 4), np.float32), generator.random(2, np.float32)
            writer.write(int(row), Row(features, 2 - int(row) % 2, *(boxes if with_boxes else ())))
        writer.finish()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number, ids in enumerate((["a", "b"], ["c"], ["a long name", "e"])):
        write_shard(tmp_path / "f.h5", Shard(number, 3), ids)
    return tmp_path / "f.h5"


class TestExtraction:
    def test_shards_hold_the_rows_of_one_file_byte_for_byte(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "in", 11), {"batch_size": 2, "num_workers": 0}
        extract(backbone, images, tmp_path / "one.h5", **run)
        for number in (2, 0, 3, 1):
            shard = Shard(number, 4)
            extract(backbone, shard.share(images, 2), shard.path(tmp_path / "f.h5"), **run)
        one, all_four = FeatureCache(tmp_path / "one.h5"), FeatureCache(tmp_path / "f.h5")
        assert sorted(all_four.image_ids) == sorted(images)
        assert all_four.read(list(images)).tobytes() == one.read(list(images)).tobytes()
        assert (all_four.shape, all_four.grid, all_four.provenance) == (one.shape, one.grid, one.provenance)
        assert all_four.recorded(images) == one.recorded(images)
        all_four.check_pictures(images)

    def test_a_shard_is_resumed_by_itself(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "in", 8), {"batch_size": 2, "num_workers": 0}
        shard = Shard(1, 2)
        path, share = shard.path(tmp_path / "f.h5"), shard.share(images, 2)
        assert list(share) == ["p2", "p3", "p6", "p7"]
        extract(backbone, share, path, **run)
        whole = path.read_bytes()
        path.unlink()

        def killed(batches, total):  # type: ignore[no-untyped-def]
            yield next(iter(batches))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            extract(backbone, share, path, progress=killed, **run)
        assert not path.exists() and partial_path(path).exists()
        report = extract(backbone, share, path, **run)
        assert (report.done_before, report.done_now) == (2, 2) and path.read_bytes() == whole

    def test_a_folder_of_shards_is_completed_shard_by_shard(self, tmp_path: Path, backbone: Backbone) -> None:
        images, run = image_files(tmp_path / "in", 4), {"batch_size": 2, "num_workers": 0}
        first = dict(list(images.items())[:2])
        for number in (0, 1):
            extract(
                backbone,
                {**first, **images} if number else first,
                Shard(number, 2).path(tmp_path / "f"),
                **run,
            )
        assert extract(backbone, images, tmp_path / "f", **run).done_before == 4  # nothing to do
        more = {**images, "more": images["p0"]}
        with pytest.raises(InputError, match="folder of shards that lacks some of the 5 images; give num_sh"):
            extract(backbone, more, tmp_path / "f", **run)


class TestReading:
    @pytest.mark.parametrize("with_boxes", [False, True])
    def test_a_folder_reads_as_its_files_do(self, tmp_path: Path, with_boxes: bool) -> None:
        names = ["b", "a"], ["c"], ["a long name", "e"]
        for number, ids in enumerate(names):
            write_shard(tmp_path / "f.h5", Shard(number, 3), ids, with_boxes)
        parts = [FeatureCache(file) for file in files_of(tmp_path / "f.h5")]
        cache = pickle.loads(pickle.dumps(FeatureCache(tmp_path / "f.h5")))
        assert len(cache) == 5 and cache.image_ids == [image_id for ids in names for image_id in ids]
        assert cache.varies_in_count and cache.has_boxes is with_boxes
        order = ["e", "b", "c", "a long name", "a", "b"]
        holders = [next(part for part in parts if image_id in part) for image_id in order]
        expected = [part.read([image_id])[0] for part, image_id in zip(holders, order, strict=True)]
        assert np.array_equal(cache.read(order), np.stack(expected))
        counts = [part.counts([image_id])[0] for part, image_id in zip(holders, order, strict=True)]
        assert cache.counts(order).tolist() == counts
        if with_boxes:
            for part, image_id in zip(holders, order, strict=True):
                assert np.array_equal(cache.boxes(image_id), part.boxes(image_id))
                assert np.array_equal(cache.scores(image_id), part.scores(image_id))

    def test_missing_shards_are_named_with_the_command_that_makes_them(self, three: Path) -> None:
        Shard(1, 3).path(three).unlink()
        with pytest.raises(
            InputError,
            match="lacks 1 of its 3 shards; make them with python -m captioning.extract num_shards=3 shard=1 and",
        ):
            FeatureCache(three)
        last = Shard(2, 3).path(three)
        last.rename(partial_path(last))  # unfinished
        with pytest.raises(
            InputError, match="lacks 2 .* captioning.extract -m num_shards=3 shard=1,2 and the same"
        ):
            FeatureCache(three)

    def test_two_divisions_in_one_folder_are_refused(self, three: Path) -> None:
        write_shard(three, Shard(0, 2), ["a"])
        with pytest.raises(InputError, match="a division into 2 and 3 shards; delete those of one division"):
            FeatureCache(three)

    def test_shards_made_with_different_options_are_refused(self, three: Path) -> None:
        Shard(2, 3).path(three).unlink()
        write_shard(three, Shard(2, 3), ["d"], node="y")
        with pytest.raises(
            InputError, match="00002-of-00003.h5 holds features with node = 'y' but .* node = 'x'"
        ):
            FeatureCache(three)

    def test_damage_names_the_shard_and_its_command(self, three: Path) -> None:
        path = Shard(1, 3).path(three)
        content = bytearray(path.read_bytes())
        row = FeatureCache(path).read(["c"]).tobytes()
        content[content.index(row)] ^= 1
        path.write_bytes(content)
        with pytest.raises(
            InputError, match="00001-of-00003.h5 is damaged: .* and num_shards=3 shard=1 repair=true"
        ):
            FeatureCache(three).read(["a", "c"])
        findings = verify(path)
        assert [name for name, _ in findings.corrupt] == ["c"]


class TestDivision:
    @pytest.mark.parametrize(("total", "size"), [(1, 1), (4, 2), (3, 4), (16, 3)])
    def test_the_processes_make_every_shard_once(self, total: int, size: int) -> None:
        chosen = [choose_shards(total, None, rank=rank, processes=size) for rank in range(size)]
        assert sorted(shard for part in chosen for shard in part) == [Shard(i, total) for i in range(total)]

    def test_by_default_each_process_makes_one_and_one_alone_a_file(self, tmp_path: Path) -> None:
        assert choose_shards(None, None, rank=2, processes=4) == [Shard(2, 4)]
        [whole] = choose_shards(None, None, rank=0, processes=1)
        assert whole.path(tmp_path / "f.h5") == tmp_path / "f.h5"
        assert whole.share({"a": tmp_path}, 8) == {"a": tmp_path}
        assert choose_shards(4, 3, rank=0, processes=1) == [Shard(3, 4)]

    @pytest.mark.parametrize("num_images", [9, 12, 23])
    def test_the_shares_are_the_batches_of_the_whole(self, num_images: int) -> None:
        images = {str(i): Path() for i in range(num_images)}
        shares = [list(Shard(number, 3).share(images, 4)) for number in range(3)]
        assert sorted(key for share in shares for key in share) == sorted(images)
        for share in shares:
            starts = [int(image_id) for image_id in share[::4]]
            assert all(start % 4 == 0 for start in starts)

    @pytest.mark.parametrize(
        ("num_shards", "shard", "message"),
        [
            (0, None, "num_shards=0 must be a whole number from 1"),
            (4, "3", "shard=3 must be a whole number from 0"),
            (None, 0, "shard=0 must be less than num_shards=None"),
            (4, 4, "shard=4 must be less than num_shards=4; the first one is 0"),
        ],
    )
    def test_numbers_that_do_not_go_together_are_refused(
        self, num_shards: int | None, shard: int | None, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            choose_shards(num_shards, shard, rank=0, processes=1)

    @pytest.mark.parametrize("shard", [0, 2])
    def test_more_shards_than_batches_are_refused(self, shard: int) -> None:
        with pytest.raises(
            InputError, match="10 images are 2 batches of 8; give at most num_shards=2, or a smal"
        ):
            Shard(shard, 4).share({str(i): Path() for i in range(10)}, 8)

    def test_a_file_in_place_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "f.h5").touch()
        with pytest.raises(
            InputError, match="f.h5 is one feature file and no folder of shards; leave out num_sh"
        ):
            Shard(0, 2).path(tmp_path / "f.h5")


SCENES = json.dumps({"train": 60, "val": 12, "test": 8}).replace('"', "")
OPTIONS = [f"data.reader.scenes={SCENES}", "features.run.num_workers=0", "features.run.batch_size=8"]
NAME = "features/toy-inception_v3-maxpool2.h5"


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with features in one file."""
    root = tmp_path_factory.mktemp("one")
    done = call("extract", f"data_root={root}", *OPTIONS, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


def assert_equal(root: Path, one_file: Path) -> None:
    """The rows in a folder of four shards equal those of one file, byte for byte."""
    whole, shards = FeatureCache(one_file / NAME), FeatureCache(root / NAME)
    assert (root / NAME / "00003-of-00004.h5").is_file() and sorted(shards.image_ids) == sorted(
        whole.image_ids
    )
    assert shards.read(whole.image_ids).tobytes() == whole.read(whole.image_ids).tobytes()


@pytest.mark.slow
class TestCommands:
    def test_torchrun_makes_four_shards_in_two_processes_and_verify_reads_all(
        self, one_file: Path, tmp_path: Path
    ) -> None:
        options = ["data_root=.", "num_shards=4", *OPTIONS]
        output = finish(start("extract", *options, cwd=tmp_path, torchrun=True))
        assert output.count("drawing 80 toy scenes") == 1 and output.count(" extracted in ") == 4, output
        assert_equal(tmp_path, one_file)
        assert len(list((tmp_path / "runs" / "extract").iterdir())) == 1
        done = call("extract", "data_root=.", *OPTIONS, "verify=true", cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.count("rows whole, 0 to do") == 4, done.stdout
        (tmp_path / NAME / "00001-of-00004.h5").unlink()
        done = call("extract", "data_root=.", *OPTIONS, "verify=true", cwd=tmp_path)
        assert done.returncode == 1
        assert (
            "is missing: run the same command with num_shards=4 shard=1 instead of verify=true" in done.stdout
        )
        done = call("extract", "data_root=.", *OPTIONS, "num_shards=4", "shard=1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_equal(tmp_path, one_file)

    @pytest.mark.parametrize(
        "launcher",
        [
            "basic",
            *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("joblib", "submitit_local")),
        ],
    )
    def test_a_multirun_makes_them_under_every_launcher(
        self, launcher: str, one_file: Path, tmp_path: Path
    ) -> None:
        if launcher != "basic":
            pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
        shutil.copytree(one_file / "toy", tmp_path / "toy")
        more = {"joblib": ["hydra.launcher.n_jobs=2"], "submitit_local": ["hydra.launcher.timeout_min=10"]}
        done = call(
            "extract", "-m", f"data_root={tmp_path}", *OPTIONS, "num_shards=4", "shard=range(4)",
            f"hydra/launcher={launcher}", *more.get(launcher, []), cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert_equal(tmp_path, one_file)
