"""Images to numbers: frozen networks, the HDF5 cache of their features, and how it is filled."""

from captioning.features.backbone import Backbone
from captioning.features.batches import Extractor, check_names
from captioning.features.bottom_up import BottomUpFiles
from captioning.features.cache import FeatureCache, check_provenance, kind_of
from captioning.features.combined_backbones import CombinedBackbones
from captioning.features.extraction import Report, extract, extract_missing
from captioning.features.frozen import FrozenExtractor
from captioning.features.image_paths import find_images
from captioning.features.image_sources import ImageSource, is_one_image, reread, to_image
from captioning.features.images import read_image
from captioning.features.region_detector import RegionDetector
from captioning.features.region_features import RegionFeatures
from captioning.features.shards import Shard, choose_shards, files_of
from captioning.features.timm_backbone import TimmBackbone
from captioning.features.verification import verify
from captioning.features.writer import CacheWriter

__all__ = [
    "Backbone",
    "BottomUpFiles",
    "CacheWriter",
    "CombinedBackbones",
    "Extractor",
    "FeatureCache",
    "FrozenExtractor",
    "ImageSource",
    "RegionDetector",
    "RegionFeatures",
    "Report",
    "Shard",
    "TimmBackbone",
    "check_provenance",
    "check_names",
    "choose_shards",
    "extract",
    "extract_missing",
    "files_of",
    "find_images",
    "is_one_image",
    "kind_of",
    "read_image",
    "reread",
    "to_image",
    "verify",
]
