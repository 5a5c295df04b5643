"""Caption models: features and the words so far in, scores of the next word out; one file a family."""

from captioning.models.adaptive import AdaptiveAttention
from captioning.models.attentive_translator import AttentiveTranslator
from captioning.models.base import CaptionModel, Output, Step, pick, real_steps
from captioning.models.encoder import FeatureProjection, RawFeatures
from captioning.models.gru_attention import GRUAttention
from captioning.models.hard_attention import HardAttention, SoftAttention
from captioning.models.mean_pooled import MeanPooled
from captioning.models.meshed_memory import MeshedMemory
from captioning.models.show_attend_tell import ShowAttendTell
from captioning.models.topic_guided import TopicGuided
from captioning.models.transformer import Transformer
from captioning.models.up_down import UpDown

__all__ = [
    "AdaptiveAttention",
    "AttentiveTranslator",
    "CaptionModel",
    "FeatureProjection",
    "GRUAttention",
    "HardAttention",
    "MeanPooled",
    "MeshedMemory",
    "Output",
    "RawFeatures",
    "ShowAttendTell",
    "SoftAttention",
    "Step",
    "TopicGuided",
    "Transformer",
    "UpDown",
    "pick",
    "real_steps",
]
