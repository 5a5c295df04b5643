"""ROUGE-L of each image and its mean (Lin, 2004), as the COCO caption toolkit computes it.

F = (1 + β²) P R / (R + β² P) with β = 1.2, where P is the longest common subsequence over the candidate's
length and R the same over the reference's. P and R are each the largest over the references, which need not
be the same reference. An empty caption counts as one empty word, as the toolkit's splitting makes it: it
scores 1 against an empty reference and 0 against any other.
"""

from collections.abc import Hashable, Sequence

from captioning.metrics.score import Score, Tokens, check_paired

_BETA_SQUARED = 1.2**2
_EMPTY = ("",)


def score_rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Score:
    """Compute ROUGE-L of one candidate per image against that image's references.

    Raises:
        ValueError: The two sequences do not pair up.
    """
    check_paired(candidates, references)
    per_image = [_f_score(tokens, captions) for tokens, captions in zip(candidates, references, strict=True)]
    return Score(sum(per_image) / len(per_image), per_image)


def common_subsequence_lengths(candidate: Tokens, references: Sequence[Tokens]) -> list[int]:
    """Return the length of the longest common subsequence of `candidate` with each of `references`.

    Bit-parallel (Hyyrö, 2004): one pass over the reference's words, on whole integers, computes what the
    textbook computes cell by cell.
    """
    # The positions of each word of the candidate, as bits.
    places: dict[Hashable, int] = {}
    for i, token in enumerate(candidate):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(candidate)) - 1
    lengths = []
    for reference in references:
        # Bit i of the row is 0 where the table's row rises at the candidate's word i.
        row = full
        for token in reference:
            if matches := row & places.get(token, 0):
                row = ((row + matches) | (row - matches)) & full
        lengths.append(len(candidate) - row.bit_count())
    return lengths


def _f_score(candidate: Tokens, references: Sequence[Tokens]) -> float:
    candidate = candidate or _EMPTY
    references = [reference or _EMPTY for reference in references]
    lengths = common_subsequence_lengths(candidate, references)
    precision = max(lengths) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(lengths, references, strict=True))
    if not precision:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)
