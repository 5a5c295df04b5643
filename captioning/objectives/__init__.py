"""Training ideas, one file each: callables (model, batch) -> {"loss": …, other scalars to log}."""

from captioning.objectives.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy"]
