"""Topics of captions: latent Dirichlet allocation (Blei et al. 2003) over TRAINING captions.

One document is all captions of an image as a bag of vocabulary words (Zhu et al. 2018). The fit is
scikit-learn's variational one where the authors sampled; it comes with the extra `topics`.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from captioning.errors import InputError
from captioning.vocabulary import SPECIAL_WORDS, Vocabulary


class TopicModel:
    """Topics fitted to documents, each the captions of one image.

    Args:
        documents: the captions of each training image.
        vocabulary: words that it lacks are ignored.
        num_topics: 80 in the authors' code.
        passes: passes of the variational fit over all documents.
        stop_words: leave out scikit-learn's English stop words; the authors' code keeps them.
        seed: seeds the fit.

    Raises:
        InputError: scikit-learn is not installed, or no word is left.
    """

    def __init__(
        self,
        documents: Iterable[Sequence[str]],
        vocabulary: Vocabulary,
        *,
        num_topics: int,
        passes: int,
        stop_words: bool,
        seed: int,
    ) -> None:
        try:
            from sklearn.decomposition import LatentDirichletAllocation
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
        except ImportError as error:
            raise InputError(
                "topics need scikit-learn: pip install scikit-learn, or the extra `topics` of this project"
            ) from error
        left_out = ENGLISH_STOP_WORDS if stop_words else frozenset()
        kept = [word for word in vocabulary.words[len(SPECIAL_WORDS) :] if word not in left_out]
        # The tokenizer lower-cases; scikit-learn must neither do so again nor apply its own word pattern.
        self._vectorizer = CountVectorizer(
            vocabulary=kept, tokenizer=vocabulary.tokenizer, token_pattern=None, lowercase=False
        )
        if not kept:
            raise InputError(
                f"none of the {len(vocabulary)} words is left for topics; needed is a larger "
                "vocabulary or objective.fit_topics.stop_words=false"
            )
        self._topics = LatentDirichletAllocation(num_topics, max_iter=passes, random_state=seed)
        self._topics.fit(self._count(documents))

    def __call__(self, documents: Iterable[Sequence[str]]) -> np.ndarray:
        """Infer the topics of documents: (documents, topics) float32, each row sums to one."""
        return self._topics.transform(self._count(documents)).astype(np.float32)

    def _count(self, documents: Iterable[Sequence[str]]) -> np.ndarray:
        return self._vectorizer.transform(" ".join(captions) for captions in documents)
