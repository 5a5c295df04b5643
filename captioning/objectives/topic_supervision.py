"""What topic-guided attention learns from: words, topics and attributes of the training captions.

    loss = mean over captions of sum_t NLL_t + lambda_c * coverage
           + lambda_T * KL(theta || softmax(topic logits)) + lambda_A * sum of the attributes' cross-entropies

theta are the LDA topics of the image's training captions; an attribute is present where one of them has the
word (the authors' code looks at the first caption only, and its coverage target is 16/196). Both are targets
of heads that see the image alone; nothing here is called in evaluation, and only training captions come in
(`prepare`), so that no reference caption can reach a prediction.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.data.topics import TopicModel
from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.objectives.doubly_stochastic import DoublyStochastic
from captioning.vocabulary import tokenize

log = logging.getLogger(__name__)


class TopicGuidedObjective:
    """Captions, their coverage, topics and attributes.

    Args:
        captions: cross-entropy with its coverage term.
        topic_weight: lambda_T.
        attribute_weight: lambda_A.
        passes: see `TopicModel`.
        stop_words: see `TopicModel`.
        seed: see `TopicModel`.
    """

    def __init__(
        self,
        *,
        captions: DoublyStochastic,
        topic_weight: float,
        attribute_weight: float,
        passes: int,
        stop_words: bool,
        seed: int,
    ) -> None:
        self.captions = captions
        self.topic_weight, self.attribute_weight = topic_weight, attribute_weight
        self.passes, self.stop_words, self.seed = passes, stop_words, seed
        self._references: dict[str, Sequence[str]] = {}
        self._words: list[str] = []
        self._rows: dict[str, int] = {}
        self._theta = self._present = torch.empty(0)

    def prepare(self, references: Mapping[str, Sequence[str]], words: Sequence[str]) -> None:
        """Keep the training captions by image id, and the vocabulary's words."""
        self._references, self._words = dict(references), list(words)
        self._rows = {image_id: row for row, image_id in enumerate(self._references)}
        self._theta = torch.empty(0)

    def __call__(self, model: CaptionModel, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss; `topic_kl` in nats, `attribute_nll` in nats summed over attributes.

        Raises:
            InputError: the model predicts no topics.
        """
        output = model(batch.features, batch.tokens[:, :-1], batch.mask)
        memory = output.memory
        if not hasattr(memory, "topic_logits"):
            raise InputError("objective=topic_guided needs model=topic_guided, which predicts topics")
        terms = self.captions.of_output(model, batch, output)
        theta, present = self._targets(batch, model, memory.topic_logits.shape[1])
        log_topics = memory.topic_logits.float().log_softmax(-1)
        kl = functional.kl_div(log_topics, theta, reduction="batchmean")
        attributes = functional.binary_cross_entropy_with_logits(
            memory.attribute_logits.float(), present, reduction="none"
        ).sum(1).mean()  # fmt: skip
        loss = terms["loss"] + self.topic_weight * kl + self.attribute_weight * attributes
        return {**terms, "loss": loss, "topic_kl": kl.detach(), "attribute_nll": attributes.detach()}

    def _targets(self, batch: Batch, model: Any, topics: int) -> tuple[Tensor, Tensor]:
        """Look up topics (B, topics) and attributes (B, attributes) of the batch's images."""
        if self._theta.shape[1:] != (topics,):
            self._learn(topics, range(*model.attribute_ids))
        rows = [self._rows[image_id] for image_id in batch.image_ids]
        device = batch.features.device
        return self._theta[rows].to(device), self._present[rows].to(device, torch.float32)

    def _learn(self, topics: int, attribute_ids: range) -> None:
        """Fit the topics, and note which attribute words each training image's captions have."""
        documents = list(self._references.values())
        log.info("fitting %d topics to the captions of %d training images", topics, len(documents))
        fitted = TopicModel(
            documents,
            self._words,
            num_topics=topics,
            passes=self.passes,
            stop_words=self.stop_words,
            seed=self.seed,
        )
        self._theta = torch.from_numpy(fitted(documents))
        columns = {self._words[index]: column for column, index in enumerate(attribute_ids)}
        present = np.zeros((len(documents), len(columns)), dtype=bool)
        for row, captions in enumerate(documents):
            for word in {word for caption in captions for word in tokenize(caption)} & columns.keys():
                present[row, columns[word]] = True
        self._present = torch.from_numpy(present)
