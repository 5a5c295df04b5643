"""What captions are scored against: a split's references, and the weights of CIDEr-D's n-grams."""

import logging
from pathlib import Path
from typing import NamedTuple

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from captioning import checkpoint
from captioning.data.annotations import Annotated, read_coco
from captioning.errors import InputError
from captioning.metrics import DocumentFrequencies, document_frequencies

log = logging.getLogger(__name__)

_BEST = ("best.ckpt", "last.ckpt")


class References(NamedTuple):
    """What captions are held against.

    name: of data and split.
    records: of the split, by image id.
    training: the captions of each training image, if they are known.
    frequencies: that weigh CIDEr-D's n-grams; None until `with_frequencies`.
    """

    name: str
    records: dict[str, Annotated]
    training: list[tuple[str, ...]]
    frequencies: DocumentFrequencies | None = None

    @classmethod
    def of(cls, name: str, records: list[Annotated], split: str) -> "References":
        """Keep one split's records and the training captions.

        Raises:
            InputError: there is no such split.
        """
        chosen = {record.image_id: record for record in records if record.split == split}
        if not chosen:
            splits = ", ".join(sorted({record.split for record in records})) or "nothing"
            raise InputError(f"{name} has no split {split!r}; it has {splits}: choose one with split=")
        training = [record.captions for record in records if record.split == "train"]
        return cls(f"{name} {split}", chosen, training)

    @property
    def captions(self) -> dict[str, tuple[str, ...]]:
        """Give the reference captions by image id."""
        return {image_id: record.captions for image_id, record in self.records.items()}


def read_references(config: DictConfig) -> References:
    """Read references from a COCO captions file, the data config, or a checkpoint's; without features."""
    if config.references:
        records = read_coco(config.references, config.images or "", config.split)
        return References.of(Path(config.references).name, records, config.split)
    if config.get("data") is not None:
        return References.of(config.data.name, instantiate(config.data.reader)(), config.split)
    if not config.checkpoint:
        raise InputError("no references: give references=captions.json, data=… or checkpoint=…")
    data = checkpoint.read(checkpoint.locate(paths_of(config)[0], _BEST))["captioning"]["data"]
    try:
        return References.of(data["name"], checkpoint.build(data["reader"])(), config.split)
    except (InputError, InstantiationException) as error:
        raise with_remedy(error, own=True) from error


def with_frequencies(config: DictConfig, references: References) -> References:
    """Count or read the document frequencies that weigh CIDEr-D, and save them if asked to.

    Raises:
        InputError: no training captions, or no such file.
    """
    wanted = config.document_frequencies
    if wanted == "training":
        if not references.training:
            raise InputError("document_frequencies=training needs data with training captions; give data=…")
        source = f"{references.name.rpartition(' ')[0]} train"
        frequencies = document_frequencies(references.training, source=source)
    elif wanted:
        try:
            frequencies = DocumentFrequencies.load(wanted)
        except (OSError, ValueError) as error:
            raise InputError(
                f"document_frequencies={wanted} can't be read ({error}); make such a file with "
                "document_frequencies=training save_document_frequencies=<file>"
            ) from error
    else:
        frequencies = document_frequencies(references.captions.values(), source=references.name)
        if len(references.records) == 1:
            log.warning(
                "CIDEr-D of a single image is 0 by its own document frequencies; give "
                "document_frequencies=training or a file"
            )
    if config.save_document_frequencies:
        Path(config.save_document_frequencies).parent.mkdir(parents=True, exist_ok=True)
        frequencies.save(config.save_document_frequencies)
    return references._replace(frequencies=frequencies)


def paths_of(config: DictConfig) -> list[str]:
    """List the checkpoints: one, or the members of an ensemble."""
    given = config.checkpoint
    return [str(path) for path in given] if OmegaConf.is_config(given) else [str(given)]


def with_remedy(error: Exception, own: bool) -> Exception:
    """Say what helps where the checkpoint's own data config doesn't."""
    if not own:
        return error
    said = str(error) if isinstance(error, InputError) else repr(error.__cause__)
    return InputError(
        f"{said}; the checkpoint's data can't be used as it says: give data=… (and features=… if they differ)"
    )
