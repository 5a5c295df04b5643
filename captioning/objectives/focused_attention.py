"""Cross-entropy and a price for wide attention, so that a map shows where the model looks.

    loss = cross-entropy + weight * mean over words of H(alpha_t) / log R

R is the number of regions of the image at hand, without padding. Cross-entropy alone does not penalise
attention spread over many regions, provided the words can be predicted from the weighted mean (measured in
notebooks/2_attention). The entropy penalty is our own choice of a common regulariser; hard attention
(Xu et al. 2015) uses it with the opposite sign, to keep exploring.
"""

from captioning.data.dataset import Batch
from captioning.models.base import CaptionModel, attention_entropy, real_steps
from captioning.objectives.base import Objective, Terms, check_range, teacher_force
from captioning.objectives.cross_entropy import CrossEntropy


class FocusedAttention(Objective):
    """Cross-entropy and the entropy of attention.

    Args:
        weight: of the entropy, which is 0 where one region has all attention and 1 where all have the same.
        cross_entropy: the first term.

    Raises:
        InputError: a negative weight.
    """

    needs_attention = True

    def __init__(self, *, weight: float, cross_entropy: CrossEntropy) -> None:
        check_range("weight", weight, 0)
        self.weight, self.cross_entropy = weight, cross_entropy

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `entropy`, the term before its weight."""
        inputs = self.cross_entropy.inputs(batch)
        output = teacher_force(model, batch, inputs)
        assert output.attention is not None  # see `check`
        terms = self.cross_entropy.of_output(model, batch, output)
        entropy = attention_entropy(output.attention, batch.caption_mask)[real_steps(inputs)].mean()
        scaled = self.cross_entropy.normalise(entropy * terms.num_words, terms.num_words, len(inputs))
        logged = {**terms.logged, "entropy": entropy.detach()}
        return terms._replace(loss=terms.loss + self.weight * scaled, logged=logged)
