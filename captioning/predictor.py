"""A checkpoint and photographs in, captions out.

    captioner = load("runs/flickr8k/...")
    caption = captioner("dog.jpg")
    caption.text, caption.words, caption.attention, caption.log_prob, caption.alternatives

The checkpoint says which extractor its features came from, so that nothing else is needed.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from captioning import checkpoint, portable
from captioning.decoding import Decoded, Ensemble, alternatives, words_to_ids
from captioning.errors import InputError
from captioning.features import RegionFeatures, check_provenance, is_one_image, kind_of, reread, to_image
from captioning.files import CONF
from captioning.models.base import CaptionModel
from captioning.vocabulary import Vocabulary, printable

log = logging.getLogger(__name__)

Decoder = Callable[..., Decoded]
Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Caption:
    """One caption. In a notebook it shows the photograph and, for each word, where the model looked.

    text: the words put together.
    words: T tokens of the model, as the text shows them: words, characters or parts of words.
    attention: (T, R) where the model looked for each word, or None.
    log_prob: of the whole caption, in nats.
    alternatives: further hypotheses or samples of this picture, best first: texts and log-probabilities.
    boxes: (R, 4) x1 y1 x2 y2 of detector regions as fractions of the picture, or None for a grid.
    grid: rows and columns of the grid that the R regions are, or None for detector regions.
    image_size: height and width in pixels of what the extractor saw.
    source: the photograph's path, or a small JPEG where it came without a file.
    """

    text: str
    words: list[str]
    attention: np.ndarray | None
    log_prob: float
    alternatives: tuple[tuple[str, float], ...]
    boxes: np.ndarray | None
    grid: tuple[int, int] | None
    image_size: tuple[int, int]
    source: str | os.PathLike[str] | bytes

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Caption({self.text!r}, log_prob={self.log_prob:.2f})"

    def photograph(self) -> Image.Image:
        """Return the photograph, RGB; small where it came without a file.

        Raises:
            InputError: its file is no longer there, or cannot be read.
        """
        return to_image(self.source)

    def show(self) -> Any:
        """Draw the photograph once per word with that word's attention: a matplotlib Figure.

        Raises:
            InputError: the model has no attention over regions, or see `photograph`.
        """
        # Matplotlib takes a second to import, and most callers do not draw.
        from captioning.evaluation.visualise import attention_figure

        if self.attention is None:
            raise InputError("this model has no attention over regions to draw")
        parts = {**self._regions(), "title": self.text}
        return attention_figure(self.photograph(), self.words, self.attention, **parts)

    def _repr_html_(self) -> str:
        from captioning.evaluation.attention_html import attention_html

        try:
            image = self.photograph()
        except InputError as error:
            return f"<p>{escape(printable(f'{self.text} ({error})'))}</p>"
        parts = {**self._regions(), "text": self.text, "alternatives": self.alternatives}
        return attention_html(image, self.words, self.attention, **parts)

    def _regions(self) -> dict[str, Any]:
        return {"boxes": self.boxes, "grid": self.grid, "image_size": self.image_size}


class Predictor:
    """Captions photographs with a trained model, on a GPU where there is one.

    Args:
        model: in evaluation mode.
        vocabulary: its words.
        extractor: makes the features that the model was trained on.
        decoding: the decoder that is used unless a call names another; see `decoder`.
    """

    def __init__(
        self,
        *,
        model: CaptionModel,
        vocabulary: Vocabulary,
        extractor: Any,
        decoding: str | Mapping[str, Any] | Decoder = "beam",
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.extractor = model.to(self.device), extractor.to(self.device)
        self.vocabulary = vocabulary
        self.decoding = decoding
        self._decode = decoder(decoding, vocabulary)

    @overload
    def __call__(self, images: Picture, **options: Any) -> Caption: ...

    @overload
    def __call__(self, images: Iterable[Picture], **options: Any) -> list[Caption]: ...

    def __call__(
        self,
        images: Picture | Iterable[Picture],
        *,
        batch_size: int = 16,
        decoding: str | Mapping[str, Any] | Decoder | None = None,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
        **options: Any,
    ) -> Caption | list[Caption]:
        """Caption one picture, or several in their order.

        Args:
            images: a path, a file's bytes, an open file, a PIL image, an array (H, W) or (H, W, 1|3|4), or
                a tensor, which may have its channels first; several as any iterable or an array (B, H, W, 3).
            batch_size: pictures captioned at once.
            decoding: another decoder than the captioner's own; see `decoder`.
            progress: wraps the iterable of pictures, such as `tqdm.tqdm` or `rich.progress.track`.
            options: of the decoder, such as `num_best=3`.

        Raises:
            InputError: a picture that cannot be read, or options that the decoder refuses.
        """
        alone = is_one_image(images)
        several: Any = [images] if alone else images
        options |= {"batch_size": batch_size, "decoding": decoding, "progress": progress}
        found = [caption for _, caption in self.stream(several, **options)]
        return found[0] if alone else found

    def stream(
        self,
        images: Iterable[Picture],
        *,
        batch_size: int = 16,
        decoding: str | Mapping[str, Any] | Decoder | None = None,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
        on_error: Callable[[Any, InputError], None] | None = None,
        **options: Any,
    ) -> Iterator[tuple[Any, Caption]]:
        """Caption many pictures; each is yielded with its caption as soon as its batch is done.

        The arguments are those of `__call__`, and `on_error`: it is called with a picture that cannot be read
        and the reason, and the picture is left out. Without it the iteration ends there.
        """
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be a whole number from 1")
        chosen = self._decode
        if decoding is not None or options:
            chosen = decoder(self.decoding if decoding is None else decoding, self.vocabulary, **options)
        # Only one picture is in memory at its full size; a batch holds what the extractor sees of it.
        read = self._read(progress(images), on_error)
        batches = iter(lambda: list(islice(read, batch_size)), [])
        return (pair for batch in batches for pair in self._caption(batch, chosen))

    def _read(
        self, images: Iterable[Any], on_error: Callable[[Any, InputError], None] | None
    ) -> Iterator["_Read"]:
        for number, image in enumerate(images, start=1):
            try:
                rgb = to_image(image, f"picture {number}")
            except InputError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                continue
            yield _Read(image, self.extractor.transform(rgb), reread(image, rgb))

    @torch.no_grad()
    def _caption(self, batch: Sequence["_Read"], decoding: Decoder) -> list[tuple[Any, Caption]]:
        pixels = torch.stack([read.pixels for read in batch])  # (B, 3, H, W)
        regions = RegionFeatures.of(self.extractor(pixels.to(self.device)))
        # The cache holds float16, so that is what the model was trained on.
        decoded = decoding(self.model, regions.features.half(), regions.mask)
        return [(read.image, self._row(decoded, regions, row, read)) for row, read in enumerate(batch)]

    def _row(self, decoded: Decoded, regions: RegionFeatures, row: int, read: "_Read") -> Caption:
        ids = decoded.tokens[row].tolist()
        words = self.vocabulary.pieces(ids)
        count = regions.features.shape[1] if regions.counts is None else int(regions.counts[row])
        attention = None
        if decoded.attention is not None:
            attention = decoded.attention[row, : len(words), :count].float().cpu().numpy()
        return Caption(
            text=self.vocabulary.decode(ids),
            words=words,
            attention=attention,
            log_prob=float(decoded.log_probs[row].sum()),
            alternatives=alternatives(decoded, self.vocabulary, row),
            boxes=None if regions.boxes is None else regions.boxes[row, :count].cpu().numpy(),
            grid=self.extractor.grid,
            image_size=self.extractor.image_size,
            source=read.source,
        )


class _Read(NamedTuple):
    """A picture as it was given, what the extractor sees of it (3, H, W), and what its caption keeps."""

    image: Any
    pixels: Tensor
    source: str | os.PathLike[str] | bytes


def load(
    path: str | Path | Sequence[str | Path] | None = None,
    *,
    decoding: str | Mapping[str, Any] | Decoder | None = None,
    weights: str | None = None,
    trust: Sequence[str] = (),
    model_options: Mapping[str, Any] | None = None,
) -> Predictor:
    """Load a captioner from a checkpoint, or from several as an ensemble.

    Args:
        path: checkpoint, portable file or run folder (the best epoch is taken), or a list of them; None for
            the captioner that comes with the package.
        decoding: see `decoder`; None for the file's own, or `beam`.
        weights: where the extractor's weights lie now, if they have moved since training.
        trust: packages of your own whose classes the checkpoint may name.
        model_options: see `checkpoint.load`.

    Raises:
        InputError: no such checkpoint, members of different words or features, or extractor weights that are
            missing or have changed.
    """
    loaded = load_members(
        portable.default_path() if path is None else path, trust=trust, model_options=model_options
    )
    if path is None:
        summary = loaded.metadata.get("card", {}).get("summary") or ""
        log.warning("this is the captioner that comes with the package. %s", summary)
    extractor = portable.build_extractor(loaded.metadata, weights=weights, trust=trust)
    provenance = loaded.metadata["provenance"]
    known = {key: value for key, value in extractor.provenance.items() if key in provenance}
    check_provenance("the checkpoint", provenance, known)
    return Predictor(
        model=loaded.model,
        vocabulary=loaded.vocabulary,
        extractor=extractor,
        decoding=portable.default_decoding(loaded.metadata) if decoding is None else decoding,
    )


def load_members(
    path: str | Path | Sequence[str | Path],
    *,
    trust: Sequence[str] = (),
    model_options: Mapping[str, Any] | None = None,
) -> checkpoint.Loaded:
    """Load one checkpoint, or several of any families as an ensemble with the first one's metadata.

    Args:
        path: checkpoint file or run folder (the best epoch is taken), or a list of them.
        trust: see `checkpoint.load`.
        model_options: see `checkpoint.load`.

    Raises:
        InputError: no such checkpoint, or members of different words or features.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths:
        raise InputError("an empty list of checkpoints was given; needed is at least one")
    members = [
        checkpoint.load(
            checkpoint.locate(one, first=checkpoint.BEST), trust=trust, model_options=model_options
        )
        for one in paths
    ]
    first = members[0]
    for member, name in zip(members, paths, strict=True):
        if any(member.metadata[part] != first.metadata[part] for part in ("words", "tokenizer")):
            raise InputError(f"{name} has other words than {paths[0]}; an ensemble needs one vocabulary")
        check_provenance(name, member.metadata["provenance"], kind_of(first.metadata["provenance"]))
    if len(members) == 1:
        return first
    return first._replace(model=Ensemble([member.model for member in members]).eval())


def decoder(decoding: str | Mapping[str, Any] | Decoder, vocabulary: Vocabulary, **options: Any) -> Decoder:
    """Build a decoder.

    Args:
        decoding: an option of `conf/decoding`, such as `greedy` or `beam`; plain options with `_target_`; or
            a function (model, features, mask) -> Decoded, which is returned as it is.
        vocabulary: turns required, forbidden and first words into ids.
        options: replace options of the same name.

    Raises:
        InputError: no such decoder or option, or a word that the vocabulary lacks.
    """
    if callable(decoding):
        if options:
            raise InputError(f"{', '.join(options)}: options go with the name of a decoder, not a function")
        return decoding
    plain = decoding_options(decoding) if isinstance(decoding, str) else dict(decoding)
    if unknown := [name for name in options if name not in plain]:
        known = ", ".join(name for name in plain if not name.startswith("_"))
        raise InputError(f"decoding has no option {unknown[0]!r}; it has {known}")
    return checkpoint.build(words_to_ids({**plain, **options}, vocabulary), "decoder")


def decoding_options(name: str) -> dict[str, Any]:
    """Read an option of `conf/decoding`, with what it inherits.

    Raises:
        InputError: there is none of that name.
    """
    folder = CONF / "decoding"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise InputError(f"there is no decoding {name!r}; there are {', '.join(names)}")
    options = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    inherited: dict[str, Any] = {}
    for parent in options.pop("defaults", []):
        inherited |= decoding_options(parent)
    return {**inherited, **options}
