"""Training runs: assembled from a config, run by Lightning, compared at the end of a sweep."""

from captioning.training.assembly import assemble
from captioning.training.averaging import AveragedWeights
from captioning.training.callbacks import ProgressBar, SampleCaptions, TraceShapes, trace_shapes
from captioning.training.checkpoint_io import (
    AtomicCheckpointIO,
    BestCheckpoint,
    EpochCheckpoint,
    MidEpochCheckpoint,
)
from captioning.training.module import CaptioningModule
from captioning.training.run import Run
from captioning.training.schedules import step_decay, warmup_cosine
from captioning.training.sweep import CompareRuns

__all__ = [
    "AtomicCheckpointIO",
    "AveragedWeights",
    "BestCheckpoint",
    "CaptioningModule",
    "CompareRuns",
    "EpochCheckpoint",
    "MidEpochCheckpoint",
    "ProgressBar",
    "Run",
    "SampleCaptions",
    "TraceShapes",
    "assemble",
    "step_decay",
    "trace_shapes",
    "warmup_cosine",
]
