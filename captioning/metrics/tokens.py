"""What scores count: Penn Treebank tokens for English, as papers do; a tokenizer's tokens for others.

The toolkit's tokenizer knows English abbreviations, contractions and quotes. It would make one token of a
Chinese sentence. Scores over different tokens do not compare, so reports name theirs.
"""

from collections.abc import Callable
from typing import NamedTuple

from captioning.metrics.ptb import ptb_tokenize


class ScoredTokens(NamedTuple):
    """How captions are split to be scored.

    unit: what the tokens are called in reports.
    language: of the captions, a code of ISO 639, such as en.
    split: a caption to its tokens.
    """

    unit: str
    language: str
    split: Callable[[str], list[str]]

    @property
    def is_english(self) -> bool:
        """Whether the metrics that know English only can be computed."""
        return self.language == "en"

    def __str__(self) -> str:
        return self.unit if self.is_english else f"{self.unit} (language {self.language})"


PENN_TREEBANK = ScoredTokens("Penn Treebank tokens", "en", ptb_tokenize)


def scored_tokens(language: str, unit: str, split: Callable[[str], list[str]]) -> ScoredTokens:
    """Choose what is scored: `split` and its `unit` where the language is not English."""
    return PENN_TREEBANK if language == "en" else ScoredTokens(unit, language, split)
