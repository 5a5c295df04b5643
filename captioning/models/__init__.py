"""Caption models: features and the words so far in, scores of the next word out; one file a family."""

from captioning.models.base import CaptionModel, Output, Step, pick, real_steps
from captioning.models.gru_attention import GRUAttention
from captioning.models.hard_attention import HardAttention, SoftAttention
from captioning.models.show_attend_tell import ShowAttendTell
from captioning.models.up_down import UpDown

__all__ = [
    "CaptionModel",
    "GRUAttention",
    "HardAttention",
    "Output",
    "ShowAttendTell",
    "SoftAttention",
    "Step",
    "UpDown",
    "pick",
    "real_steps",
]
