"""One caption for one photograph, in whatever form it is handed over; many in batches; what a notebook shows."""

import base64
import html.parser
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import captioning
from captioning import checkpoint
from captioning.errors import InputError
from captioning.evaluation.attention_html import attention_html, joined
from captioning.features import Backbone, to_image
from captioning.features.file_kinds import describe_content, is_url
from captioning.files import PHOTOGRAPHS
from captioning.predictor import Caption, Predictor, decoding_options
from captioning.tokenizers import Characters, Subwords, Words
from captioning.vocabulary import SPECIAL_WORDS

WORDS = [*SPECIAL_WORDS, "a", "there", "is", "yellow", "red", "dog", "on", "grass", "<b>", "caf\xe9"]
EXTRACTOR = {
    "architecture": "resnet18",
    "node": "layer2",
    "weights": "random",
    "image_size": [64, 64],
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
MODEL = {
    "_target_": "captioning.models.ShowAttendTell",
    "encoder": {"_target_": "captioning.models.RawFeatures", "feature_dim": 128},
    "attention": {
        "_target_": "captioning.models.SoftAttention",
        "_partial_": True,
        "attention_dim": 8,
        "deep_keys": True,
    },
    "embedding_dim": 9,
    "hidden_dim": 10,
    "dropout": 0.0,
    "vocabulary_size": len(WORDS),
}


def write_run(folder: Path, model: dict[str, Any] = MODEL, **parts: Any) -> Path:
    """A run folder whose model has random weights, so that nothing need be trained."""
    torch.manual_seed(3)
    built = checkpoint.build(model, "model")
    state = {f"model.{name}": 2 * value for name, value in built.state_dict().items()}
    metadata = {
        "format": checkpoint.FORMAT,
        "model": model,
        "words": WORDS,
        "tokenizer": Words().options(),
        "provenance": Backbone(**EXTRACTOR).provenance,
        "features": {"extractor": {"_target_": "captioning.features.Backbone", **EXTRACTOR}, "path": "f.h5"},
        **parts,
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"captioning": metadata, "state_dict": state}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def captioner(run_folder: Path) -> Predictor:
    return captioning.load(run_folder, decoding={**decoding_options("beam"), "max_words": 6})


def photograph(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture with a gradient and a bright corner, so that turning or inverting it changes it."""
    values = np.random.default_rng(seed).integers(0, 80, (size[1], size[0], 3))
    values[:, :, 0] += np.linspace(0, 150, size[0]).astype(int)
    values[: size[1] // 2, : size[0] // 2] += 40
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        photograph(seed).save(path)
    return paths


@pytest.mark.slow
def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(captioning.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [example] = re.findall("```python\n(.*?)```", readme, re.DOTALL)
    for name in ("dog", "a", "b"):
        shutil.copyfile(PHOTOGRAPHS / "dog.jpg", tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)
    assert found["caption"].text in capsys.readouterr().out


def test_words_without_spaces_stand_together_in_a_notebook() -> None:
    shown = attention_html(photograph(), ["mäd", "chen", "läuft"], None, text="mädchen läuft")
    assert "<p>mädchen läuft</p>" in shown and 'aria-label="Caption: mädchen läuft"' in shown
    assert joined("mädchen läuft", ["mäd", "chen", "läuft"]) == [False, True, False]
    assert joined("一只狗", list("一只狗")) == [False, True, True]


def test_a_caption_has_its_tokens_as_the_text_shows_them(tmp_path: Path) -> None:
    subwords = Subwords()
    words = subwords.build(["a yellow dog", "a yellow cat"] * 3, size=len(WORDS) - 4, min_count=1)
    assert len(words) == len(WORDS) - 4
    parts = {"words": [*SPECIAL_WORDS, *words], "tokenizer": subwords.options()}
    caption = captioning.load(write_run(tmp_path / "run", **parts), decoding="greedy")(photograph())
    assert caption.words and caption.text.replace(" ", "") == "".join(caption.words)
    assert "▁" not in caption.text and caption.attention.shape[0] == len(caption.words)


def test_members_of_an_ensemble_share_their_tokenizer(run_folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "run", tokenizer=Characters().options())
    with pytest.raises(InputError, match="an ensemble needs one vocabulary"):
        captioning.load([run_folder, other])


def test_the_example_of_the_documentation_runs(
    run_folder: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(paths[0].parent)
    captioner = captioning.load(run_folder)
    caption = captioner("0.png")
    assert caption.text == " ".join(caption.words) and caption.words and caption.log_prob < 0
    assert caption.attention is not None and caption.attention.shape == (len(caption.words), 64)
    assert caption.alternatives == ()
    assert caption._repr_html_().startswith('<div class="captioning"')
    one, two = captioner(["0.png", "1.png"], batch_size=16, decoding="beam", num_best=3)
    assert one.text == caption.text and len(one.alternatives) == len(two.alternatives) == 2


def test_without_a_path_the_captioner_of_the_package_is_loaded_or_its_lack_explained(
    paths: list[Path],
) -> None:
    from captioning import portable

    if portable.BUNDLED.is_file():
        assert captioning.load()(paths[0]).words
    else:
        with pytest.raises(InputError, match="no captioner comes with this installation"):
            captioning.load()


class TestWhatAPictureIs:
    """Every form of the same picture gives the same pixels."""

    PIXELS = np.asarray(photograph())
    GREY = np.asarray(photograph().convert("L"))

    @pytest.mark.parametrize(
        "form",
        {
            "uint8": lambda p: p,
            "0 to 1": lambda p: p / 255,
            "float16": lambda p: (p / 255).astype(np.float16),
            "0 to 255 as floats": lambda p: p.astype(np.float64),
            "integers": lambda p: p.astype(np.int64),
            "uint16": lambda p: p.astype(np.uint16) * 257,
            "not contiguous": lambda p: np.asfortranarray(p),
            "opaque": lambda p: np.concatenate([p, np.full_like(p[..., :1], 255)], -1),
            "tensor": lambda p: torch.from_numpy(p.copy()),
            "tensor with channels first": lambda p: torch.from_numpy(p.copy()).permute(2, 0, 1),
            "tensor of bfloat16": lambda p: torch.from_numpy(p.copy()).bfloat16(),
            "tensor with a gradient": lambda p: (torch.from_numpy(p / 255)).requires_grad_(),
            "PIL": lambda p: Image.fromarray(p),
            "PIL, transparent": lambda p: Image.fromarray(p).convert("RGBA"),
        }.items(),
        ids=lambda form: form[0],
    )
    def test_arrays_and_pil_images(self, form: tuple[str, Callable[[np.ndarray], Any]]) -> None:
        found = np.asarray(to_image(form[1](self.PIXELS)))
        assert found.shape == (40, 60, 3) and np.abs(found.astype(int) - self.PIXELS).max() <= 1

    @pytest.mark.parametrize(
        "grey",
        [GREY, GREY[..., None], GREY / 255, Image.fromarray(GREY), torch.from_numpy(GREY.copy())[None]],
    )
    def test_grey_pictures(self, grey: Any) -> None:
        found = np.asarray(to_image(grey))
        assert np.abs(found.astype(int) - self.GREY[..., None]).max() <= 1

    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
    )
    def test_pil_images_of_every_mode(self, mode: str, captioner: Predictor) -> None:
        picture = Image.new(mode, (9, 7)) if mode in ("PA", "I;16") else photograph().convert(mode)
        assert to_image(picture).mode == "RGB" and captioner(picture).words is not None

    def test_transparent_pixels_are_white(self) -> None:
        values = np.zeros((5, 6, 4), np.uint8)
        assert (np.asarray(to_image(values)) == 255).all()

    def test_black_and_white_masks(self) -> None:
        mask = np.eye(6, dtype=bool)
        assert (np.asarray(to_image(mask))[..., 0] == 255 * np.eye(6)).all()

    def test_values_that_are_not_finite_are_ignored(self) -> None:
        values = self.PIXELS / 255
        values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
        found = np.asarray(to_image(values))
        assert (found[0, 0] == 0).all() and (found[1, 1] == 255).all() and (found[2, 2] == 0).all()
        assert np.abs(found[5:].astype(int) - self.PIXELS[5:]).max() <= 1

    def test_overshoot_of_resizing_is_clipped(self) -> None:
        found = np.asarray(to_image(self.PIXELS / 255 * 1.3 - 0.1))
        assert found.min() == 0 and found.mean() > self.PIXELS.mean() / 2

    def test_bytes_and_open_files(self, paths: list[Path], tmp_path: Path) -> None:
        content = paths[0].read_bytes()
        with paths[0].open("rb") as file:
            file.read()  # it is read from its start all the same
            forms = [content, bytearray(content), memoryview(content), io.BytesIO(content), file]
            for form in [*forms, paths[0], str(paths[0])]:
                assert np.array_equal(np.asarray(to_image(form)), self.PIXELS)

    def test_a_photograph_is_upright_however_it_comes(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # a telephone that was held upright
        photograph().save(tmp_path / "turned.jpg", exif=exif)
        with Image.open(tmp_path / "turned.jpg") as opened:
            for form in (tmp_path / "turned.jpg", (tmp_path / "turned.jpg").read_bytes(), opened):
                assert to_image(form).size == (40, 60)

    @pytest.mark.parametrize(
        ("thing", "message"),
        [
            (None, "the picture is of type NoneType; a picture is a path, the bytes"),
            (3, "is of type int; a picture is a path"),
            (np.zeros((3, 20, 30)), r"shape \(3, 20, 30\); needed is \(H, W\) or"),
            (np.zeros((0, 20)), r"shape \(0, 20\)"),
            (np.zeros((2, 2), complex), "array of complex128; needed are numbers"),
            (np.array([["a", "b"]]), "needed are numbers"),
            (np.full((4, 4, 3), 3000.0), "values from 0 to 3000; needed are 0 to 1 or 0 to 255"),
            (torch.randn(3, 20, 20) * 2, "before any normalisation"),
            (b"", r"the picture is empty \(0 bytes\)"),
            (b"nonsense", "the picture: not a readable image"),
            (io.StringIO("text"), "open as text; open it with mode 'rb'"),
            ("https://example.org/dog.jpg", "is a URL; download it first"),
            (Path("https://example.org/dog.jpg"), "is a URL; download it first"),
            ("data:image/png;base64,iVBO", "is a URL; download it first"),
            ("nowhere.jpg", "nowhere.jpg: no such file"),
            ("nul\0.jpg", "not a readable image"),
        ],
    )
    def test_what_is_no_picture_is_explained(self, thing: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            to_image(thing)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (b"%PDF-1.7\n", "a PDF document; save the page as a picture first"),
            (b"\0\0\0\x20ftypisom\0\0", "a video; save one frame"),
            (b"\0\0\0\x14ftypqt  ", "a video"),
            (b"RIFF\0\0\0\0AVI LIST", "a video"),
            (b"\x1a\x45\xdf\xa3\x9fB", "a video"),
            (b"\0\0\0\x18ftypheic\0\0", "a HEIC photograph, which Pillow cannot read"),
            (b"\0\0\0\x18ftypcrx \0\0", "a camera's raw file"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"<?xml version='1.0'?>\n<svg xmlns=''>", "an SVG drawing"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
            (b"PK\3\4\x14\0", "an archive; unpack it first"),
            (b"%!PS-Adobe-3.0 EPSF", "a PostScript drawing"),
            (b"SQLite format 3\0", "a file of data"),
        ],
    )
    def test_files_of_other_kinds_are_named(self, head: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "thing.jpg").write_bytes(head + bytes(2000))
        for form in (tmp_path / "thing.jpg", head + bytes(2000)):
            with pytest.raises(InputError, match=f": this is {message}"):
                to_image(form)

    def test_pictures_are_not_taken_for_other_kinds(self, paths: list[Path]) -> None:
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
            buffer = io.BytesIO()
            photograph().save(buffer, kind)
            assert describe_content(buffer.getvalue()[:1024]) is None
        assert not is_url("C:\\photographs\\a.jpg") and not is_url("dir/http.jpg") and not is_url("a:b.jpg")

    def test_what_a_pipe_holds_is_read_once(self, paths: list[Path], captioner: Predictor) -> None:
        code = f"import sys; sys.stdout.buffer.write(open({str(paths[0])!r}, 'rb').read())"
        with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            caption = captioner(f"/dev/fd/{process.stdout.fileno()}")
        assert caption.text == captioner(paths[0]).text and caption.photograph().size == (60, 40)


class TestMany:
    def test_batches_say_what_single_pictures_say(self, captioner: Predictor, paths: list[Path]) -> None:
        alone = [captioner(path) for path in paths]
        for batch_size in (2, 16):
            together = captioner(paths, batch_size=batch_size)
            assert [caption.text for caption in together] == [caption.text for caption in alone]
            assert [c.log_prob for c in together] == pytest.approx([c.log_prob for c in alone], rel=1e-4)

    def test_an_array_of_pictures_and_a_generator_are_lists(
        self, captioner: Predictor, paths: list[Path]
    ) -> None:
        pictures = [np.asarray(photograph(seed)) for seed in range(3)]
        expected = [captioner(path).text for path in paths[:3]]
        for several in (np.stack(pictures), torch.from_numpy(np.stack(pictures)), iter(pictures)):
            assert [caption.text for caption in captioner(several)] == expected
        names = np.array([str(path) for path in paths[:3]])
        assert [caption.text for caption in captioner(names)] == expected
        assert captioner([]) == []

    def test_pictures_are_read_a_batch_at_a_time(self, captioner: Predictor) -> None:
        taken: list[int] = []

        def pictures() -> Iterator[Image.Image]:
            for seed in range(7):
                taken.append(seed)
                yield photograph(seed)

        stream = captioner.stream(pictures(), batch_size=2)
        next(stream)
        assert len(taken) == 2

    def test_progress_counts_pictures(self, captioner: Predictor, paths: list[Path]) -> None:
        seen: list[Path] = []

        def count(pictures: Any) -> Iterator[Path]:
            assert len(pictures) == 5
            for picture in pictures:
                yield picture
                seen.append(picture)

        assert len(captioner(paths, batch_size=2, progress=count)) == 5 and seen == paths

    def test_a_bad_picture_is_named_and_can_be_left_out(
        self, captioner: Predictor, paths: list[Path], tmp_path: Path
    ) -> None:
        mixed = [paths[0], tmp_path / "gone.jpg", b"nonsense", paths[1]]
        with pytest.raises(InputError, match="gone.jpg: no such file"):
            captioner(mixed)
        with pytest.raises(InputError, match="picture 2: not a readable image"):
            captioner([paths[0], b"nonsense"])
        left_out: list[Any] = []
        found = captioner.stream(
            mixed, batch_size=3, on_error=lambda picture, error: left_out.append(picture)
        )
        assert [picture for picture, _ in found] == [paths[0], paths[1]] and left_out == mixed[1:3]

    def test_options_go_to_the_decoder(self, run_folder: Path, paths: list[Path]) -> None:
        captioner = captioning.load(run_folder, decoding="diverse_beam")
        assert len(captioner(paths[0]).alternatives) == 2
        assert captioner(paths[0], decoding="greedy").alternatives == ()
        assert captioner(paths[0], prefix=["there", "is"]).text.startswith("there is")
        with pytest.raises(InputError, match="decoding has no option 'beams'"):
            captioner(paths[0], beams=3)
        for wrong in (0, 2.5, True):
            with pytest.raises(InputError, match=f"batch_size={wrong} must be a whole number from 1"):
                captioner(paths, batch_size=wrong)


class Reader(html.parser.HTMLParser):
    """Collects the tags, their attributes and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] == ["style"] else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class TestNotebook:
    def test_every_word_is_a_button_that_says_where_it_looked(
        self, captioner: Predictor, paths: list[Path]
    ) -> None:
        caption = captioner(paths[0], num_best=3)
        reader = Reader(caption._repr_html_())
        assert reader.open == []
        labels = [str(button["aria-label"]) for button in reader.all("button")]
        assert [label.rpartition(": looked at ")[0] for label in labels] == caption.words
        assert reader.all("img")[0]["alt"] == caption.text
        assert "2 alternatives" in reader.text and caption.alternatives[0][0] in reader.text

    def test_nothing_is_asked_of_the_outside_and_nothing_runs(
        self, captioner: Predictor, paths: list[Path]
    ) -> None:
        text = captioner(paths[0])._repr_html_()
        links = re.findall(r"(?:src|href)=\"([^\"]*)|url\(([^)]*)", text)
        assert links and all((one or other).startswith("data:image/") for one, other in links)
        assert "http" not in text and "<script" not in text and not re.search(r"\bon\w+=", text)

    def test_a_large_photograph_makes_small_html(self) -> None:
        noise = Image.effect_noise((1600, 1200), 90).convert("RGB")
        weights = np.random.default_rng(0).random((12, 49))
        text = attention_html(noise, ["word"] * 12, weights, grid=(7, 7), image_size=(224, 224))
        assert len(text) < 150_000  # noise is the worst case; a photograph takes a third

    def test_light_falls_where_the_weight_is(self) -> None:
        weights = np.full((1, 49), 0.001)
        weights[0, 2 * 7 - 1] = 1.0  # second row, last column
        text = attention_html(photograph(size=(70, 70)), ["dog"], weights, grid=(7, 7), image_size=(224, 224))
        assert "dog: looked at the upper right" in text
        shade = re.search(r"url\(data:image/png;base64,([^)]*)", text)
        assert shade is not None
        with Image.open(io.BytesIO(base64.b64decode(shade[1]))) as image:
            alpha = np.asarray(image)[..., 1]
        down, across = np.unravel_index(alpha.argmin(), alpha.shape)
        assert alpha.min() == 0 and alpha.max() > 170 and down < 20 and across > 50

    def test_boxes_and_even_attention_are_described(self) -> None:
        boxes = np.array([[0.0, 0.6, 0.2, 1.0], [0.4, 0.4, 0.6, 0.6], [0, 0, 1, 1], [0, 0, 0.1, 0.1]])
        weights = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
        text = attention_html(photograph(), ["one", "two", "three"], weights, boxes=boxes)
        for expected in (
            "one: looked at the lower left",
            "two: looked at the centre",
            "three: looked at the whole",
        ):
            assert expected in text

    def test_hostile_words_stay_text(self) -> None:
        text = attention_html(photograph(), ["<b>", '"&', "\x1b[2J"], np.ones((3, 4)), grid=(2, 2))
        assert "<b>" not in text and "\x1b" not in text
        assert [b["aria-label"] for b in Reader(text).all("button")][:2] == [
            "<b>: looked at the whole picture",
            '"&: looked at the whole picture',
        ]

    def test_without_attention_the_words_are_plain(self, tmp_path: Path, paths: list[Path]) -> None:
        options = {key: value for key, value in MODEL.items() if key != "attention"}
        run = write_run(tmp_path / "run", {**options, "_target_": "captioning.models.MeanPooled"})
        caption = captioning.load(run)(paths[0])
        reader = Reader(caption._repr_html_())
        assert caption.attention is None and not reader.all("button") and caption.text in reader.text
        with pytest.raises(InputError, match="no attention over regions to draw"):
            caption.show()

    def test_a_photograph_that_has_gone_leaves_the_text(self, captioner: Predictor, tmp_path: Path) -> None:
        photograph().save(tmp_path / "a.png")
        caption = captioner(tmp_path / "a.png")
        (tmp_path / "a.png").unlink()
        assert "no such file" in caption._repr_html_() and "<img" not in caption._repr_html_()

    def test_pictures_without_a_file_are_shown_too(self, captioner: Predictor) -> None:
        caption = captioner(np.asarray(photograph(size=(1500, 1000))))
        assert isinstance(caption.source, bytes) and caption.photograph().size == (640, 427)
        assert "<img" in caption._repr_html_()

    def test_show_draws_a_panel_for_each_word(self, captioner: Predictor, paths: list[Path]) -> None:
        caption = captioner(paths[0])
        titles = [axis.get_title() for axis in caption.show().axes if axis.get_title()]
        assert titles == ["picture", *caption.words]

    def test_printing_it_is_short(self, captioner: Predictor, paths: list[Path]) -> None:
        caption: Caption = captioner(paths[0])
        assert str(caption) == caption.text and repr(caption).startswith(
            f"Caption({caption.text!r}, log_prob=-"
        )
