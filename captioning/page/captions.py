"""A photograph that was sent -> what the page shows: captions, scores, and where the model looked."""

import base64
import dataclasses
import difflib
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioning.errors import InputError
from captioning.evaluation.attention_html import joined, place
from captioning.evaluation.visualise import heat_map
from captioning.features import read_image
from captioning.features.file_kinds import HEAD, describe_content
from captioning.features.grid import grid_margin
from captioning.page.uploads import Uploads
from captioning.predictor import Caption, Predictor, decoding_options
from captioning.tokenizers import Tokenizer, tokenize
from captioning.vocabulary import SPECIAL_WORDS

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER.parent / "photographs"
NUM_CAPTIONS = 3  # the caption and its alternatives
MAX_WORDS = 50  # of a caption whose attention is asked for
SHADE = 96  # pixels of a shade's longer side; browsers smooth it
DARK, LIT = np.array([8, 8, 14, 184]), np.array([255, 190, 60, 40])  # of a shade: red, green, blue, opacity


class Page:
    """What the page asks of the server.

    Args:
        captioner: writes the captions.
        uploads: photographs that wait for them.
        decoders: options of `conf/decoding`, and `default` (see `own_decoder`), with their labels; one
            without a label is not shown.
        max_pixels: of a photograph.

    Raises:
        InputError: no such decoder.
    """

    def __init__(
        self,
        captioner: Predictor,
        uploads: Uploads,
        *,
        decoders: Mapping[str, str | None],
        max_pixels: int,
    ) -> None:
        self.captioner, self.uploads, self.max_pixels = captioner, uploads, max_pixels
        self.labels = {name: label for name, label in decoders.items() if label}
        if not self.labels:
            raise InputError("decoders is empty; the page needs one, such as decoders.default='Most likely'")
        self._decoders = {
            name: own_decoder(captioner) if name == "default" else decoding_options(name)
            for name in self.labels
        }

    @property
    def files(self) -> dict[str, Path]:
        """What the page loads, by its path below the page's own."""
        files = {name: FOLDER / name for name in ("page.css", "page.js")}
        return files | {f"examples/{path.name}": path for path in sorted(EXAMPLES.glob("*.jpg"))}

    def html(self, *, local: bool) -> str:
        """Write the page.

        Args:
            local: only this computer can reach it.
        """
        settings = {
            "decoders": [
                {"name": name, "label": label, "required": "required" in self._decoders[name]}
                for name, label in self.labels.items()
            ],
            "examples": [name for name in self.files if name.startswith("examples/")],
            "maxBytes": self.uploads.max_bytes,
            "numWords": len(self.captioner.vocabulary) - len(SPECIAL_WORDS),
            "local": local,
        }
        text = (FOLDER / "page.html").read_text(encoding="utf-8")
        # `<` could end the script element that holds the settings.
        return text.replace("SETTINGS", json.dumps(settings).replace("<", "\\u003c"))

    def caption(self, token: str, decoder: str, required: str, wording: str) -> dict:
        """Caption an upload and remove it.

        Args:
            token: of the upload.
            decoder: one of the page's.
            required: words that the caption must contain, separated by spaces or commas.
            wording: a caption to show the attention of, in place of a new one; empty for a new one.

        Returns:
            see `answer`, or `error` with a sentence for the user.
        """
        tokenizer = self.captioner.vocabulary.tokenizer
        try:
            # First, so that a mistake in the words costs no time.
            tokens = tokenizer(wording)[:MAX_WORDS]
            options = self._follow(tokens) if wording else self._choose(decoder, required)
            image = open_photograph(self.uploads.path(token), self.max_pixels)
            caption = self.captioner(image, **options)
            return answer(first_words(caption, tokens, tokenizer) if wording else caption, tokenizer)
        except InputError as error:
            return {"error": str(error)}
        finally:
            self.uploads.remove(token)

    def _follow(self, tokens: Sequence[str]) -> dict[str, Any]:
        wording = self.captioner.vocabulary.tokenizer.join(tokens)
        return {"decoding": "beam", "prefix": [wording], "max_words": len(tokens) + 1}

    def _choose(self, name: str, required: str) -> dict[str, Any]:
        decoder = self._decoders.get(name)
        if decoder is None:
            raise InputError(f"there is no decoder {name!r} here; there are {', '.join(self._decoders)}")
        options: dict[str, Any] = {"decoding": decoder}
        for count in ("num_best", "num_samples"):
            if count in decoder:
                options[count] = max(
                    decoder[count], min(NUM_CAPTIONS, decoder.get("beam_size", NUM_CAPTIONS))
                )
        if "required" in decoder and (words := tokenize(required)):
            options["required"] = [self._known(word) for word in words]
        return options

    def _known(self, word: str) -> str:
        vocabulary = self.captioner.vocabulary
        tokenizer = vocabulary.tokenizer
        if all(token in vocabulary for token in tokenizer(word)):
            return word
        known = [tokenizer.join([token]) for token in vocabulary.words[len(SPECIAL_WORDS) :]]
        close = difflib.get_close_matches(word, known, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"the model does not know the word “{word}”{hint}")


def first_words(caption: Caption, tokens: Sequence[str], tokenizer: Tokenizer) -> Caption:
    """Cut a caption after the given tokens, which it begins with: one that was cut would otherwise go on."""
    attention = caption.attention
    return dataclasses.replace(
        caption,
        text=tokenizer.join(tokens),
        words=caption.words[: len(tokens)],
        attention=None if attention is None else attention[: len(tokens)],
    )


def own_decoder(captioner: Predictor) -> dict[str, Any]:
    """Return the options of the captioner's own decoder if it gives several captions, else of beam search."""
    own = captioner.decoding
    if isinstance(own, str):
        own = decoding_options(own)
    return dict(own) if isinstance(own, Mapping) and "num_best" in own else decoding_options("beam")


def open_photograph(path: Path, max_pixels: int) -> Image.Image:
    """Open an upload as upright RGB.

    Raises:
        InputError: it is not a photograph, or one of more than `max_pixels`, which is not decoded.
    """
    num_pixels = count_pixels(path)
    if num_pixels is not None and num_pixels > max_pixels:
        raise InputError(
            f"the photograph has more than {max_pixels / 1e6:g} million pixels; make it smaller, then send it"
        )
    try:
        return read_image(path)
    except InputError as error:  # its text names the temporary file
        with path.open("rb") as file:
            kind = describe_content(file.read(HEAD))
        if kind:
            raise InputError(f"this file is {kind}") from error
        if num_pixels is None:
            raise InputError("this file is not a picture; needed is a JPEG, PNG or WebP") from error
        raise InputError("the photograph is damaged: not all of it can be read") from error


def count_pixels(path: Path) -> float | None:
    """Read the number of pixels from a picture's header; None where that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on large pictures
        try:
            with Image.open(path) as image:
                return image.width * image.height
        except Image.DecompressionBombError:
            return math.inf
        except Exception:  # the decoders of Pillow raise anything; some of it does not matter to `read_image`
            return None


def answer(caption: Caption, tokenizer: Tokenizer) -> dict[str, Any]:
    """Turn a caption into what the page shows, in texts and numbers.

    text, words: of the caption.
    joined: for each word whether no space stands before it.
    score: mean probability of its words; see `score`.
    alternatives: text and score of each further caption.
    shades: for each word a picture to lay over the photograph, or null without attention.
    places: for each word where the model looked, in words.
    preview: the upright photograph, small. Pictures are data URLs.
    """
    photograph = caption.source
    assert isinstance(photograph, bytes), (
        "of a picture that came without a file, a caption keeps a small JPEG"
    )
    shades, places = [], []
    if caption.attention is not None:
        width, height = caption.photograph().size
        scale = SHADE / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        boxes, grid = caption.boxes, caption.grid
        margin = grid_margin(caption.image_size, grid) if grid else (0.0, 0.0)
        heats = [
            heat_map(size, weights, boxes=boxes, grid=grid, margin=margin) for weights in caption.attention
        ]
        shades = [data_url(shade(heat), "png") for heat in heats]
        places = [place(weights, heat) for weights, heat in zip(caption.attention, heats, strict=True)]
    return {
        "text": caption.text,
        "words": caption.words,
        "joined": joined(caption.text, caption.words),
        "score": score(len(caption.words), caption.log_prob),
        "alternatives": [
            {"text": text, "score": score(len(tokenizer(text)), log_prob)}
            for text, log_prob in caption.alternatives
        ],
        "shades": None if caption.attention is None else shades,
        "places": places,
        "preview": data_url(photograph, "jpeg"),
    }


def score(num_words: int, log_prob: float) -> float:
    """Geometric mean of the probabilities of the words and of the caption's end."""
    return math.exp(log_prob / (num_words + 1))


def shade(heat: np.ndarray) -> bytes:
    """Draw, as PNG, what darkens the photograph where heat (H, W) is 0 and tints it where it is 1."""
    pixels = DARK + (LIT - DARK) * heat[..., None]  # (H, W, 4)
    file = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
