"""Attacks on checkpoint files: parts that are missing or wrong, strangers' targets, and bombs.

Whatever a file holds, reading it ends with a model or with one `InputError`; nothing is written, nothing outside
the allowed classes is called, and no memory is taken that the file does not have.
"""

import io
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from captioning import checkpoint
from captioning.checkpoint import build
from captioning.checkpoint.archive import MAX_PICKLE, check_archive
from captioning.checkpoint.building import check_target
from captioning.errors import InputError
from captioning.tokenizers import Words
from captioning.training import assemble
from captioning.training.schedules import check_optimizer_states
from tests.conftest import compose_config

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def run_folder(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    assemble(compose_config("train", *toy_overrides, f"output_dir={folder}")).fit()
    return folder


@pytest.fixture
def content(run_folder: Path) -> dict[str, Any]:
    return torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)


def changed(content: dict[str, Any], path: Path, change: Change) -> Path:
    change(content)
    torch.save(content, path)
    return path


def at(*keys: Any, to: Any) -> Change:
    """Set what stands under a path of keys."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def without(*keys: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def test_a_checkpoint_from_before_tokenizers_has_words_of_english_captions(
    content: dict[str, Any], tmp_path: Path
) -> None:
    def change(content: dict[str, Any]) -> None:
        metadata = content["captioning"]
        metadata["format"] = 2
        del metadata["tokenizer"], metadata["data"]["tokenizer"], metadata["data"]["language"]

    loaded = checkpoint.load(changed(content, tmp_path / "a.ckpt", change))
    assert type(loaded.vocabulary.tokenizer) is Words and loaded.metadata["data"]["language"] == "en"
    assert loaded.metadata["format"] == checkpoint.FORMAT
    data = checkpoint.build_datamodule(loaded.metadata["data"], vocabulary=loaded.vocabulary)
    assert data.vocabulary is not None and data.vocabulary.words == loaded.vocabulary.words


class TestParts:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (without("captioning"), "is not a checkpoint of this project"),
            (at("captioning", to=[1]), "is not a checkpoint of this project"),
            (without("captioning", "format"), "is not a checkpoint of this project"),
            (at("captioning", "format", to=1), "has format 1, needed is 3"),
            (at("captioning", "format", to={}), "has format {}, needed is 3"),
            (without("state_dict"), "holds no weights"),
            (at("state_dict", to={}), "holds no weights"),
            (at("state_dict", to=[torch.ones(2)]), "holds no weights"),
            (at("state_dict", "model.output.weight", to=3.5), "its weight model.output.weight is a float"),
            (at("state_dict", 7, to=torch.ones(2)), "its weight 7 is a Tensor"),
            (at("state_dict", to={"other.weight": torch.ones(2)}), "the weights do not fit the model"),
            (without("captioning", "words"), "does not say its 'words'"),
            (at("captioning", "words", to="a dog"), "its words is a str, needed is a list"),
            (at("captioning", "words", to=["<pad>", 7]), "its words are not all texts"),
            (at("captioning", "words", to=["<pad>", "\udce9"]), "its words are not all texts"),
            (at("captioning", "words", to=[]), r"its words begin with \[\]"),
            (at("captioning", "words", to=["a", "dog", "runs", "off"]), "its words begin with"),
            (
                at("captioning", "words", to=["<pad>", "<start>", "<end>", "<unk>", "dog"]),
                "it has 5 words, but",
            ),
            (without("captioning", "tokenizer"), "does not say its 'tokenizer'"),
            (at("captioning", "tokenizer", to="words"), "its tokenizer is a str, needed is a dict"),
            (at("captioning", "tokenizer", "_target_", to="torch.nn.Tanh"), "torch.nn.Tanh as its tokenizer"),
            (
                at("captioning", "tokenizer", "_target_", to="captioning.tokenizers.tokenize"),
                "captioning.tokenizers.tokenize as its tokenizer, which captioning does not provide",
            ),
            (
                at("captioning", "tokenizer", "_target_", to="captioning.tokenizers.Tokenizer"),
                "tokenizer can't be built as it says",
            ),
            (at("captioning", "tokenizer", "merges", to="a b"), "tokenizer can't be built as it says"),
            (without("captioning", "model"), "does not say its 'model'"),
            (at("captioning", "model", to=None), "its model is a NoneType, needed is a dict"),
            (without("captioning", "model", "_target_"), "does not name the class of its model"),
            (at("captioning", "model", "_target_", to=3), "does not name the class of its model"),
            (without("captioning", "model", "hidden_dim"), "model can't be built as it says: TypeError"),
            (at("captioning", "model", "hidden_dim", to="many"), "model can't be built as it says"),
            (at("captioning", "model", "hidden_dim", to=-3), "model can't be built as it says|do not fit"),
            (at("captioning", "model", "surplus", to=1), "model can't be built as it says: TypeError"),
            (at("captioning", "model", to={"_target_": "torch.nn.Tanh"}), "which captions nothing"),
        ],
    )
    def test_a_part_that_is_missing_or_wrong_is_named(
        self, content: dict[str, Any], tmp_path: Path, change: Change, message: str
    ) -> None:
        path = changed(content, tmp_path / "a.ckpt", change)
        with pytest.raises(InputError, match=message):
            checkpoint.load(path)

    @pytest.mark.parametrize("part", ["data", "features", "provenance", "decoding", "objective", "history"])
    def test_what_only_some_need_is_named_where_it_is_needed(
        self, content: dict[str, Any], tmp_path: Path, part: str
    ) -> None:
        path = changed(content, tmp_path / "a.ckpt", without("captioning", part))
        metadata = checkpoint.load(path).metadata
        with pytest.raises(InputError, match=f"a.ckpt does not say its '{part}', which is needed here"):
            metadata[part]
        path = changed(content, tmp_path / "b.ckpt", at("captioning", part, to=3))
        with pytest.raises(InputError, match=f"b.ckpt is damaged: its {part} is a int"):
            checkpoint.read(path)

    def test_a_part_of_a_part_is_named_too(self, content: dict[str, Any], tmp_path: Path) -> None:
        for part, needed in (("features", "extractor"), ("data", "reader")):
            path = changed(content, tmp_path / "a.ckpt", at("captioning", part, needed, to="x"))
            with pytest.raises(InputError, match=f"is damaged: its {part} names no {needed}"):
                checkpoint.read(path)
            del content["captioning"][part]

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers_are_refused(
        self, content: dict[str, Any], tmp_path: Path, number: float
    ) -> None:
        name, weight = next(iter(content["state_dict"].items()))
        weight.view(-1)[3] = number
        with pytest.raises(
            InputError, match=f"numbers that are not finite in {name}: the training had broken"
        ):
            checkpoint.load(changed(content, tmp_path / "a.ckpt", lambda _: None))

    @pytest.mark.parametrize("kind", [torch.int64, torch.bool])
    def test_weights_of_another_kind_are_refused(
        self, content: dict[str, Any], tmp_path: Path, kind: torch.dtype
    ) -> None:
        for name, weight in content["state_dict"].items():
            content["state_dict"][name] = weight.to(kind)
        with pytest.raises(InputError, match=f"is {kind}, needed is torch.float32"):
            checkpoint.load(changed(content, tmp_path / "a.ckpt", lambda _: None))

    def test_weights_of_another_precision_are_converted(
        self, content: dict[str, Any], tmp_path: Path
    ) -> None:
        for name, weight in content["state_dict"].items():
            content["state_dict"][name] = weight.double()
        model = checkpoint.load(changed(content, tmp_path / "a.ckpt", lambda _: None)).model
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class TestTargets:
    @pytest.mark.parametrize(
        ("role", "target"),
        [
            (role, target)
            for role in ("model", "extractor", "reader", "data", "decoder")
            for target in (
                "os.system", "builtins.eval", "subprocess.run", "shutil.rmtree", "captioning.files.write_text",
                "captioning.data.draw_toy", "captioning.data.TopicModel", "captioning.data.download.download_coco",
                "captioning.features.extract", "captioning.features.writer.extract", "captioning.checkpoint.load",
                "captioning.training.assemble", "captioning.evaluation.save", "captioning.models", "captioning",
                "captioning.data.read_coco.__globals__", "captioning.models.__loader__.exec_module",
                "captioning.models.base.importlib", "torch.load", "torch.save", "torch.hub.load",
                "torch.nn.init.normal_", "torch.nn.functional.relu", "torch.nn.Module.register_forward_hook",
                "torch.nn.utils.parametrize.register_parametrization", "torch.nn.__builtins__", "torch.nn.",
                "torch.nn.modules.module.Module", "torch.nn.Parameter", "hydra.utils.instantiate", "", ".",
                "captioning.data.", " captioning.models.GRUAttention", "captioning.models.GRUAttention.load_state_dict",
            )
        ],
    )  # fmt: skip
    def test_a_stranger_names_nothing_that_writes_or_runs(self, role: str, target: str) -> None:
        remedy = (
            "it was written by another version"
            if target.startswith("captioning")
            else "if it is your own class"
        )
        with pytest.raises(InputError, match=f"which captioning does not provide; {remedy}"):
            checkpoint.check_target(target, role)

    def test_a_trusted_package_that_is_not_here_is_named(self) -> None:
        with pytest.raises(
            InputError, match="a class of nowhere, which can't be imported from here; install it"
        ):
            checkpoint.build({"_target_": "nowhere.Model"}, "model", ["nowhere"])

    def test_a_class_of_one_role_does_not_serve_another(self) -> None:
        good = {
            "model": "captioning.models.GRUAttention",
            "extractor": "captioning.features.Backbone",
            "reader": "captioning.data.read_coco",
            "data": "captioning.data.CaptionDataModule",
            "decoder": "captioning.decoding.beam_search",
        }
        for role, target in good.items():
            checkpoint.check_target(target, role)
            for other in good.keys() - {role}:
                with pytest.raises(InputError):
                    checkpoint.check_target(target, other)

    def test_no_reader_overwrites_a_file(self, tmp_path: Path) -> None:
        """The readers of earlier versions wrote the ids they drew, and drew the pictures that were missing."""
        precious = tmp_path / "precious.txt"
        precious.write_text("irreplaceable")
        inner = {"_target_": "captioning.data.read_flickr", "_partial_": True, "root": str(tmp_path)}
        options = {"_target_": "captioning.data.sample_captions", "_partial_": True, "reader": inner}
        with pytest.raises(InputError, match="sample_captions fails with the options it says: TypeError"):
            checkpoint.build_reader({**options, "ids_file": str(precious)})()
        with pytest.raises(InputError, match="read_toy fails with the options it says: TypeError"):
            checkpoint.build_reader(
                {"_target_": "captioning.data.read_toy", "_partial_": True, "root": str(tmp_path / "new")}
            )()
        assert precious.read_text() == "irreplaceable" and list(tmp_path.iterdir()) == [precious]

    def test_preparing_is_never_taken_from_a_file(self, content: dict[str, Any], tmp_path: Path) -> None:
        data = content["captioning"]["data"]
        data["prepare"] = {"_target_": "captioning.data.draw_toy", "_partial_": True, "root": str(tmp_path)}
        assert checkpoint.build_datamodule(data).prepare is None
        data["reader"] = {**data["reader"], "records": {"_target_": "captioning.data.draw_toy"}}
        with pytest.raises(InputError, match="names captioning.data.draw_toy as its reader"):
            checkpoint.build_datamodule(data)

    @pytest.mark.parametrize(
        ("role", "options", "message"),
        [
            ("model", {"activation": {"_target_": "torch.nn.Tanh", "device": "cpu"}}, "on the device cpu"),
            ("model", {"activation": "${oc.env:HOME}"}, "holds the interpolation"),
            ("data", {"num_workers": 10**6}, "has num_workers = 1000000; needed is a whole number up to 64"),
            ("data", {"num_workers": -1}, "has num_workers = -1; needed is a whole number"),
            ("data", {"eval_batch_size": 10**9}, "a whole number up to 100000"),
            ("data", {"eval_batch_size": "many"}, "has eval_batch_size = 'many'"),
            ("extractor", {"image_size": [299, 10**6]}, "has image_size = 1000000; needed is a whole number"),
            (
                "decoder",
                {"beam_size": 10**9},
                "has beam_size = 1000000000; needed is a whole number up to 1000",
            ),
            ("decoder", {"num_samples": 10**9}, "needed is a whole number up to 1000"),
            ("extractor", {"max_regions": 10**9}, "needed is a whole number up to 10000"),
            ("model", {"num_samples": 10**9}, "can't be built"),  # a name that means something else there
            ("reader", {"file": "/dev/zero"}, "names /dev/zero, which is neither a file nor a folder"),
        ],
    )
    def test_options_that_could_take_a_machine_down_are_refused(
        self, role: str, options: dict[str, Any], message: str
    ) -> None:
        target = {"model": "captioning.models.GRUAttention", "data": "captioning.data.CaptionDataModule"}
        target |= {"extractor": "captioning.features.Backbone", "reader": "captioning.data.read_pairs"}
        target |= {"decoder": "captioning.decoding.beam_search"}
        with pytest.raises(InputError, match=message):
            checkpoint.build({"_target_": target[role], **options}, role)

    @pytest.mark.parametrize(
        "sizes",
        [
            {"hidden_dim": 10**9, "num_heads": 1},
            {"num_layers": 10**9},
            {"mlp_dim": 10**12},
            {"vocabulary_size": 10**12},
        ],
    )
    def test_a_model_larger_than_its_weights_takes_no_memory(
        self, content: dict[str, Any], tmp_path: Path, sizes: dict[str, int]
    ) -> None:
        options = compose_config("train", "model=transformer", "output_dir=none", "data_root=data").model
        small = {"vocabulary_size": 99, "hidden_dim": 8, "num_heads": 2, "mlp_dim": 8, "num_layers": 1}
        encoder = {"_target_": "captioning.models.RawFeatures", "feature_dim": 8}
        model = {"_target_": options["_target_"], **small, "dropout": 0.0, "encoder": encoder, **sizes}
        path = changed(content, tmp_path / "a.ckpt", at("captioning", "model", to=model))
        with pytest.raises(
            InputError, match="do not fit the model|a model of more than|can't be built as it says"
        ):
            checkpoint.load(path)


class Bomb:
    """A file like those of `torch.save`, with parts to be exchanged."""

    def __init__(self, tree: bytes, records: dict[str, bytes] | None = None) -> None:
        self.records = {"data.pkl": tree, "version": b"3\n", **(records or {})}

    def write(self, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in self.records.items():
                archive.writestr(f"archive/{name}", content)
        return path


def tensor(storage: bytes, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Write the instructions for a tensor; `storage` those for the arguments of a persistent id."""
    shape = b"".join(pickle.dumps(part, 2)[2:-1] for part in (0, size, stride, False))
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage" + storage + b"tQ" + shape
        + b"ccollections\nOrderedDict\n)RtR."
    )  # fmt: skip


def floats(key: bytes, number: int) -> bytes:
    count = pickle.dumps(number, 2)[2:-1]
    return b"ctorch\nFloatStorage\nX" + struct.pack("<I", len(key)) + key + b"X\x03\x00\x00\x00cpu" + count


def shared_lists(levels: int) -> bytes:
    tree: list[Any] = []
    for _ in range(levels):
        tree = [tree] * 10
    return pickle.dumps(tree, 2)


def deep_lists(levels: int) -> bytes:
    return b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."


BOMBS: dict[str, tuple[Bomb, str]] = {
    "a call": (Bomb(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."), "it holds a os.system"),
    "memory by a class": (
        Bomb(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        "holds a builtins.bytearray",
    ),
    "memory by a tensor": (
        Bomb(b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R."),
        "it holds a torch.Tensor",
    ),
    "memory by an instruction": (
        Bomb(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."),
        "holds the instruction",
    ),
    "an object": (Bomb(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "holds the instruction"),
    "a memo of any size": (Bomb(b"\x80\x02]r\xff\xff\xff\xff."), ""),
    "a text longer than the file": (Bomb(b"\x80\x02X\xff\xff\xff\xffabc."), "not a readable checkpoint"),
    "no end": (Bomb(b"\x80\x02]"), "not a readable checkpoint"),
    "nothing": (Bomb(b""), "data.pkl has 0 bytes"),
    "shared lists": (Bomb(shared_lists(12)), "or more than 1,000,000 entries"),
    "deep lists": (Bomb(deep_lists(100_000)), "64 levels deep"),
    "attributes of a function": (
        Bomb(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."),
        "sets attributes of something",
    ),
    "a storage that is not there": (Bomb(tensor(floats(b"0", 4), (4,), (1,))), "record has None"),
    "a storage of another size": (
        Bomb(tensor(floats(b"0", 10**9), (4,), (1,)), {"data/0": bytes(16)}),
        "declares 4,000,000,000 bytes, but the record has 16",
    ),
    "a tensor larger than its storage": (
        Bomb(tensor(floats(b"0", 4), (10**6, 10**6), (0, 0)), {"data/0": bytes(16)}),
        "a tensor of 1,000,000,000,000 elements in a storage of 4",
    ),
    "a tensor beyond its storage": (
        Bomb(tensor(floats(b"0", 4), (2,), (9,)), {"data/0": bytes(16)}),
        "a tensor of 2 elements in a storage of 4",
    ),
    "a negative size": (
        Bomb(tensor(floats(b"0", 4), (-4,), (1,)), {"data/0": bytes(16)}),
        r"a tensor of size \(-4,\)",
    ),
    "another file": (Bomb(b"\x80\x02]."), ""),
    "a program": (
        Bomb(b"\x80\x02].", {"constants.pkl": b"x", "code/__torch__.py": b"x"}),
        "none that torch.save",
    ),
    "a long table": (Bomb(b"\x80\x02" + b"]" * (MAX_PICKLE + 1)), "data.pkl has 16,777,219 bytes"),
}


class TestArchives:
    @pytest.mark.parametrize("name", BOMBS)
    @pytest.mark.slow
    def test_a_bomb_is_refused_before_memory_goes(self, name: str, tmp_path: Path) -> None:
        bomb, message = BOMBS[name]
        path = bomb.write(tmp_path / "bomb.ckpt")
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=message or "."):
                checkpoint.read(path)
            assert tracemalloc.get_traced_memory()[1] < 120e6
        finally:
            tracemalloc.stop()

    def test_a_compressed_archive_is_refused_by_what_it_declares(self, tmp_path: Path) -> None:
        bomb = Bomb(b"\x80\x02].", {"data/0": bytes(100_000_000)})
        path = bomb.write(tmp_path / "a.ckpt", zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 200_000
        with pytest.raises(InputError, match="is compressed, and would be"):
            check_archive(path)

    def test_records_that_share_their_bytes_are_refused(self, tmp_path: Path) -> None:
        path = Bomb(b"\x80\x02].", {"data/0": bytes(1000)}).write(tmp_path / "a.ckpt")
        content = bytearray(path.read_bytes())
        sizes = struct.pack("<II", 1000, 1000)
        place = content.rindex(sizes)  # in the directory at the end
        content[place : place + 8] = struct.pack("<II", 2**31, 2**31)
        path.write_bytes(content)
        with pytest.raises(InputError, match="declare 2,147,483,.* bytes, but the file has"):
            check_archive(path)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_record_twice_is_refused(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
            for _ in range(2):
                archive.writestr("archive/data.pkl", b"\x80\x02].")
        with pytest.raises(InputError, match="its record 'archive/data.pkl' is none that"):
            check_archive(tmp_path / "a.ckpt")

    def test_views_that_would_be_copied_one_by_one_are_refused(self, tmp_path: Path) -> None:
        weight = torch.zeros(1000)
        torch.save({f"w{i}": weight for i in range(4)}, tmp_path / "tied.ckpt")
        check_archive(tmp_path / "tied.ckpt")
        torch.save({f"w{i}": weight[: 1000 - i] for i in range(100)}, tmp_path / "views.ckpt")
        with pytest.raises(InputError, match="its tensors are views of so few numbers"):
            check_archive(tmp_path / "views.ckpt")

    def test_what_is_no_archive_is_refused(self, tmp_path: Path) -> None:
        torch.save({"a": 1}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
        (tmp_path / "text.ckpt").write_text("a dog runs")
        (tmp_path / "empty.ckpt").touch()
        for name in ("old", "text", "empty"):
            with pytest.raises(InputError, match="is not a readable checkpoint"):
                checkpoint.read(tmp_path / f"{name}.ckpt")
        for place in ("/dev/zero", str(tmp_path), str(tmp_path / "none")):
            with pytest.raises(InputError, match="there is no checkpoint"):
                checkpoint.read(place)

    def test_more_than_this_machine_has_is_refused(
        self, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("captioning.checkpoint.archive._memory", lambda: 1000.0)
        with pytest.raises(InputError, match="which is more than this machine's memory"):
            checkpoint.read(run_folder)

    def test_a_damaged_file_is_never_read_as_a_whole_one(self, run_folder: Path, tmp_path: Path) -> None:
        """Flipped bits and cut ends: an error, or a file whose every number is the same."""
        whole = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
        expected = torch.load(io.BytesIO(whole), weights_only=True)["state_dict"]
        generator, path = random.Random(0), tmp_path / "a.ckpt"
        refused = 0
        for number in range(150):
            damaged = bytearray(whole)
            if number % 3:
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            else:
                del damaged[generator.randrange(len(damaged)) :]
            path.write_bytes(damaged)
            try:
                found = checkpoint.read(path)["state_dict"]
            except InputError:
                refused += 1
            else:
                assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert refused > 100  # the rest hits padding between the records

    def test_a_checkpoint_of_each_kind_passes(self, run_folder: Path) -> None:
        for path in (run_folder / "checkpoints").iterdir():
            check_archive(path)


class TestResuming:
    def resume(self, options: list[str], path: Path, folder: Path) -> None:
        assemble(
            compose_config(
                "train", *options, f"output_dir={folder}", f"resume={path}", "trainer.max_epochs=2"
            )
        ).fit()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            *((without(part), f"can't be resumed: it holds no {part}, which say where") for part in
              ("loops", "callbacks", "optimizer_states", "lr_schedulers")),
            *((at(part, to="x"), f"can't be resumed: its {part} is 'x'") for part in
              ("loops", "callbacks", "optimizer_states", "lr_schedulers")),
            *((without("captioning", part), f"can't be resumed: it holds no {part}, which say") for part in
              ("random_state", "cuda_random_state", "objective_state", "history")),
            (at("optimizer_states", 0, "state", to={}), "its optimizer 0 has lost its state"),
            (at("optimizer_states", 0, to={}), "its optimizer 0 has no state and param_groups"),
            (at("optimizer_states", 0, "param_groups", 0, "lr", to=float("nan")), "its learning rate is nan"),
            (at("optimizer_states", 0, "param_groups", 0, to=None), "its learning rate is None"),
            (at("optimizer_states", to=[]), "it holds no optimizer_states, which say where its training stood; give start_from="),
            (at("captioning", "history", to=[{"cider_d": "high"}]), "its history holds"),
            (at("captioning", "history", to=[{"cider_d": float("nan")}]), "its history holds"),
            (at("captioning", "history", to=[3]), "its history holds"),
            (at("captioning", "other_processes", to=[{"random_state": 3}]), "its random_state is 3, needed is a Tensor"),
            (at("captioning", "other_processes", to=[None]), "it holds no random_state"),
            (at("loops", to={}), "it holds no loops, which say where"),
            (at("loops", "fit_loop", "epoch_progress", "current", "processed", to=-1), "how far it was trained, but"),
            (at("loops", "fit_loop", "epoch_progress", "current", "processed", to="1"), "how far it was trained"),
            (at("loops", "fit_loop", "epoch_progress", "current", to=None), "how far it was trained"),
        ],
    )  # fmt: skip
    def test_what_a_training_can_not_go_on_from_is_named(
        self, content: dict[str, Any], tmp_path: Path, change: Change, message: str
    ) -> None:
        path = changed(content, tmp_path / "a.ckpt", change)
        with pytest.raises(InputError, match=message):
            checkpoint.check_resumable(checkpoint.read(path), path)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "change",
        [
            at("captioning", "random_state", to=torch.zeros(3)),
            at("optimizer_states", 0, "state", 0, to={"exp_avg": 3}),
            at("optimizer_states", 0, "param_groups", to=[{"lr": 1.0}]),
            at("lr_schedulers", to=[{"_step_count": "x"}]),
            at("CaptionDataModule", to={"epoch": 1, "surplus": 2}),
            at("loops", "fit_loop", "epoch_loop.scheduler_progress", to=7),
        ],
    )
    def test_what_lightning_can_not_restore_is_one_sentence(
        self, toy_overrides: list[str], content: dict[str, Any], tmp_path: Path, change: Change
    ) -> None:
        path = changed(content, tmp_path / "a.ckpt", change)
        with pytest.raises(InputError, match="a.ckpt can't be resumed"):
            self.resume(toy_overrides, path, tmp_path / "run")

    @pytest.mark.slow
    def test_integers_in_place_of_weights_are_refused(
        self, toy_overrides: list[str], content: dict[str, Any], tmp_path: Path
    ) -> None:
        name = "model.embedding.weight"
        integers = content["state_dict"][name].long()
        path = changed(content, tmp_path / "a.ckpt", at("state_dict", name, to=integers))
        with pytest.raises(InputError, match=f"its weight {name} is torch.int64, needed is torch.float32"):
            self.resume(toy_overrides, path, tmp_path / "run")

    @pytest.mark.parametrize(
        ("key", "entry", "message"),
        [
            (0, {"exp_avg": torch.ones(3)}, r"exp_avg has shape \(3,\), needed is \(.*start_from="),
            (0, {"step": torch.ones(0)}, r"step has shape \(0,\), needed is \(\)"),
            (999, {}, "a state of parameter 999"),
            ("x", {}, "a state of parameter 'x'"),
            (0, None, "a state of parameter 0"),
        ],
    )
    def test_an_optimizer_that_does_not_fit_its_parameters_is_refused(
        self, content: dict[str, Any], key: Any, entry: Any, message: str
    ) -> None:
        """A fused optimizer of PyTorch ends the process with a segmentation fault otherwise."""
        weights = content["state_dict"].items()
        parameters = [part for name, part in weights if "standardize" not in name]  # which are buffers
        check_optimizer_states(content["optimizer_states"], parameters, "a.ckpt")
        content["optimizer_states"][0]["state"][key] = entry
        with pytest.raises(InputError, match=message):
            check_optimizer_states(content["optimizer_states"], parameters, "a.ckpt")

    @pytest.mark.slow
    def test_inside_an_epoch_of_other_batches_no_training_goes_on(
        self, toy_overrides: list[str], content: dict[str, Any], tmp_path: Path
    ) -> None:
        position = content["CaptionDataModule"]
        position.update(epoch=0, batch=3)
        path = changed(content, tmp_path / "a.ckpt", lambda _: position["order"].update(batch_size=99))
        with pytest.raises(InputError, match="^resume= goes on inside an epoch, after batch 3, which was"):
            self.resume([*toy_overrides, "scheduler=warmup_cosine"], path, tmp_path / "run")

    @pytest.mark.slow
    def test_no_path_in_a_file_is_followed(
        self, toy_overrides: list[str], content: dict[str, Any], tmp_path: Path
    ) -> None:
        """A stranger's best_model_path was copied into the run; one inside the folder could delete any file."""
        secret, precious, folder = (
            tmp_path / "secret",
            tmp_path / "precious",
            tmp_path / "run" / "checkpoints",
        )
        secret.write_text("a key")
        precious.write_text("irreplaceable")
        for state in content["callbacks"].values():
            if "dirpath" in state:
                outside = f"{folder}/../../precious"
                state.update(dirpath=str(folder), best_model_path=str(secret), last_model_path=outside)
                state.update(kth_best_model_path=outside, best_k_models={outside: torch.tensor(0.0)})
        path = changed(content, tmp_path / "a.ckpt", lambda _: None)
        (tmp_path / "best.ckpt").symlink_to(secret)  # as a stranger's archive could hold it
        self.resume(toy_overrides, path, tmp_path / "run")
        assert precious.read_text() == "irreplaceable" and secret.read_text() == "a key"
        assert all(b"a key" not in file.read_bytes() for file in folder.iterdir())
        assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("role", ["model", "extractor", "data", "tokenizer"])
def test_a_part_that_is_only_prepared_is_refused(role: str) -> None:
    options = {"_target_": "captioning.models.RawFeatures", "_partial_": True}
    with pytest.raises(InputError, match=f"only prepares its {role}"):
        build(options, role)


def test_one_trusted_package_may_be_given_without_a_list() -> None:
    check_target("my_package.models.Mine", "model", "my_package")
    with pytest.raises(InputError, match=r"give trust=\[my_package\]"):
        check_target("my_package.models.Mine", "model")
