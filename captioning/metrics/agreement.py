"""CIDEr-D of captions against each other: which of several captions of an image the others agree with most.

Devlin et al. (2015) choose among the captions of neighbouring images this way.
"""

from collections.abc import Hashable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from captioning.metrics.cider import CiderD
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.metrics.score import Tokens


def score_agreement(
    groups: Sequence[Sequence[Tokens]], frequencies: DocumentFrequencies
) -> list[NDArray[np.float64]]:
    """Score every caption by its mean CIDEr-D, in [0, 10], against the other captions of its group.

    Args:
        groups: of captions; one that is alone in its group is scored against itself.
        frequencies: weights of the n-grams, such as those of the training captions, so that a group's scores
            do not depend on the other groups.
    """
    keys = [(group, index) for group, captions in enumerate(groups) for index in range(len(captions))]
    others: dict[Hashable, list[Tokens]] = {
        (group, index): [*groups[group][:index], *groups[group][index + 1 :]] or [groups[group][index]]
        for group, index in keys
    }
    scores = CiderD(others, frequencies).scores([((g, i), groups[g][i]) for g, i in keys])
    return np.split(scores, list(accumulate(map(len, groups)))[:-1])
