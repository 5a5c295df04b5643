"""A page that captions photographs: `python -m captioning.app checkpoint=runs/… port=7860`.

The page itself is `page/`; it loads nothing from outside. A photograph is sent to `POST photograph`, which
stores it in a temporary folder and returns a token; gradio's queue then runs `Page.caption` on the token, one
photograph at a time, and the file is removed. Of gradio's other routes none is let through.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "app")  # before the imports that take seconds

import base64
import difflib
import importlib.util
import io
import json
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from captioning.errors import InputError
from captioning.evaluation import grid_margin
from captioning.features import read_image
from captioning.predictor import Caption, Predictor, decoding_options, load

log = logging.getLogger(__name__)

FOLDER = Path(__file__).with_name("page")
EXAMPLES = Path(__file__).with_name("photographs")
NUM_CAPTIONS = 3  # the caption and its alternatives
PREVIEW = 1280  # pixels of the longer side of the picture that the page shows
UPLOAD_SECONDS = 120  # for one photograph
WAITING_SECONDS = 900  # an upload that nobody has asked to caption by then is removed
MAX_BODY = 1 << 16  # bytes of a request that is not a photograph
QUEUE = "/gradio/gradio_api/queue"
LOCAL = ("127.0.0.1", "localhost", "::1")


@command("app")
def main(config: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio, which is not installed: pip install 'captioning[app]'")
    listener = listen(options["host"], options["port"])
    captioner = load(
        options["checkpoint"],
        weights=options["weights"],
        trust=options["trust"],
        model_options=options["model_options"],
    )
    with TemporaryDirectory(prefix="captioning-") as folder:
        uploads = Uploads(
            Path(folder), max_bytes=int(options["max_megabytes"] * 1e6), max_files=options["max_waiting"]
        )
        page = Page(
            captioner, uploads, decoders=options["decoders"], max_pixels=int(options["max_megapixels"] * 1e6)
        )
        serve(build_app(page, options["host"]), listener)


class Uploads:
    """Photographs that wait for their captions in a folder, few enough and not for long.

    Args:
        folder: where they are stored.
        max_bytes: of one file.
        max_files: that wait at once.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_files: int) -> None:
        self.folder, self.max_bytes, self.max_files = folder, max_bytes, max_files
        self._arrived: dict[str, float] = {}  # token: seconds on the monotonic clock

    def reserve(self) -> Path:
        """Return the path for a new upload; its name is the token.

        Raises:
            InputError: too many are waiting.
        """
        for token, arrived in list(self._arrived.items()):
            if time.monotonic() - arrived > WAITING_SECONDS:
                self.remove(token)
        if len(self._arrived) >= self.max_files:
            raise InputError("too many photographs are waiting; try again in a minute")
        token = secrets.token_hex(16)
        self._arrived[token] = time.monotonic()
        return self.folder / token

    def path(self, token: str) -> Path:
        """Return where an upload lies.

        Raises:
            InputError: there is none of this token.
        """
        # Only tokens given out here are known, so that no request can name another file.
        if token not in self._arrived:
            raise InputError("the photograph is no longer here; send it again")
        return self.folder / token

    def remove(self, token: str) -> None:
        if self._arrived.pop(token, None) is not None:
            (self.folder / token).unlink(missing_ok=True)


class Page:
    """What the page asks of the server.

    Args:
        captioner: writes the captions.
        uploads: photographs that wait for them.
        decoders: options of `conf/decoding` with their labels; without a label, an option is not shown.
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
        self.decoders = {name: label for name, label in decoders.items() if label}
        if not self.decoders:
            raise InputError("decoders is empty; the page needs at least one, such as decoders.beam='Most likely'")
        self._options = {name: decoding_options(name) for name in self.decoders}

    def html(self, local: bool) -> str:
        """Write the page; `local` says whether only this computer can reach it."""
        settings = {
            "decoders": [
                {"name": name, "label": label, "required": "required" in self._options[name]}
                for name, label in self.decoders.items()
            ],
            "examples": sorted(path.name for path in EXAMPLES.glob("*.jpg")),
            "maxBytes": self.uploads.max_bytes,
            "numWords": len(self.captioner.vocabulary.words) - 4,
            "local": local,
        }
        text = (FOLDER / "page.html").read_text(encoding="utf-8")
        # `<` could end the script element that holds the settings.
        return text.replace("SETTINGS", json.dumps(settings).replace("<", "\\u003c"))

    def caption(self, token: str, decoding: str, required: str, wording: str) -> dict:
        """Caption an upload and remove it.

        Args:
            token: of the upload.
            decoding: one of the page's decoders.
            required: words that the caption must contain, separated by spaces or commas.
            wording: a caption to show the attention of, in place of a new one; empty for a new one.

        Returns:
            see `answer`, or `error` with a sentence for the user.
        """
        try:
            image = open_photograph(self.uploads.path(token), self.max_pixels)
            caption = self.captioner(image, **self._decoder(decoding, required, wording))
            return answer(caption, image)
        except InputError as error:
            return {"error": str(error)}
        finally:
            self.uploads.remove(token)

    def _decoder(self, decoding: str, required: str, wording: str) -> dict[str, Any]:
        if wording:  # a beam that is led along all its words
            words = wording.split()[: self._options.get("beam", {}).get("max_words", 20)]
            return {"decoding": "beam", "prefix": words, "max_words": len(words) + 1}
        if decoding not in self._options:
            raise InputError(f"there is no decoder {decoding!r} here; there are {', '.join(self._options)}")
        known = self._options[decoding]
        chosen: dict[str, Any] = {"decoding": decoding}
        for count in ("num_best", "num_samples"):
            if count in known:
                chosen[count] = max(NUM_CAPTIONS, known[count])
        if "required" in known:
            chosen["required"] = [self._known(word) for word in required.replace(",", " ").split()]
        return chosen

    def _known(self, word: str) -> str:
        vocabulary = self.captioner.vocabulary
        if word.lower() in vocabulary:
            return word.lower()
        close = difflib.get_close_matches(word.lower(), vocabulary.words[4:], 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"the model does not know the word “{word}”{hint}")
