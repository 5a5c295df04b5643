"""A checkpoint and photographs in, captions out.

    captioner = load("runs/flickr8k/...")
    caption = captioner("dog.jpg")
    caption.text, caption.words, caption.attention, caption.log_prob, caption.alternatives

The checkpoint says which extractor its features came from, so that nothing else is needed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
import yaml
from PIL import Image

from captioning import checkpoint
from captioning.decoding import Decoded, Ensemble, alternatives, words_to_ids
from captioning.errors import InputError
from captioning.features import RegionFeatures, check_provenance, read_image
from captioning.files import CONF
from captioning.models.base import CaptionModel
from captioning.vocabulary import Vocabulary

Decoder = Callable[..., Decoded]
Picture = str | Path | Image.Image


class Caption(NamedTuple):
    """One caption.

    text: the words joined.
    words: T words.
    attention: (T, R) where the model looked for each word, or None.
    log_prob: of the whole caption, in nats.
    alternatives: further hypotheses or samples of this picture, best first: texts and log-probabilities.
    boxes: (R, 4) x1 y1 x2 y2 of detector regions as fractions of the picture, or None for a grid.
    grid: rows and columns of the grid that the R regions are, or None for detector regions.
    image_size: height and width in pixels of what the extractor saw.
    """

    text: str
    words: list[str]
    attention: np.ndarray | None
    log_prob: float
    alternatives: tuple[tuple[str, float], ...]
    boxes: np.ndarray | None
    grid: tuple[int, int] | None
    image_size: tuple[int, int]


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
        self.decoding = decoder(decoding, vocabulary)

    @overload
    def __call__(
        self, images: Picture, *, batch_size: int = 16, decoding: Any = None, **options: Any
    ) -> Caption: ...

    @overload
    def __call__(
        self, images: Iterable[Picture], *, batch_size: int = 16, decoding: Any = None, **options: Any
    ) -> list[Caption]: ...

    def __call__(
        self,
        images: Picture | Iterable[Picture],
        *,
        batch_size: int = 16,
        decoding: Any = None,
        **options: Any,
    ) -> Caption | list[Caption]:
        """Caption one picture, or a list of them.

        Args:
            images: paths or PIL images.
            batch_size: pictures captioned at once.
            decoding: another decoder than the predictor's own; see `decoder`.
            options: of the decoder that is named, such as `num_best=3`.

        Raises:
            InputError: a picture that cannot be read, or options that the decoder refuses.
        """
        if isinstance(images, (str, Path, Image.Image)):
            return self([images], decoding=decoding, **options)[0]
        chosen = self.decoding
        if decoding is not None or options:
            chosen = decoder("beam" if decoding is None else decoding, self.vocabulary, **options)
        pictures = list(images)
        return [
            caption
            for start in range(0, len(pictures), batch_size)
            for caption in self._caption(pictures[start : start + batch_size], chosen)
        ]

    @torch.no_grad()
    def _caption(self, images: Sequence[Picture], decoding: Decoder) -> list[Caption]:
        opened = (image if isinstance(image, Image.Image) else read_image(image) for image in images)
        pixels = torch.stack([self.extractor.transform(image) for image in opened])  # (B, 3, H, W)
        regions = RegionFeatures.of(self.extractor(pixels.to(self.device)))
        # The cache holds float16, so that is what the model was trained on.
        decoded = decoding(self.model, regions.features.half(), regions.mask)
        return [self._row(decoded, regions, row) for row in range(len(images))]

    def _row(self, decoded: Decoded, regions: RegionFeatures, row: int) -> Caption:
        words = self.vocabulary.split(decoded.tokens[row].tolist())
        count = regions.features.shape[1] if regions.counts is None else int(regions.counts[row])
        attention = None
        if decoded.attention is not None:
            attention = decoded.attention[row, : len(words), :count].float().cpu().numpy()
        return Caption(
            text=" ".join(words),
            words=words,
            attention=attention,
            log_prob=float(decoded.log_probs[row].sum()),
            alternatives=alternatives(decoded, self.vocabulary, row),
            boxes=None if regions.boxes is None else regions.boxes[row, :count].cpu().numpy(),
            grid=self.extractor.grid,
            image_size=self.extractor.image_size,
        )


def load(
    path: str | Path | Sequence[str | Path],
    *,
    decoding: str | Mapping[str, Any] | Decoder = "beam",
    weights: str | None = None,
    trust: Sequence[str] = (),
    model_options: Mapping[str, Any] | None = None,
) -> Predictor:
    """Load a captioner from a checkpoint, or from several as an ensemble.

    Args:
        path: checkpoint file or run folder (the best epoch is taken), or a list of them.
        decoding: see `decoder`.
        weights: where the extractor's weights lie now, if they have moved since training.
        trust: packages of your own whose classes the checkpoint may name.
        model_options: see `checkpoint.load`.

    Raises:
        InputError: no such checkpoint, members of different words or features, or extractor weights that are
            missing or have changed.
    """
    loaded = load_members(path, trust=trust, model_options=model_options)
    options = dict(loaded.metadata["features"]["extractor"])
    if weights:
        options["weights"] = weights
    extractor = checkpoint.build(options, "extractor", trust)
    provenance = loaded.metadata["provenance"]
    known = {key: value for key, value in extractor.provenance.items() if key in provenance}
    check_provenance("the checkpoint", provenance, known)
    return Predictor(model=loaded.model, vocabulary=loaded.vocabulary, extractor=extractor, decoding=decoding)


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
        if member.vocabulary.words != first.vocabulary.words:
            raise InputError(f"{name} has other words than {paths[0]}; an ensemble needs one vocabulary")
        check_provenance(name, member.metadata["provenance"], first.metadata["provenance"])
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
