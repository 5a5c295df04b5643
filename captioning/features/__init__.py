"""Photographs to numbers: frozen backbones, the HDF5 cache of what they see, and how it is filled."""

from captioning.features.backbones import Backbone
from captioning.features.cache import FeatureCache, check_provenance, verify
from captioning.features.extraction import extract
from captioning.features.images import read_image
from captioning.features.writer import CacheWriter

__all__ = ["Backbone", "CacheWriter", "FeatureCache", "check_provenance", "extract", "read_image", "verify"]
