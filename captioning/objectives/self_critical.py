"""Self-critical sequence training (Rennie et al., CVPR 2017) with the leave-one-out baseline of Luo (2020).

    loss = - mean over samples k of (r_k - b_k) * sum_t log p(w_t^k)           per_caption
    loss = - sum over samples k of (r_k - b_k) * sum_t log p(w_t^k) / words    per_token

r is CIDEr-D with document frequencies of the training references; END counts as a word in every n-gram,
which keeps captions from ending in "with a". Words are the vocabulary's tokens, not PTB's, in references
and samples alike. The baseline b_k is the mean reward of the image's other samples (`leave_one_out`), or
the reward of the greedy caption (`greedy`, the original).

Captions are drawn without a graph; one teacher-forced pass over all of them then gives log p its gradient.
Both run in evaluation mode: with dropout, the second pass would drop other units than the first, and words
would be scored by another distribution than the one they were drawn from. So what is raised is the expected
reward of the model as it will be used. Dropout still acts on the cross-entropy that is mixed in.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.data.dataset import Batch, pad_captions
from captioning.decoding import Decoded, greedy, sample
from captioning.decoding.decoded import word_log_probs
from captioning.errors import InputError
from captioning.metrics import CiderD, DocumentFrequencies
from captioning.models.base import CaptionModel, pick
from captioning.objectives.base import Objective, Terms, TrainingData, check_range
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import END, PAD, START, Vocabulary

CAPTIONS_AT_ONCE = 64  # captions that are scored together


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
        InputError: another baseline or normalisation, no share, or too few samples for the baseline.
    """

    needs_trained_model = True
    # The policy gradient is still to be computed when the cross-entropy is recorded; that fails (torch 2.11).
    can_be_recorded = False

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
        check_range("cross_entropy_share", cross_entropy_share, 0, 1)
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
        with _evaluating(model):
            with torch.no_grad():
                drawn = sample(
                    model, batch.features, batch.mask, max_words=self.max_words, num_samples=self.num_samples
                )
                draws = [drawn, *drawn.alternatives]
                rewards = torch.stack([self.rewards(batch.image_ids, draw) for draw in draws])  # (N, B)
                baseline = self._baseline_rewards(model, batch, rewards)
            log_probs = _score_captions(model, batch, torch.stack([draw.tokens for draw in draws]))  # (N, B)
        num_words = torch.stack([(draw.tokens != PAD).sum() for draw in draws]).sum()
        advantage = (rewards - baseline).to(log_probs.device)  # (N, B)
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
        best = greedy(model, batch.features, batch.mask, max_words=self.max_words)
        return self.rewards(batch.image_ids, best)


@contextmanager
def _evaluating(model: CaptionModel) -> Iterator[None]:
    training = model.training
    model.eval()
    # In evaluation mode cuDNN keeps nothing for a backward pass; without dropout the numbers are the same.
    layers = [(part, part.dropout) for part in model.modules() if isinstance(part, nn.RNNBase)]
    for layer, _ in layers:
        layer.training, layer.dropout = training, 0.0
    try:
        yield
    finally:
        for layer, dropout in layers:
            layer.dropout = dropout
        model.train(training)


def _score_captions(model: CaptionModel, batch: Batch, tokens: Tensor) -> Tensor:
    """Compute log p of N captions (N, B, T) of each image, with its gradient: (N, B)."""
    count, images, _ = tokens.shape
    targets = tokens.flatten(0, 1)  # (N·B, T), sample n of image b in row n·B + b
    inputs = functional.pad(targets[:, :-1], (1, 0), value=START)  # (N·B, T)
    memory = model.encode(batch.features, batch.mask)  # once an image
    lengths, order = (targets != PAD).sum(1).sort()
    log_probs = []
    # Captions of similar length go together: a Transformer computes their padding too.
    for rows, sizes in zip(order.split(CAPTIONS_AT_ONCE), lengths.split(CAPTIONS_AT_ONCE), strict=True):
        width = int(sizes[-1])  # the longest is the last
        words = targets[rows, :width]  # (CAPTIONS_AT_ONCE, width)
        output = model.unroll(pick(memory, rows % images), inputs[rows, :width])
        real = words != PAD
        scores = word_log_probs(model.head(output.hidden[real]))  # (words, V); the head sees real ones only
        gains = scores.gather(-1, words[real][:, None]).squeeze(-1)  # (words,)
        log_probs.append(torch.zeros_like(real, dtype=gains.dtype).masked_scatter(real, gains).sum(1))
    return torch.cat(log_probs)[order.argsort()].view(count, images)
