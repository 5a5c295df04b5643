"""Training objectives, one idea a file: (model, batch) -> the loss and what is logged."""

from captioning.objectives.base import Objective, Terms, TrainingData, teacher_force
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.objectives.doubly_stochastic import DoublyStochastic
from captioning.objectives.focused_attention import FocusedAttention
from captioning.objectives.reinforce import Reinforce
from captioning.objectives.scheduled_sampling import ScheduledSampling
from captioning.objectives.self_critical import SelfCritical
from captioning.objectives.shifted_targets import ShiftedTargets
from captioning.objectives.topic_supervision import TopicSupervision
from captioning.objectives.with_text import WithText

__all__ = [
    "CrossEntropy",
    "DoublyStochastic",
    "FocusedAttention",
    "Objective",
    "Reinforce",
    "ScheduledSampling",
    "SelfCritical",
    "ShiftedTargets",
    "Terms",
    "TopicSupervision",
    "TrainingData",
    "WithText",
    "teacher_force",
]
