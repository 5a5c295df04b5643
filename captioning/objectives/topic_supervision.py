"""Supervision of topic-guided attention by words, topics and attributes (Zhu et al. 2018).

    loss = mean over captions of sum_t NLL_t + lambda_c * coverage
           + lambda_T * KL(theta || softmax(topic logits)) + lambda_A * sum of the attributes' cross-entropies

theta are the LDA topics of the image's training captions; an attribute is present where one of them has the
word (the authors' code reads the first caption only, and its coverage target is 16/196). Both are
targets of heads that see the image alone. They are made from the training captions that `prepare` receives,
and nothing here is called in evaluation, so no reference caption can reach a prediction.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.objectives.base import Objective, Terms, TrainingData, check_range, teacher_force
from captioning.objectives.doubly_stochastic import DoublyStochastic
from captioning.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# From documents, each the captions of one image, to their topics (documents, topics), each row with the sum
# 1.
InferTopics = Callable[[Iterable[Sequence[str]]], np.ndarray]


class TopicSupervision(Objective):
    """Cross-entropy with coverage, and the losses of the topic and attribute heads.

    Args:
        captions: cross-entropy with its coverage term.
        topic_weight: lambda_T.
        attribute_weight: lambda_A.
        fit_topics: called with documents, the vocabulary and `num_topics`; returns the fitted topics as a
            function of documents, see `TopicModel`.

    Raises:
        InputError: a negative weight.
    """

    needs_attention = True

    def __init__(
        self,
        *,
        captions: DoublyStochastic,
        topic_weight: float,
        attribute_weight: float,
        fit_topics: Callable[..., InferTopics],
    ) -> None:
        check_range("topic_weight", topic_weight, 0)
        check_range("attribute_weight", attribute_weight, 0)
        self.captions = captions
        self.topic_weight, self.attribute_weight = topic_weight, attribute_weight
        self.fit_topics = fit_topics
        self._references: dict[str, Sequence[str]] = {}
        self._vocabulary: Vocabulary
        self._rows: dict[str, int] = {}
        self._theta = self._present = torch.empty(0)

    def check(self, model: CaptionModel, data: TrainingData) -> None:
        """Refuse a model that predicts no topics and attributes.

        Raises:
            InputError: the heads that this objective trains are missing.
        """
        super().check(model, data)
        if not model.predicts_topics:
            raise InputError(
                f"objective=topic_supervision trains the topics that a model predicts, and this "
                f"{type(model).__name__} predicts none; choose model=topic_guided, or another objective"
            )

    def prepare(self, references: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> None:
        """Keep the training captions; topics are fitted at the first batch, when their number is known."""
        self._references, self._vocabulary = dict(references), vocabulary
        self._rows = {image_id: row for row, image_id in enumerate(self._references)}
        self._theta = torch.empty(0)

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `topic_kl` in nats and `attribute_nll` in nats, summed over attributes."""
        cross_entropy = self.captions.cross_entropy
        output = teacher_force(model, batch, cross_entropy.inputs(batch))
        memory = output.memory
        terms = self.captions.of_output(model, batch, output)
        theta, present = self._targets(batch, model, memory.topic_logits.shape[1])
        log_topics = memory.topic_logits.float().log_softmax(-1)  # (B, topics)
        kl = functional.kl_div(log_topics, theta, reduction="batchmean")
        attributes = functional.binary_cross_entropy_with_logits(
            memory.attribute_logits.float(), present, reduction="none"
        ).sum(1).mean()  # fmt: skip
        supervision = self.topic_weight * kl + self.attribute_weight * attributes  # mean over captions
        num_captions = len(batch.tokens)
        return Terms(
            terms.loss + cross_entropy.normalise(supervision * num_captions, terms.num_words, num_captions),
            terms.num_words,
            {**terms.logged, "topic_kl": kl.detach(), "attribute_nll": attributes.detach()},
        )

    def _targets(self, batch: Batch, model: Any, num_topics: int) -> tuple[Tensor, Tensor]:
        """Look up topics (B, topics) and attributes (B, attributes) of the batch's images."""
        if self._theta.shape[1:] != (num_topics,):
            self._make_targets(num_topics, range(*model.attribute_ids))
        rows = [self._rows[image_id] for image_id in batch.image_ids]
        device = batch.features.device
        return self._theta[rows].to(device), self._present[rows].to(device, torch.float32)

    def _make_targets(self, num_topics: int, attribute_ids: range) -> None:
        """Fit the topics, and find which attribute words the captions of each training image have."""
        documents = list(self._references.values())
        log.info("fitting %d topics to the captions of %d training images", num_topics, len(documents))
        infer_topics = self.fit_topics(documents, self._vocabulary, num_topics=num_topics)
        self._theta = torch.from_numpy(infer_topics(documents))  # (images, topics)
        columns = {self._vocabulary.words[index]: column for column, index in enumerate(attribute_ids)}
        present = np.zeros((len(documents), len(columns)), dtype=bool)  # (images, attributes)
        for row, captions in enumerate(documents):
            words = {word for caption in captions for word in self._vocabulary.tokenizer(caption)}
            for word in words & columns.keys():
                present[row, columns[word]] = True
        self._present = torch.from_numpy(present)
