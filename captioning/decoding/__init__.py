"""From a model to captions: functions (model, features, mask, *, …) -> Decoded, given as Hydra partials."""

from captioning.decoding.as_posted import as_posted, exp_multinomial, most_likely
from captioning.decoding.beam import beam_search
from captioning.decoding.consensus import consensus
from captioning.decoding.constraints import Forbidden, MinimumLength, NoRepeatedNgram
from captioning.decoding.decoded import Decoded
from captioning.decoding.ensemble import Ensemble
from captioning.decoding.length import average, gnmt, total
from captioning.decoding.sampling import greedy, sample

__all__ = [
    "Decoded",
    "Ensemble",
    "Forbidden",
    "MinimumLength",
    "NoRepeatedNgram",
    "as_posted",
    "average",
    "beam_search",
    "consensus",
    "exp_multinomial",
    "gnmt",
    "greedy",
    "most_likely",
    "sample",
    "total",
]
