"""From a model to captions: functions (model, features, mask, *, …) -> Decoded, used as Hydra partials."""

from captioning.decoding.as_posted import argmax_words, decode_as_posted, exp_multinomial
from captioning.decoding.beam import beam_search
from captioning.decoding.constraints import Forbidden, MinimumLength, NoRepeatedNgram
from captioning.decoding.decoded import Decoded, alternatives
from captioning.decoding.ensemble import Ensemble
from captioning.decoding.length import average, gnmt, total
from captioning.decoding.sampling import greedy, sample
from captioning.decoding.words import words_to_ids

__all__ = [
    "Decoded",
    "Ensemble",
    "Forbidden",
    "MinimumLength",
    "NoRepeatedNgram",
    "alternatives",
    "argmax_words",
    "average",
    "beam_search",
    "decode_as_posted",
    "exp_multinomial",
    "gnmt",
    "greedy",
    "sample",
    "total",
    "words_to_ids",
]
