"""Caption models: features and the words so far in, scores of the next word out; one file a family."""

from captioning.models.base import CaptionModel, Output, Step, pick, real_steps
from captioning.models.gru_attention import GRUAttention

__all__ = ["CaptionModel", "GRUAttention", "Output", "Step", "pick", "real_steps"]
