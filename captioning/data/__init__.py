"""Annotation files and the feature cache to batches of padded captions."""

from captioning.data.datamodule import CaptionDataModule
from captioning.data.dataset import Batch, CaptionDataset, ImageDataset, LengthBuckets, collate

__all__ = ["Batch", "CaptionDataModule", "CaptionDataset", "ImageDataset", "LengthBuckets", "collate"]
