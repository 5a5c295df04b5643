"""Annotation files and the feature cache to batches of padded captions."""

from typing import TYPE_CHECKING, Any

from captioning.data.annotations import read_coco, read_coco_splits, read_flickr, read_karpathy
from captioning.data.dataset import Batch, CaptionDataset, ImageDataset, collate
from captioning.data.pairs import read_pairs
from captioning.data.places import InstancePlaces, ToyPlaces
from captioning.data.records import Annotated
from captioning.data.samplers import LengthBuckets
from captioning.data.subsample import sample_captions
from captioning.data.topics import TopicModel
from captioning.data.toy import draw_toy, read_toy

if TYPE_CHECKING:
    from captioning.data.datamodule import CaptionDataModule

# The readers, all of which only read: what a checkpoint may name as the source of its data.
READERS = (
    read_coco,
    read_coco_splits,
    read_flickr,
    read_karpathy,
    read_pairs,
    read_toy,
    sample_captions,
)

__all__ = [
    "READERS",
    "Annotated",
    "Batch",
    "CaptionDataModule",
    "CaptionDataset",
    "ImageDataset",
    "InstancePlaces",
    "LengthBuckets",
    "TopicModel",
    "ToyPlaces",
    "collate",
    "draw_toy",
    "read_coco",
    "read_coco_splits",
    "read_flickr",
    "read_karpathy",
    "read_pairs",
    "read_toy",
    "sample_captions",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: Lightning takes two seconds, and captioning a photograph does not need it.
    if name == "CaptionDataModule":
        from captioning.data.datamodule import CaptionDataModule

        return CaptionDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
