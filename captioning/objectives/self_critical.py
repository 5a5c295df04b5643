"""Self-critical sequence training (Rennie et al., CVPR 2017) with the leave-one-out baseline of Luo (2020).

    loss = - mean over samples k of (r_k - b_k) * sum_t log p(w_t^k)           per_caption
    loss = - sum over samples k of (r_k - b_k) * sum_t log p(w_t^k) / words    per_token

r is CIDEr-D with document frequencies of the training references; END counts as a word in every n-gram,
which keeps captions from ending in "with a". Words are the vocabulary's tokens, not PTB's, in references
and samples alike. The baseline b_k is the mean reward of the image's other samples (`leave_one_out`), or
the reward of the greedy caption in evaluation mode (`greedy`, the original).
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from captioning.data.dataset import Batch, pad_captions
from captioning.decoding import Decoded, greedy, sample
from captioning.errors import InputError
from captioning.metrics import CiderD, DocumentFrequencies
from captioning.models.base import CaptionModel
from captioning.objectives.base import Objective, Terms, TrainingData
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import END, PAD, Vocabulary


class SelfCritical(Objective):
    """Policy gradient of CIDEr-D, optionally mixed with cross-entropy.

    Args:
        num_samples: captions drawn an image; at least 2 with `leave_one_out`.
        baseline: `leave_one_out` or `greedy`.
        max_words: of a drawn caption.
        cross_entropy_share: weight of the cross-entropy of one random training caption an image; the reward
            has the rest. Advantages of CIDEr-D are a few tenths of its 10, so that a small share counts.
        normalisation: of both terms, see `CrossEntropy`.

    Raises:
        InputError: another baseline or normalisation, or too few samples for the baseline.
    """

    needs_trained_model = True

    def __init__(
        self,
        *,
        num_samples: int,
        baseline: str,
        max_words: int,
        cross_entropy_share: float,
        normalisation: str,
    ) -> None:
        if baseline not in ("leave_one_out", "greedy"):
            raise InputError(f"objective.baseline is {baseline!r}; it is leave_one_out or greedy")
        if baseline == "leave_one_out" and num_samples < 2:
            raise InputError(
                f"leave_one_out needs 2 samples an image or more, found num_samples={num_samples}"
            )
        self.num_samples, self.baseline, self.max_words = num_samples, baseline, max_words
        self.cross_entropy_share = cross_entropy_share
        self.cross_entropy = CrossEntropy(normalisation=normalisation)
        self._cider: CiderD | None = None
        self._vocabulary: Vocabulary

    def check(self, model: CaptionModel, data: TrainingData) -> None:
        """Refuse data of which an item is a caption, as well as sampled attention.

        Raises:
            InputError: an image would come up once for each of its captions.
        """
        super().check(model, data)
        if data.train_on != "images":
            raise InputError(
                "self-critical training captions images, and with data.train_on=captions each comes up as "
                "often as it has captions; give data.train_on=images"
            )

    def prepare(self, references: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> None:
        """Count the n-grams of the training references, once."""
        tokens: dict[Hashable, list[list[Hashable]]] = {
            image: [[*vocabulary.tokenizer(text), END] for text in texts]
            for image, texts in references.items()
        }
        frequencies = DocumentFrequencies.of(
            list(tokens.values()), source="training references, END included"
        )
        self._cider, self._vocabulary = CiderD(tokens, frequencies), vocabulary

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `reward`, the mean CIDEr-D times 100, and `nll` if it has a share."""
        drawn = sample(
            model, batch.features, batch.mask, max_words=self.max_words, num_samples=self.num_samples
        )
        draws = [drawn, *drawn.alternatives]
        rewards = torch.stack([self.rewards(batch.image_ids, draw) for draw in draws])  # (N, B)
        advantage = (rewards - self._baseline_rewards(model, batch, rewards)).to(batch.features.device)
        log_probs = torch.stack([draw.log_probs.sum(1) for draw in draws])  # (N, B)
        num_words = torch.stack([(draw.tokens != PAD).sum() for draw in draws]).sum()
        loss = self.cross_entropy.normalise(-(advantage * log_probs).sum(), num_words, log_probs.numel())
        logged = {"reward": 100 * rewards.mean()}
        if self.cross_entropy_share:
            terms = self.cross_entropy(model, self._with_random_caption(batch))
            loss = (1 - self.cross_entropy_share) * loss + self.cross_entropy_share * terms.loss
            logged["nll"] = terms.logged["nll"]
        return Terms(loss, (drawn.tokens != PAD).sum(), logged)

    def rewards(self, image_ids: Sequence[str], decoded: Decoded) -> Tensor:
        """Return the CIDEr-D of each caption (B,); END counts as a word where the caption has one."""
        assert self._cider is not None, "prepare() comes first"
        candidates, words = [], self._vocabulary.words
        for image_id, row in zip(image_ids, decoded.tokens.tolist(), strict=True):
            tokens = [END if index == END else words[index] for index in row if index != PAD]
            candidates.append((image_id, tokens))
        return torch.from_numpy(self._cider.scores(candidates)).float()

    def _with_random_caption(self, batch: Batch) -> Batch:
        """Replace the captions of the batch by a random training caption of each image."""
        drawn = [texts[int(torch.randint(len(texts), ()))] for texts in batch.references]
        captions = [self._vocabulary.encode(text, max_words=self.max_words) for text in drawn]
        return batch._replace(tokens=pad_captions(captions).to(batch.tokens.device))

    def _baseline_rewards(self, model: CaptionModel, batch: Batch, rewards: Tensor) -> Tensor:
        """Return the baseline of every sample, (N, B) or (B,), from the samples' rewards (N, B)."""
        if self.baseline == "leave_one_out":
            return (rewards.sum(0) - rewards) / (len(rewards) - 1)
        training = model.training
        with torch.no_grad():
            best = greedy(model.eval(), batch.features, batch.mask, max_words=self.max_words)
        model.train(training)
        return self.rewards(batch.image_ids, best)
