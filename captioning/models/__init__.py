"""Caption models: from features and the words so far to scores of the next word; one file per family."""

from captioning.models.adaptive import AdaptiveCaptioner
from captioning.models.attention import SoftAttention
from captioning.models.attentive_translator import AttentiveTranslator
from captioning.models.base import CaptionModel, Output, Step, attention_entropy, pick, real_steps
from captioning.models.encoder import (
    Encoder,
    FeatureProjection,
    RawFeatures,
    Standardize,
    fit_standardization,
)
from captioning.models.gru_attention import CarriedState, GRUAttention, ResetState
from captioning.models.hard_attention import Expectation, HardAttention, MostLikely, SampledRegion
from captioning.models.mean_pooled import MeanPooled
from captioning.models.meshed_memory import MeshedMemory
from captioning.models.show_attend_tell import ShowAttendTell
from captioning.models.topic_guided import TopicGuided
from captioning.models.transformer import Transformer
from captioning.models.up_down import UpDown

__all__ = [
    "AdaptiveCaptioner",
    "AttentiveTranslator",
    "CaptionModel",
    "CarriedState",
    "Encoder",
    "Expectation",
    "FeatureProjection",
    "GRUAttention",
    "HardAttention",
    "MeanPooled",
    "MeshedMemory",
    "MostLikely",
    "Output",
    "RawFeatures",
    "ResetState",
    "SampledRegion",
    "ShowAttendTell",
    "SoftAttention",
    "Standardize",
    "Step",
    "TopicGuided",
    "Transformer",
    "UpDown",
    "fit_standardization",
    "pick",
    "attention_entropy",
    "real_steps",
]
