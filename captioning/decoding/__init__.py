"""From a model to captions: functions (model, features, mask, *, …) -> Decoded, given as Hydra partials."""

from captioning.decoding.decoded import Decoded
from captioning.decoding.sampling import greedy, sample

__all__ = ["Decoded", "greedy", "sample"]
