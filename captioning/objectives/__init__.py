"""Training ideas, one file each: callables (model, batch) -> {"loss": …, other scalars to log}."""

from captioning.objectives.cross_entropy import CrossEntropy
from captioning.objectives.doubly_stochastic import DoublyStochastic
from captioning.objectives.hard_attention import HardAttentionObjective
from captioning.objectives.scheduled_sampling import ScheduledSampling
from captioning.objectives.self_critical import SelfCritical
from captioning.objectives.shifted_targets import ShiftedTargets
from captioning.objectives.topic_guided import TopicGuidedObjective

__all__ = [
    "CrossEntropy",
    "DoublyStochastic",
    "HardAttentionObjective",
    "ScheduledSampling",
    "SelfCritical",
    "ShiftedTargets",
    "TopicGuidedObjective",
]
