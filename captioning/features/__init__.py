"""Photographs to numbers: frozen backbones, the HDF5 cache of what they see, and how it is filled."""

from captioning.features.backbones import Backbone
from captioning.features.bottom_up import BottomUpFiles
from captioning.features.cache import FeatureCache, check_provenance, verify
from captioning.features.extraction import Seen, extract
from captioning.features.images import read_image
from captioning.features.regions import RegionDetector
from captioning.features.writer import CacheWriter

__all__ = [
    "Backbone",
    "BottomUpFiles",
    "CacheWriter",
    "FeatureCache",
    "RegionDetector",
    "Seen",
    "check_provenance",
    "extract",
    "read_image",
    "verify",
]
