"""Malformed and hostile checkpoints, given to whoever takes one: right, refused, and nothing is touched.

Every file goes to `load` and a photograph, to `captioning evaluate` and to `resume=` of a training. A folder
of the user's with files of worth lies beside them, and hostile files name it wherever they can.
"""

import copy
import io
import json
import os
import pickle
import random
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from captioning.errors import InputError
from captioning.predictor import load
from tests.faults.children import in_children
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Result, Tally
from tests.faults.training import compare
from tests.faults.world import MODEL, TRAINING, World

MEGABYTES = 3000  # that a command may take beyond what it begins with
VALUES: tuple[Any, ...] = (
    None,
    5,
    -1,
    1.5,
    float("nan"),
    "text",
    "",
    [],
    [1],
    {},
    {"a": 1},
    True,
    10**30,
    "${oc.env:HOME}",
)


class Case(NamedTuple):
    """One file; `write` makes it at a path. What is no fault may lead to another result."""

    name: str
    write: Callable[[Path], None]
    is_fault: bool = True


class Users:
    """The three ways to use a checkpoint, and what each gives with the sound one.

    Args:
        world: with a trained run.
        sound: the run's last checkpoint.
    """

    def __init__(self, world: World, sound: Path) -> None:
        self.world = world
        self.precious = world.folder / "precious"
        self.precious.mkdir()
        for name in ("letter.txt", "made.json", "photo.jpg"):
            (self.precious / name).write_text(f"of worth: {name}")
        self.before = self._contents()
        self.image = sorted((world.root / "toy" / "images").iterdir())[0]
        self.expected: dict[str, Any] = {}
        for name in ("caption", "evaluate", "resume"):
            outcome, message, self.expected[name] = getattr(self, name)(sound)
            if outcome != Outcome.SURVIVED:
                raise RuntimeError(f"{name} fails with a sound checkpoint: {message}")

    def caption(self, path: Path) -> tuple[Outcome, str, Any]:
        """Load it in Python and caption a photograph."""
        torch.manual_seed(0)
        try:
            caption = load(path)(self.image)
        except InputError as error:
            return Outcome.REPORTED, str(error), None
        return Outcome.SURVIVED, "", (caption.text, caption.log_prob)

    def evaluate(self, path: Path) -> tuple[Outcome, str, Any]:
        """Caption and score the validation split."""
        folder = self.world.folder / "evaluated"
        command = self.world.command(
            "evaluate", f"checkpoint={path}", f"output_dir={folder}", before=bound_memory
        )
        outcome, message = command.judge(120)
        found = (folder / "captions.json").read_text() if outcome == Outcome.SURVIVED else None
        self.world.clean("evaluated")
        return outcome, message, found

    def resume(self, path: Path) -> tuple[Outcome, str, Any]:
        """Train for one more epoch."""
        folder = self.world.folder / "resumed"
        options = [
            *self.world.options,
            *TRAINING,
            *MODEL,
            f"hydra.run.dir={folder}",
            "max_epochs=2",
            f"resume={path}",
        ]
        command = self.world.command("train", *options, before=bound_memory)
        outcome, message = command.judge(120)
        found = None
        if outcome == Outcome.SURVIVED:
            found = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        if stolen := [p for p in folder.rglob("*") if p.is_file() and b"of worth" in p.read_bytes()]:
            outcome, message = Outcome.LOST, f"a file of the user's was copied to {stolen[0].name}"
        self.world.clean("resumed")
        return outcome, message, found

    def _contents(self) -> dict[str, str]:
        return {str(p): p.read_text() if p.is_file() else "" for p in sorted(self.precious.rglob("*"))}

    def judge(self, user: str, case: Case, path: Path) -> tuple[Outcome, str]:
        """Let one of the three use a file, then look after the precious folder."""
        outcome, message, found = getattr(self, user)(path)
        if self._contents() != self.before:
            return Outcome.LOST, f"wrote into a folder of the user's, then: {message}"
        if outcome == Outcome.SURVIVED and case.is_fault and compare(self.expected[user], found):
            return Outcome.LOST, f"another result, and nothing says so: {str(found)[:80]}"
        return outcome, message


def bound_memory() -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (MEGABYTES << 20),) * 2)


# --- content ---


def contents(sound: Path, precious: Path, generator: random.Random) -> Iterator[Case]:
    """Change what a checkpoint says."""
    content = torch.load(sound, weights_only=True)

    def change(path: str, value: Any, is_fault: bool = True, name: str = "") -> Case:
        def write(target: Path) -> None:
            tree = copy.deepcopy(content)
            node, *_, last = tree, *path.split("/")
            for key in path.split("/")[:-1]:
                node = node[int(key) if isinstance(node, list) else key]
            if value is ABSENT:
                del node[last]
            else:
                node[int(last) if isinstance(node, list) else last] = (
                    value(node[last]) if callable(value) else value
                )
            torch.save(tree, target)

        shown = name or ("absent" if value is ABSENT else repr(value))
        return Case(f"{path} = {shown:.60}", write, is_fault)

    parts = [*content, *(f"captioning/{key}" for key in content["captioning"])]
    for key in parts:
        yield change(key, ABSENT)
        for value in generator.sample(VALUES, 4):
            yield change(key, value)
    yield from _of_words(change, len(content["captioning"]["words"]))
    yield from _of_weights(change, list(content["state_dict"]))
    yield from _of_options(change, content["captioning"])
    yield from _hostile(change, precious)
    for key in (
        "loops/fit_loop",
        "loops/fit_loop/epoch_progress/current/processed",
        "optimizer_states/0/state",
    ):
        for value in (ABSENT, None, -5, 10**12, "text", {}):
            yield change(key, value)


ABSENT = object()


def _of_words(change: Callable[..., Case], number: int) -> Iterator[Case]:
    changes: dict[str, Callable[[list[str]], Any]] = {
        "too few": lambda words: words[:-1],
        "too many": lambda words: [*words, "more"],
        "backwards": lambda words: words[::-1],
        "one twice": lambda words: [*words[:-1], words[-2]],
        "an empty one": lambda words: [*words[:-1], ""],
        "a number": lambda words: [*words[:-1], 5],
        "half a character": lambda words: [*words[:-1], "\ud800"],
        "a million": lambda words: words * 100_000,
        "a dictionary": lambda words: {str(position): word for position, word in enumerate(words)},
    }
    for name, value in changes.items():
        yield change("captioning/words", value, name=name)
    yield change(f"captioning/words/{number - 1}", "\x1b[31mred\x1b[0m", False)


def _of_weights(change: Callable[..., Case], names: list[str]) -> Iterator[Case]:
    changes: dict[str, Callable[[torch.Tensor], Any]] = {
        "NaN": lambda tensor: torch.full_like(tensor, float("nan")),
        "infinity": lambda tensor: torch.full_like(tensor, float("inf")),
        "cut": lambda tensor: tensor[..., :-1],
        "integers": lambda tensor: tensor.to(torch.int32),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "sparse": lambda tensor: tensor.to_sparse(),
        "four terabytes of one number": lambda tensor: torch.zeros(1).expand(1 << 20, 1 << 20),
        "a list": lambda tensor: tensor.tolist(),
        "meta": lambda tensor: tensor.to("meta"),
    }
    chosen = [name for name in names if name.startswith("model.")]
    for key in (chosen[0], chosen[len(chosen) // 2], chosen[-1]):
        yield change(f"state_dict/{key}", ABSENT)
        for name, value in changes.items():
            yield change(f"state_dict/{key}", value, name=name)
    yield change("state_dict", lambda weights: {**weights, "model.more": torch.zeros(3)}, name="one more")
    yield change("state_dict", lambda weights: dict.fromkeys(weights, 0), name="numbers")
    yield change("state_dict", lambda weights: {5: 1, **weights}, name="a number for a name")


def _of_options(change: Callable[..., Case], metadata: dict[str, Any]) -> Iterator[Case]:
    for key in (key for key, value in metadata["model"].items() if isinstance(value, int)):
        for value in (0, -1, 10**9, 10**30, "text", None, 1.5, [1]):
            yield change(f"captioning/model/{key}", value)
    for value in (0, -3, 100_000, 10**9, [10**9, 10**9], [0, 0], "text", [1, 2, 3]):
        yield change("captioning/features/extractor/image_size", value)
    for part in ("model", "features/extractor", "data/reader", "data", "decoding"):
        yield change(f"captioning/{part}/more", 1)
        for key, value in (
            ("_partial_", True),
            ("_args_", [1]),
            ("_recursive_", False),
            ("_convert_", "all"),
        ):
            yield change(
                f"captioning/{part}/{key}", value, is_fault=key != "_convert_" and key != "_recursive_"
            )
    for key, value in (
        ("batch_size", 10**12),
        ("num_workers", 10**6),
        ("eval_batch_size", -1),
        ("max_words", 10**9),
    ):
        yield change(f"captioning/data/{key}", value, is_fault=False)


TARGETS = (
    "os.system", "builtins.eval", "subprocess.Popen", "shutil.rmtree", "pathlib.Path.unlink", "torch.load", "torch.save",
    "captioning.data.draw_toy", "captioning.files.write_text", "captioning.features.extract", "captioning.train.main",
    "captioning.data.toy.draw_toy", "captioning.data.download.fetch", "captioning.models.base.torch.save", "torch.hub.load",
    "hydra.utils.instantiate", "hydra.utils.get_method", "torch.nn.Module.register_forward_hook", "torch.nn.utils",
    "captioning.models.__builtins__", "torch.nn.modules.module.torch.save", "captioning.data.CaptionDataModule", "", ".",
    "captioning.features.CacheWriter", "captioning.metrics.DocumentFrequencies", "logging.FileHandler", "builtins.open",
)  # fmt: skip


def _hostile(change: Callable[..., Case], precious: Path) -> Iterator[Case]:
    letter = str(precious / "letter.txt")
    arguments: dict[str, dict[str, Any]] = {
        "os.system": {"command": f"touch {precious}/pwned"},
        "subprocess.Popen": {"args": ["touch", f"{precious}/pwned"]},
        "shutil.rmtree": {"path": str(precious)},
        "captioning.data.draw_toy": {"root": str(precious / "toy"), "scenes": {"train": 2}, "seed": 0},
        "captioning.data.toy.draw_toy": {"root": str(precious / "toy"), "scenes": {"train": 2}, "seed": 0},
        "captioning.files.write_text": {"path": letter, "text": "gone"},
        "logging.FileHandler": {"filename": letter, "mode": "w"},
        "builtins.open": {"file": letter, "mode": "w"},
    }
    for target in TARGETS:
        node = {"_target_": target, **arguments.get(target, {})}
        for part in ("model", "features/extractor", "data/reader", "data/prepare", "decoding"):
            yield change(f"captioning/{part}", node)
        yield change("captioning/model/encoder", node)
        yield change("captioning/model/activation", node)
        yield change("captioning/data/reader/root", node)
    sample = {
        "_target_": "captioning.data.sample_captions", "_partial_": True, "number": 1, "val_share": 0.0, "by": "image",
        "seed": 0, "ids_file": letter, "reader": {"_target_": "captioning.data.read_toy", "root": str(precious)},
    }  # fmt: skip
    yield change("captioning/data/reader", sample)
    yield change("captioning/data/reader", {**sample, "reader": {"_target_": "os.remove", "path": letter}})
    yield change("captioning/data/reader/root", str(precious))
    yield change("captioning/data/reader/root", "/dev")
    coco = {"_target_": "captioning.data.read_coco", "_partial_": True, "images": "/", "split": "val"}
    for path in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", letter):
        yield change("captioning/data/reader", {**coco, "annotations": path})
        yield change("captioning/data/features_path", path)
        yield change("captioning/features/extractor/weights", path)
    for key in ("best_model_path", "last_model_path", "kth_best_model_path", "dirpath"):

        def name_letter(callbacks: dict[str, Any], key: str = key) -> dict[str, Any]:
            elsewhere = {"dirpath": "/elsewhere", key: letter, "best_k_models": {letter: torch.tensor(1e9)}}
            return {
                name: {**state, **elsewhere} if "best_model_path" in state else state
                for name, state in callbacks.items()
            }

        yield change("callbacks", name_letter, is_fault=False, name=f"{key} of the user's")


# --- files ---


class Pwn:
    """Pickles to a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def files(sound: Path, precious: Path, generator: random.Random) -> Iterator[Case]:
    """Damage the file itself, or put something else in its place."""
    content = sound.read_bytes()

    def of(name: str, made: bytes | Callable[[], bytes]) -> Case:
        return Case(name, lambda path: path.write_bytes(made() if callable(made) else made) and None)

    for number in range(20):
        yield of(f"truncation {number}", content[: generator.randrange(len(content))])
    for number in range(40):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        yield of(f"flipped bit {number}", bytes(changed))
    yield of("empty", b"")
    yield of("zeros", bytes(len(content)))
    yield of("text", b"no checkpoint")
    yield of("a page", b"<html><body>404</body></html>")
    yield of("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n")
    yield of("a picture", b"\x89PNG\r\n\x1a\n" + bytes(1000))
    pwn = Pwn(f"touch {precious}/pwned")
    yield of("a pickle", pickle.dumps(pwn))
    yield of("a pickle of a command", lambda: _saved({"state_dict": {}, "captioning": pwn}))
    yield of(
        "a pickle of a command, old format",
        lambda: _saved({"captioning": pwn}, _use_new_zipfile_serialization=False),
    )
    yield of("old format", lambda: _saved(torch.load(sound), _use_new_zipfile_serialization=False))
    yield of("a bomb of shared lists", lambda: _saved(_laughs(40)))
    for depth in (500, 50_000):
        nested = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
        yield of(
            f"lists {depth} deep", lambda n=nested: _zip({"archive/data.pkl": n, "archive/version": b"3\n"})
        )
    yield of(
        "an archive that unpacks to 4 GB", lambda: _zip({"archive/data.pkl": bytes(1 << 20)}, times=4096)
    )
    yield of("a compressed archive", lambda: _compressed(content))
    yield of(
        "names with dots", lambda: _zip({f"../../{precious.name}/pwned": b"x", "archive/data.pkl": b"."})
    )
    yield of("an archive of nothing", lambda: _zip({}))
    for instruction, what in ((b"\x8e", "bytes"), (b"\x8d", "text"), (b"\x96", "array")):
        declared = b"\x80\x05" + instruction + (1 << 40).to_bytes(8, "little") + b"."
        yield of(
            f"a pickle that declares a terabyte of {what}", lambda d=declared: _zip({"archive/data.pkl": d})
        )
    yield of("a long integer", lambda: _zip({"archive/data.pkl": b"\x80\x02\x8b\xff\xff\xff\x7f."}))
    yield of("a memo far away", lambda: _zip({"archive/data.pkl": b"\x80\x02]r\xff\xff\xff\xff."}))
    yield Case("a folder", lambda path: path.mkdir())
    yield Case("a dangling link", lambda path: path.symlink_to("nowhere"))


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _laughs(depth: int) -> list[Any]:
    shared: list[Any] = ["ha"]
    for _ in range(depth):
        shared = [shared] * 10
    return shared


def _zip(entries: dict[str, bytes], times: int = 1) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if times > 1 else zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                for _ in range(times):
                    entry.write(content)
    return buffer.getvalue()


def _compressed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


def run(settings: Settings) -> Iterator[Tally]:
    """Give every file to the three who take checkpoints; the slow two get a part of them."""
    world = World(settings.room("checkpoints"))
    world.extract()
    sound = world.train("run", "max_epochs=1") / "checkpoints" / "last.ckpt"
    users = Users(world, sound)
    generator = settings.generator("checkpoints", 0)
    cases = [*contents(sound, users.precious, generator), *files(sound, users.precious, generator)]
    print(f"  {len(cases)} files; undisturbed: {json.dumps(users.expected['caption'])}", flush=True)

    def written(number: int) -> Path:
        path = world.folder / f"case{number}.ckpt"
        cases[number].write(path)
        return path

    def check(number: int) -> tuple[Outcome, str]:
        path = written(number)
        try:
            return users.judge("caption", cases[number], path)
        finally:
            world.clean(path.name)

    def describe(number: int) -> str:
        return f"{number} {cases[number].name}"

    def draw(share: float) -> list[int]:
        number = len(settings.cases(round(len(cases) * share)))
        return (
            [settings.only]
            if settings.only is not None
            else sorted(generator.sample(range(len(cases)), number))
        )

    results = in_children(draw(1.0), check, name=describe, fresh=True, megabytes=MEGABYTES, seconds=60)
    yield Tally("checkpoints: load and caption").take(results)

    def commands(user: str, numbers: list[int]) -> Iterator[Result]:
        for number in numbers:
            path = written(number)
            yield Result(describe(number), *users.judge(user, cases[number], path))
            world.clean(path.name)

    for user in ("evaluate", "resume"):
        yield Tally(f"checkpoints: {user}").take(commands(user, draw(0.2)))
