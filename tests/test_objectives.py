"""Losses computed by hand, and gradients against enumeration."""

import itertools
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioning.data import Batch
from captioning.decoding import Decoded, greedy, sample
from captioning.decoding.decoded import word_log_probs
from captioning.errors import InputError
from captioning.models import (
    CaptionModel,
    Expectation,
    HardAttention,
    Output,
    RawFeatures,
    ShowAttendTell,
    attention_entropy,
    pick,
)
from captioning.models.attention import Regions
from captioning.models.recurrent import lstm_update
from captioning.objectives import (
    CrossEntropy,
    DoublyStochastic,
    FocusedAttention,
    Objective,
    Reinforce,
    ScheduledSampling,
    SelfCritical,
    ShiftedTargets,
    Terms,
    TopicSupervision,
    WithText,
)
from captioning.vocabulary import END, PAD, SPECIAL_WORDS, START, UNKNOWN, Vocabulary
from tests.conftest import REGIONS, VOCABULARY, batch_of, build
from tests.test_decoding import Fixed

PROBABILITIES = [0.1, 0.1, 0.2, 0.1, 0.5]


CAPTIONS, IMAGES = SimpleNamespace(train_on="captions"), SimpleNamespace(train_on="images")


def terms_of(objective: CrossEntropy, captions: list[list[int]]) -> Terms:
    return objective(Fixed(PROBABILITIES), batch_of(captions))


def test_cross_entropy_is_the_mean_over_real_words() -> None:
    terms = terms_of(CrossEntropy(), [[4, 4], []])
    expected = -(2 * math.log(0.5) + 2 * math.log(0.2)) / 4  # two words and END; END alone
    assert terms.loss.item() == pytest.approx(expected) and terms.num_words == 4


def test_per_caption_divides_by_captions() -> None:
    terms = terms_of(CrossEntropy(normalisation="per_caption"), [[4, 4], []])
    assert terms.loss.item() == pytest.approx(-(2 * math.log(0.5) + 2 * math.log(0.2)) / 2)
    assert terms.logged["nll"].item() == pytest.approx(-(2 * math.log(0.5) + 2 * math.log(0.2)) / 4)


def test_label_smoothing_is_torchs() -> None:
    terms = terms_of(CrossEntropy(label_smoothing=0.2), [[4]])
    logits = torch.tensor(PROBABILITIES).log().expand(2, -1)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([4, END]), label_smoothing=0.2)
    assert terms.loss.item() == pytest.approx(expected.item())


class InputsAsHidden(Fixed):
    """Hands its input words on as hidden vectors."""

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
        self.inputs = tokens
        return super().forward(features, tokens, mask)


def test_word_dropout_replaces_input_words_by_the_unknown_one_and_no_targets() -> None:
    model, batch = InputsAsHidden(PROBABILITIES), batch_of([[4] * 50] * 20 + [[4]])
    terms = CrossEntropy(word_dropout=0.3)(model, batch)
    assert terms.loss.item() == pytest.approx(CrossEntropy()(Fixed(PROBABILITIES), batch).loss.item())
    real = batch.tokens[:, :-1] == 4
    assert (model.inputs[real] == UNKNOWN).float().mean() == pytest.approx(0.3, abs=0.06)
    assert torch.equal(model.inputs[~real], batch.tokens[:, :-1][~real])
    with pytest.raises(InputError, match="word_dropout is 1; it is a probability below 1"):
        CrossEntropy(word_dropout=1)
    with pytest.raises(InputError, match="label_smoothing is 5; it is a share below 1"):
        CrossEntropy(label_smoothing=5)


HARD = {"reward_weight": 1.0, "entropy_weight": 0.0, "reward": "own", "baseline": "expected"}
DRAWN = {
    "num_samples": 2,
    "baseline": "greedy",
    "max_words": 3,
    "cross_entropy_share": 0.0,
    "normalisation": "per_token",
}


@pytest.mark.parametrize(
    ("objective", "options", "name", "wrong"),
    [
        (Reinforce, HARD, "reward_weight", -1),
        (Reinforce, HARD, "entropy_weight", -1),
        (Reinforce, HARD, "baseline_decay", 3),
        (SelfCritical, DRAWN, "cross_entropy_share", 5),
        (SelfCritical, DRAWN, "cross_entropy_share", math.nan),
        (DoublyStochastic, {"target": "one", "cross_entropy": CrossEntropy()}, "weight", -1),
        (FocusedAttention, {"cross_entropy": CrossEntropy()}, "weight", -1),
        (WithText, {"file": "a.txt", "max_words": None, "cross_entropy": CrossEntropy()}, "weight", -1),
    ],
)
def test_a_number_out_of_its_range_is_refused(
    objective: Any, options: dict[str, Any], name: str, wrong: float
) -> None:
    with pytest.raises(InputError, match=f"objective.{name} is {wrong}; needed is a number from 0"):
        objective(**{**options, name: wrong})


def test_the_end_of_the_longest_caption_is_a_target_and_start_never_is() -> None:
    inputs: list[Tensor] = []

    class Spy(Fixed):
        def head(self, hidden: Tensor) -> Tensor:
            inputs.append(hidden)
            return super().head(hidden)

    batch = batch_of([[4, 4, 4], [4]])
    CrossEntropy()(Spy(PROBABILITIES), batch)
    targets = batch.tokens[:, 1:]
    assert len(inputs[0]) == (targets != PAD).sum() == 6  # padding never reaches the head
    assert not (targets == START).any() and targets[0, -1] == END


def test_only_two_normalisations_exist() -> None:
    with pytest.raises(InputError, match="per_token or per_caption"):
        CrossEntropy(normalisation="mean")


def test_dropped_rows_give_the_gradient_of_the_plain_loop(ragged: Batch) -> None:
    """Captions leave the batch as they end; a loop over all words and a hand-written loss give the same."""
    model, targets = build("gru_attention"), ragged.tokens[:, 1:]
    loss = CrossEntropy()(model, ragged).loss
    memory = model.encode(ragged.features, ragged.mask)
    hidden = CaptionModel.unroll(model, memory, ragged.tokens[:, :-1]).hidden
    picked = model.head(hidden).log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    plain = -picked[targets != PAD].mean()
    torch.testing.assert_close(loss, plain)
    for one, other in zip(
        *(torch.autograd.grad(value, list(model.parameters())) for value in (loss, plain)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


class GivenAttention(Fixed):
    """Has the attention (B, T, R) that it is given."""

    def __init__(self, attention: Tensor) -> None:
        super().__init__(PROBABILITIES)
        self.attention = attention

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
        return Output(torch.zeros(*tokens.shape, 1), self.attention, features)


class TestDoublyStochastic:
    def penalty(
        self, target: str, captions: list[list[int]], attention: list, mask: Tensor | None = None
    ) -> float:
        objective = DoublyStochastic(
            weight=1.0, target=target, cross_entropy=CrossEntropy(normalisation="per_caption")
        )
        batch = batch_of(captions)._replace(mask=mask)
        terms = objective(GivenAttention(torch.tensor(attention)), batch)
        plain = CrossEntropy(normalisation="per_caption")(Fixed(PROBABILITIES), batch).loss
        assert terms.loss.item() == pytest.approx(plain.item() + terms.logged["coverage"].item(), rel=1e-5)
        return terms.logged["coverage"].item()

    def test_two_words_and_two_regions_by_hand(self) -> None:
        # sums: 0.7 + 0.9 = 1.6 and 0.3 + 0.1 = 0.4
        attention = [[[0.7, 0.3], [0.9, 0.1]]]
        assert self.penalty("one", [[4]], attention) == pytest.approx(0.6**2 + 0.6**2)
        assert self.penalty("length", [[4]], attention) == pytest.approx(0.6**2 + 0.6**2)  # C/L = 2/2

    def test_it_is_a_mean_over_captions_of_their_own_words(self) -> None:
        # the first caption has C = 2 steps with END and one step without attention, the second 3
        attention = [[[0.7, 0.3], [0.9, 0.1], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]
        one = (0.6**2 + 0.6**2, 2**2 + 1)
        length = (0.6**2 + 0.6**2, 1.5**2 + 1.5**2)  # C/L = 2/2 and 3/2
        assert self.penalty("one", [[4], [4, 3]], attention) == pytest.approx(sum(one) / 2)
        assert self.penalty("length", [[4], [4, 3]], attention) == pytest.approx(sum(length) / 2)

    def test_padded_regions_do_not_count(self) -> None:
        attention = [[[1.0, 0.0], [1.0, 0.0]]]
        mask = torch.tensor([[True, False]])
        assert self.penalty("one", [[4]], attention, mask) == pytest.approx(1.0)
        assert self.penalty("length", [[4]], attention, mask) == pytest.approx(0.0)

    def test_it_needs_attention_and_a_known_target(self) -> None:
        objective = DoublyStochastic(weight=1.0, target="one", cross_entropy=CrossEntropy())
        with pytest.raises(InputError, match="DoublyStochastic needs a model with attention over regions"):
            objective.check(build("mean_pooled"), CAPTIONS)
        with pytest.raises(InputError, match="one or length"):
            DoublyStochastic(weight=1.0, target="two", cross_entropy=CrossEntropy())


class TestReinforce:
    """Monte Carlo against enumeration, for two regions and captions of two words and END."""

    def model(self) -> CaptionModel:
        torch.manual_seed(3)
        attention = partial(
            HardAttention, attention_dim=3, deep_keys=False, expectation_share=0.0, at_test=Expectation()
        )
        model = ShowAttendTell(
            encoder=RawFeatures(feature_dim=4),
            vocabulary_size=6,
            embedding_dim=3,
            hidden_dim=4,
            attention=attention,
            dropout=0.0,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        return model.train()

    def batch(self) -> Batch:
        features = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(2))
        return Batch(features, None, torch.tensor([[START, 4, 5, END]]), ["a"], [("x",)])

    def bound(self, model: CaptionModel, batch: Batch) -> Tensor:
        """Minus the exact lower bound: sum over all location sequences of p(s) * NLL(words | s)."""
        total = torch.zeros(())
        for places in itertools.product(range(2), repeat=3):
            memory = model.encode(batch.features, None)
            state, log_p, nll = model.start(memory), torch.zeros(()), torch.zeros(())
            for t, place in enumerate(places):
                weights = model.attention.scorer.weigh(state.hidden, Regions(*memory[:3]))
                log_p = log_p + weights[0, place].log()
                context = torch.sigmoid(model.gate(state.hidden)) * batch.features[:, place]
                embedded = model.embed(batch.tokens[:, t])
                gates = embedded[0] + model.context_gates(context) + model.state_gates(state.hidden)
                state = lstm_update(gates, state.cell)
                hidden = model.finish((state.hidden, context), embedded)
                nll = nll - model.head(hidden).log_softmax(-1)[0, batch.tokens[0, t + 1]]
            total = total + log_p.exp() * nll
        return total

    def gradient(self, model: CaptionModel, loss: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat(
            [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]
        )

    @pytest.mark.parametrize(
        ("reward", "baseline", "decay"),
        [
            ("caption", "average", 1.0),
            ("caption", "average", 0.9),
            ("caption", "expected", 0.9),
            ("to_go", "average", 1.0),
            ("to_go", "expected", 0.9),
        ],
    )
    def test_the_monte_carlo_gradient_is_the_enumerated_one(
        self, reward: str, baseline: str, decay: float
    ) -> None:
        model, batch = self.model(), self.batch()
        exact = self.gradient(model, self.bound(model, batch))
        draws = 3000
        many = Batch(
            batch.features.expand(draws, -1, -1),
            None,
            batch.tokens.expand(draws, -1),
            ["a"] * draws,
            [("x",)] * draws,
        )
        objective = Reinforce(
            reward_weight=1.0, entropy_weight=0.0, baseline_decay=decay, reward=reward, baseline=baseline
        )
        halves = [self.gradient(model, objective(model, many).loss) for _ in range(6)]
        mean = torch.stack(halves).mean(0)
        error = torch.stack(halves).std(0) / 6**0.5
        assert ((mean - exact).abs() <= 5 * error + 2e-3).all()
        assert torch.nn.functional.cosine_similarity(mean, exact, dim=0) > 0.99

    def test_a_location_with_a_high_cost_loses_probability(self) -> None:
        log_prob = torch.zeros(2, 1, requires_grad=True)

        class GivenExtras(Fixed):
            def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
                extras = {
                    "location_log_prob": log_prob.expand(-1, tokens.shape[1]),
                    "entropy": torch.zeros(2, tokens.shape[1]),
                }
                return Output(torch.zeros(*tokens.shape, 1), None, features, extras)

        objective = Reinforce(reward_weight=1.0, entropy_weight=0.0, reward="caption", baseline="average")
        objective(GivenExtras(PROBABILITIES), batch_of([[4], [3]])).loss.backward()
        # Word 3 has the probability 0.1, word 4 has 0.5: descent lowers the second location's.
        assert log_prob.grad is not None and log_prob.grad[1] > 0 > log_prob.grad[0]

    def gradients(self, objective: Reinforce) -> tuple[Tensor, Tensor]:
        """Gradients of the draws' log-probabilities and of the entropies, for captions of 2 and 3 words."""
        log_prob, entropy = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))

        class GivenExtras(Fixed):
            def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
                extras = {"location_log_prob": log_prob, "entropy": entropy}
                return Output(torch.zeros(*tokens.shape, 1), None, features, extras)

        objective(GivenExtras(PROBABILITIES), batch_of([[4], [3, 4]])).loss.backward()
        assert log_prob.grad is not None and entropy.grad is not None
        return log_prob.grad, entropy.grad[:, 0]

    # negative log-likelihoods, END included: 4 has 0.5, 3 has 0.1, END 0.2
    COSTS = (-math.log(0.5 * 0.2), -math.log(0.1 * 0.5 * 0.2))

    @pytest.mark.parametrize(("reward", "lengths"), [("caption", (1, 1)), ("word", (2, 3))])
    def test_the_cost_is_a_sum_or_a_mean_and_entropy_is_rewarded(
        self, reward: str, lengths: tuple[int, int]
    ) -> None:
        objective = Reinforce(
            reward_weight=2.0, entropy_weight=0.3, baseline_decay=1.0, reward=reward, baseline="average"
        )
        policy, entropy = self.gradients(objective)
        costs = [cost / length for cost, length in zip(self.COSTS, lengths, strict=True)]
        torch.testing.assert_close(policy[:, 0], 2.0 * torch.tensor(costs) / 2)  # a mean over two captions
        torch.testing.assert_close(entropy, torch.full((2,), -0.3 / 2))  # descent raises it

    @pytest.mark.parametrize(
        ("reward", "costs"),
        [
            ("own", [[-math.log(0.5), -math.log(0.2), 0], [-math.log(0.1), -math.log(0.5), -math.log(0.2)]]),
            (
                "to_go",
                [[-math.log(0.1), -math.log(0.2), 0], [-math.log(0.01), -math.log(0.1), -math.log(0.2)]],
            ),
        ],
    )
    def test_the_cost_is_that_of_the_word_alone_or_of_those_to_go(
        self, reward: str, costs: list[list[float]]
    ) -> None:
        objective = Reinforce(
            reward_weight=1.0, entropy_weight=0.0, baseline_decay=1.0, reward=reward, baseline="average"
        )
        torch.testing.assert_close(self.gradients(objective)[0], torch.tensor(costs) / 2)

    def test_the_baseline_with_expected_attention_has_the_same_dropout(self) -> None:
        """Where all regions are equal, a sample is the expectation: the two passes are the same, dropout included."""
        model = self.model()
        model.dropout.p, model.attention.expectation_share = 0.5, 0.0
        features = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(2)).expand(3, 2, 4)
        batch = Batch(features, None, batch_of([[4], [3, 4], [5]]).tokens, ["a"] * 3, [("x",)] * 3)
        costs: list[Tensor] = []

        class Spy(Reinforce):
            def _cost(self, nll: Tensor, real: Tensor) -> Tensor:
                costs.append(nll)
                return super()._cost(nll, real)

        torch.manual_seed(1)
        Spy(reward_weight=1.0, entropy_weight=0.0, reward="own", baseline="expected")(model, batch)
        following = torch.rand(1)
        torch.testing.assert_close(costs[0], costs[1], rtol=0, atol=0)
        torch.manual_seed(1)
        Reinforce(reward_weight=1.0, entropy_weight=0.0, reward="own", baseline="average")(model, batch)
        assert torch.equal(following, torch.rand(1))  # the second pass does not move the generator
        assert model.attention.expectation_share == 0.0

    def test_a_batch_with_expected_attention_is_not_run_twice(self) -> None:
        model = self.model()
        objective = Reinforce(reward_weight=1.0, entropy_weight=0.5, reward="own", baseline="expected")
        passes: list[int] = []
        model.attention.register_forward_hook(lambda *_: passes.append(1))
        for share, count in ((1.0, 1), (0.0, 2)):
            passes.clear()
            model.attention.expectation_share = share
            batch = self.batch()
            loss = objective(model, batch).loss
            steps = int((batch.tokens[:, 1:] != PAD).any(0).sum())
            assert len(passes) == count * steps
            assert loss.requires_grad

    def test_with_the_expected_baseline_advantages_are_differences_around_their_mean(self) -> None:
        model, objective = self.model(), None
        costs: list[Tensor] = []

        class Spy(Reinforce):
            def _cost(self, nll: Tensor, real: Tensor) -> Tensor:
                costs.append(super()._cost(nll, real))
                return costs[-1]

        objective = Spy(reward_weight=1.0, entropy_weight=0.0, reward="to_go", baseline="expected")
        torch.manual_seed(4)
        batch = self.batch()
        output = model(batch.features, batch.tokens[:, :-1], None)
        torch.manual_seed(4)
        loss = objective(model, batch).loss
        advantage = costs[0] - costs[1]
        advantage = advantage - advantage.mean()
        expected = costs[0][0, 0] + (advantage * output.extras["location_log_prob"]).sum()
        torch.testing.assert_close(loss, expected)

    def test_the_average_moves_and_is_kept_in_the_state(self) -> None:
        def make() -> Reinforce:
            return Reinforce(reward_weight=1.0, entropy_weight=0.0, reward="caption", baseline="average")

        objective, mean = make(), sum(self.COSTS) / 2
        first, _ = self.gradients(objective)
        torch.testing.assert_close(first[:, 0], (torch.tensor(self.COSTS) - mean) / 2)
        objective.average = 1.0
        self.gradients(objective)
        assert objective.average == pytest.approx(0.9 + 0.1 * mean)
        restored = make()
        restored.load_state_dict(objective.state_dict())
        assert restored.average == objective.average

    def test_gradients_reach_every_parameter_in_training(self) -> None:
        model = self.model()
        model.attention.expectation_share = 0.0
        objective = Reinforce(
            reward_weight=1.0, entropy_weight=0.1, baseline_decay=1.0, reward="caption", baseline="average"
        )
        objective(model, self.batch()).loss.backward()
        reached = {n: p.grad is not None and p.grad.abs().max() > 1e-6 for n, p in model.named_parameters()}
        assert all(
            yes or n == "attention.scorer.score.bias" for n, yes in reached.items()
        )  # it shifts all alike

    def test_it_needs_sampled_attention(self) -> None:
        objective = Reinforce(reward_weight=1.0, entropy_weight=0.0, reward="word", baseline="average")
        objective.check(self.model(), CAPTIONS)
        with pytest.raises(
            InputError, match="this GRUAttention has none; choose model=show_attend_tell_hard"
        ):
            objective.check(build("gru_attention"), CAPTIONS)
        with pytest.raises(
            InputError, match="needed are one of caption, word, to_go, own and one of average"
        ):
            Reinforce(reward_weight=1.0, entropy_weight=0.0, reward="sum", baseline="average")


class Trainable(Fixed):
    """The same distribution over five words at every step, with a gradient."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__([1.0] * len(logits))
        self.logits = torch.nn.Parameter(torch.tensor(logits))


class TestSelfCritical:
    WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "runs", "cat", "sits", "red", "blue"]

    def objective(self, **options: object) -> SelfCritical:
        made = SelfCritical(
            **{
                "num_samples": 4,
                "baseline": "leave_one_out",
                "max_words": 6,
                "cross_entropy_share": 0.0,
                "normalisation": "per_caption",
                **options,
            }
        )
        made.prepare(
            {"image0": ["a dog runs"], "image1": ["a cat sits"], "image2": ["a red cat"]},
            Vocabulary(self.WORDS),
        )
        return made

    def test_rewards_are_cider_d_with_the_end_as_a_word(self) -> None:
        whole = Decoded(torch.tensor([[4, 5, 6, END]]), torch.zeros(1, 4), None)
        cut = Decoded(torch.tensor([[4, 5, 6, PAD]]), torch.zeros(1, 4), None)
        objective = self.objective()
        assert objective.rewards(["image0"], whole).item() == pytest.approx(10.0, abs=1e-4)
        assert objective.rewards(["image0"], cut).item() < 9

    def test_recurrent_layers_can_go_backward_on_a_gpu(self) -> None:
        """In evaluation mode cuDNN keeps nothing for it; dropout is off all the same."""
        model = build("attentive_translator").train()
        modes: set[tuple[bool, bool]] = set()
        model.encoder.register_forward_hook(
            lambda *_: modes.add(
                (model.training, any(p.training for p in model.modules() if isinstance(p, torch.nn.LSTM)))
            )
        )
        self.objective()(model, batch_of([[4, 5], [6], [4]]))
        assert modes == {(False, True)} and all(part.training for part in model.modules())

    @pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
    def test_its_gradient_is_that_of_the_enumerated_reward(self, baseline: str) -> None:
        """Minus the expected CIDEr-D of captions of up to three words, END's own probability included."""
        objective = self.objective(num_samples=2, baseline=baseline, max_words=3)
        vocabulary = Vocabulary(self.WORDS[:6])  # 4 a, 5 dog
        objective.prepare({"image0": ["a dog"], "image1": ["dog dog"]}, vocabulary)
        model = Trainable([0.0, 0.0, 0.4, -9.0, 0.2, -0.3])
        exact = torch.zeros(())
        for length in (1, 2, 3):
            for words in itertools.product([3, 4, 5], repeat=length - 1):
                for last in (END,) if length < 3 else (END, 3, 4, 5):
                    caption = torch.tensor([[*words, last]])
                    logits = model.logits.index_fill(0, torch.tensor([PAD, START]), -torch.inf)
                    log_prob = logits.log_softmax(0)[caption].sum()
                    reward = objective.rewards(["image0"], Decoded(caption, torch.zeros(1, length), None))
                    exact = exact - log_prob.exp() * reward[0]
        [wanted] = torch.autograd.grad(exact, model.logits)
        count = 6000
        many = Batch(
            torch.zeros(count, REGIONS, 1),
            None,
            torch.zeros(count, 3),
            ["image0"] * count,
            [("a dog",)] * count,
        )
        [found] = torch.autograd.grad(objective(model, many).loss, model.logits)
        torch.testing.assert_close(found, wanted, atol=0.06, rtol=0)
        assert wanted[4:].abs().max() > 0.2  # what is compared is far from zero

    def test_its_gradient_is_that_of_words_drawn_one_by_one_with_a_graph(self, family: str) -> None:
        model, batch, objective = build(family), batch_of([[4]] * 3, counts=[5, 3, 1]), self.objective()
        torch.manual_seed(3)
        loss = objective(model.train(), batch).loss
        torch.manual_seed(3)
        first = sample(model.eval(), batch.features, batch.mask, max_words=6, num_samples=4)
        draws = [first, *first.alternatives]
        tokens, rows = torch.cat([draw.tokens for draw in draws]), torch.arange(3).repeat(4)
        memory = pick(model.encode(batch.features, batch.mask), rows)
        state, last, log_probs = model.start(memory), torch.full((12,), START), torch.zeros(12)
        for word in tokens.unbind(1):
            step = model.step(last, state, memory)
            gains = word_log_probs(model.head(step.hidden)).gather(-1, word[:, None]).squeeze(-1)
            log_probs = log_probs + gains.masked_fill(word == PAD, 0.0)
            last, state = word, step.state
        rewards = torch.stack([objective.rewards(batch.image_ids, draw) for draw in draws])
        advantage = rewards - (rewards.sum(0) - rewards) / 3
        plain = -(advantage.flatten() * log_probs).mean()
        found, wanted = (
            torch.autograd.grad(value, list(model.parameters()), allow_unused=True) for value in (loss, plain)
        )
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert max(float(one.abs().max()) for one in found if one is not None) > 0.01

    def test_dropout_acts_on_neither_pass(self) -> None:
        gradients = []
        for dropout in (0.0, 0.5):
            torch.manual_seed(3)
            model = build("transformer", dropout=dropout).train()
            self.objective()(model, batch_of([[4]] * 3)).loss.backward()
            assert model.training
            gradients.append(model.output.weight.grad)
        assert torch.equal(*gradients) and gradients[0].any()

    def test_a_better_caption_gains_probability(self) -> None:
        model = build("gru_attention", vocabulary_size=11).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        batch = batch_of([[4, 5, 6], [4, 7, 8]])
        objective = self.objective(num_samples=8)
        first = last = 0.0
        for step in range(60):
            terms = objective(model, batch)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            first, last = (
                (float(terms.logged["reward"]) if step == 0 else first),
                float(terms.logged["reward"]),
            )
        assert last > first + 30

    @pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
    def test_equal_rewards_give_no_gradient(self, baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
        objective = self.objective(baseline=baseline)
        monkeypatch.setattr(objective, "rewards", lambda ids, decoded: torch.full((len(ids),), 3.0))
        model = build("gru_attention", vocabulary_size=11)
        objective(model, batch_of([[4], [5]])).loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())

    def test_the_greedy_baseline_leaves_training_mode_on(self) -> None:
        model = build("gru_attention", vocabulary_size=11).train()
        self.objective(baseline="greedy")(model, batch_of([[4], [5]]))
        assert model.training

    def test_the_greedy_baseline_is_decoded_without_dropout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        modes = []

        def recorded(model: CaptionModel, *args: object, **options: object) -> Decoded:
            modes.append(model.training)
            return greedy(model, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr("captioning.objectives.self_critical.greedy", recorded)
        self.objective(baseline="greedy")(
            build("gru_attention", vocabulary_size=11).train(), batch_of([[4], [5]])
        )
        assert modes == [False]

    def test_the_baseline_is_the_mean_of_the_images_other_samples(self) -> None:
        rewards = torch.tensor([[1.0, 40.0], [2.0, 50.0], [6.0, 90.0]])
        baseline = self.objective()._baseline_rewards(build("gru_attention"), batch_of([[4], [5]]), rewards)
        torch.testing.assert_close(baseline, torch.tensor([[4.0, 70.0], [3.5, 65.0], [1.5, 45.0]]))

    def test_any_training_caption_of_an_image_may_be_mixed_in(self) -> None:
        batch = batch_of([[4]])._replace(
            references=[("a dog runs", "a cat", "a red cat sits a dog runs a cat")]
        )
        drawn = {tuple(self.objective()._with_random_caption(batch).tokens[0].tolist()) for _ in range(60)}
        assert drawn == {(1, 4, 5, 6, 2), (1, 4, 7, 2), (1, 4, 9, 7, 8, 4, 5, 2)}  # cut at six words

    @pytest.mark.parametrize("normalisation", ["per_token", "per_caption"])
    def test_mixing_adds_cross_entropy(self, normalisation: str) -> None:
        model, batch = build("gru_attention", vocabulary_size=11), batch_of([[4, 5], [4, 5]])
        batch = batch._replace(references=[("a dog",), ("a dog",)])
        terms = self.objective(cross_entropy_share=1.0, normalisation=normalisation)(model, batch)
        expected = CrossEntropy(normalisation=normalisation)(model, batch)
        assert terms.loss.item() == pytest.approx(expected.loss.item())

    @pytest.mark.parametrize("normalisation", ["per_token", "per_caption"])
    def test_both_terms_weigh_a_word_alike(self, normalisation: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Samples that equal the training captions, with advantages of 1, are the cross-entropy again."""
        model, batch = build("gru_attention", vocabulary_size=11), batch_of([[4, 5], [4, 5, 6]])
        batch = batch._replace(references=[("a dog",), ("a dog runs",)])
        with torch.no_grad():  # decoding never draws these two, so their probability must not count
            list(model.parameters())[-1][[PAD, START]] = -1e4
        words = batch.tokens[:, 1:]

        def as_drawn(*_: object, num_samples: int, **__: object) -> Decoded:
            output = model(batch.features, batch.tokens[:, :-1])
            log_probs = model.head(output.hidden).log_softmax(-1).gather(-1, words[..., None])[..., 0]
            drawn = Decoded(words, log_probs * (words != PAD), None)
            return drawn._replace(alternatives=(drawn,) * (num_samples - 1))

        monkeypatch.setattr("captioning.objectives.self_critical.sample", as_drawn)
        losses = []
        for share in (0.0, 0.3, 1.0):
            objective = self.objective(cross_entropy_share=share, normalisation=normalisation)
            monkeypatch.setattr(objective, "rewards", lambda ids, decoded: torch.ones(len(ids)))
            monkeypatch.setattr(objective, "_baseline_rewards", lambda *_: torch.zeros(2))
            losses.append(objective(model, batch).loss.item())
        assert losses == pytest.approx([losses[2]] * 3)

    def test_it_needs_images_and_a_trained_model(self) -> None:
        assert SelfCritical.needs_trained_model and not CrossEntropy.needs_trained_model
        self.objective().check(build("gru_attention"), IMAGES)
        with pytest.raises(InputError, match="give data.train_on=images"):
            self.objective().check(build("gru_attention"), CAPTIONS)

    def test_options_are_checked(self) -> None:
        with pytest.raises(InputError, match="leave_one_out or greedy"):
            self.objective(baseline="mean")
        with pytest.raises(InputError, match="needs 2 samples"):
            self.objective(num_samples=1)
        with pytest.raises(InputError, match="is 'sum'; it is per_token or per_caption"):
            self.objective(normalisation="sum")


def sampling(share: float) -> ScheduledSampling:
    objective = ScheduledSampling(step=share, every=1, most=1.0, cross_entropy=CrossEntropy())
    objective.begin_epoch(1)
    return objective


class Successor(Fixed):
    """Predicts after each word the one with the next id."""

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
        return Output(tokens[..., None].float(), None, features, {})

    def head(self, hidden: Tensor) -> Tensor:
        return 100 * torch.nn.functional.one_hot(hidden[..., 0].long() + 1, VOCABULARY).float()


class TestScheduledSampling:
    def test_a_replaced_word_is_what_the_model_predicts_after_the_word_before(self) -> None:
        mixed = sampling(1.0).mix(Successor(PROBABILITIES), batch_of([[4, 6, 8, 5]]))
        assert mixed[0, 2:].tolist() == [5, 7, 9]

    def test_the_share_rises_by_a_step_every_few_epochs_up_to_the_most(self) -> None:
        objective = ScheduledSampling(step=0.05, every=5, most=0.12, cross_entropy=CrossEntropy())
        shares = []
        for epoch in (0, 4, 5, 9, 10, 15, 40):
            objective.begin_epoch(epoch)
            shares.append(objective.share)
        assert shares == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.12, 0.12])

    @pytest.mark.parametrize("wrong", [{"step": -0.1}, {"most": 1.5}, {"every": 0}])
    def test_options_are_checked(self, wrong: dict[str, float]) -> None:
        with pytest.raises(InputError, match="are probabilities"):
            ScheduledSampling(
                **{"step": 0.05, "every": 5, "most": 0.25, **wrong}, cross_entropy=CrossEntropy()
            )

    def test_a_share_of_zero_is_teacher_forcing(self, ragged: Batch) -> None:
        model = build("gru_attention")
        objective = sampling(0.0)
        assert objective(model, ragged).loss.item() == CrossEntropy()(model, ragged).loss.item()

    def test_start_end_and_padding_stay(self, ragged: Batch) -> None:
        mixed = sampling(1.0).mix(build("gru_attention"), ragged)
        inputs = ragged.tokens[:, :-1]
        kept = (inputs == START) | (inputs == END) | (inputs == PAD)
        assert (
            torch.equal(mixed[kept], inputs[kept])
            and not torch.isin(mixed[~kept], torch.tensor([PAD, START, END])).any()
        )
        assert (mixed != inputs).any()

    def test_replaced_words_come_from_the_models_distribution(self) -> None:
        batch = batch_of([[4] * 30] * 400)
        mixed = sampling(1.0).mix(Fixed(PROBABILITIES), batch)
        words = mixed[:, 1:][batch.tokens[:, 1:-1] == 4]
        assert (words == 4).float().mean() == pytest.approx(
            0.5 / 0.6, abs=0.02
        )  # 3 has 0.1, END is not drawn


def mixed_with(inner: CrossEntropy) -> list[ShiftedTargets | ScheduledSampling | DoublyStochastic]:
    return [
        ShiftedTargets(max_words=3, cross_entropy=inner),
        ScheduledSampling(step=0.1, every=1, most=0.5, cross_entropy=inner),
        DoublyStochastic(weight=1.0, target="one", cross_entropy=inner),
    ]


def test_hard_attention_is_refused_by_every_objective_that_cannot_train_it() -> None:
    model = TestReinforce().model()
    for objective in [CrossEntropy(), *mixed_with(CrossEntropy())]:
        objective.check(build("gru_attention"), CAPTIONS)
        with pytest.raises(InputError, match="cannot train hard attention.* choose objective=reinforce"):
            objective.check(model, CAPTIONS)
    critical = TestSelfCritical().objective()
    with pytest.raises(InputError, match="SelfCritical cannot train hard attention"):
        critical.check(model, IMAGES)


def test_word_dropout_reaches_the_model_where_cross_entropy_is_a_part() -> None:
    batch, dropping = batch_of([[4] * 30] * 20), CrossEntropy(word_dropout=0.5)
    model = build("topic_guided")
    supervision = TopicSupervision(
        captions=DoublyStochastic(weight=1.0, target="one", cross_entropy=dropping),
        topic_weight=1.0,
        attribute_weight=1.0,
        fit_topics=lambda documents, vocabulary, num_topics: (
            lambda documents: np.full((len(documents), num_topics), 1 / num_topics, np.float32)
        ),
    )
    words = [*SPECIAL_WORDS, *(f"word{index}" for index in range(VOCABULARY - len(SPECIAL_WORDS)))]
    supervision.prepare({image_id: ["a caption"] for image_id in batch.image_ids}, Vocabulary(words))
    read: list[Tensor] = []
    model.embedding.register_forward_hook(lambda layer, inputs, output: read.append(inputs[0]))
    for objective in [
        *mixed_with(dropping),
        FocusedAttention(weight=1.0, cross_entropy=dropping),
        supervision,
    ]:
        read.clear()
        objective(model, batch)
        seen = torch.cat([part.flatten() for part in read])
        assert (seen == UNKNOWN).sum() > 0.3 * (seen == 4).sum(), type(objective).__name__


def test_an_objective_without_memory_has_an_empty_state() -> None:
    objective = CrossEntropy()
    objective.prepare({"image0": ["a dog"]}, Vocabulary(SPECIAL_WORDS))
    objective.begin_epoch(0)
    objective.load_state_dict(objective.state_dict())
    assert objective.state_dict() == {}


def test_what_is_logged_has_no_gradient_and_leaves_out_the_loss(ragged: Batch) -> None:
    for objective in [CrossEntropy(), *mixed_with(CrossEntropy())]:
        terms = objective(build("gru_attention").train(), ragged)
        assert terms.loss.requires_grad and "loss" not in terms.logged
        assert not any(value.requires_grad for value in terms.logged.values())


def test_the_entropy_of_attention_is_a_share_of_the_greatest_over_real_regions() -> None:
    even, sharp = torch.full((1, 2, 4), 0.25), torch.eye(4)[None, :2]
    assert attention_entropy(even).tolist() == [[pytest.approx(1)] * 2]
    assert attention_entropy(sharp).tolist() == [[pytest.approx(0)] * 2]
    assert attention_entropy(torch.ones(3, 1, 1)).tolist() == [[0]] * 3  # a single region leaves no choice
    maps = torch.tensor([[[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]])
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    assert attention_entropy(maps, mask).flatten().tolist() == pytest.approx([1, 1, 0])


def test_padding_does_not_make_wide_attention_cheaper() -> None:
    objective = FocusedAttention(weight=1.0, cross_entropy=CrossEntropy())
    model, padded = build("gru_attention"), batch_of([[4, 5], [6]], counts=[2, 2])
    assert padded.mask is not None
    bare = padded._replace(features=padded.features[:, :2], mask=padded.mask[:, :2])
    entropies = [objective(model, batch).logged["entropy"].item() for batch in (padded, bare)]
    assert entropies[0] == pytest.approx(entropies[1])


def test_wide_attention_has_its_price(ragged: Batch) -> None:
    model, plain = build("gru_attention"), CrossEntropy()
    terms = FocusedAttention(weight=0.5, cross_entropy=plain)(model, ragged)
    expected = plain(model, ragged).loss + 0.5 * terms.logged["entropy"]
    assert terms.loss.item() == pytest.approx(expected.item())
    terms.loss.backward()  # masked regions have no attention, where the entropy has no derivative
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with pytest.raises(InputError, match="FocusedAttention needs a model with attention over regions"):
        FocusedAttention(weight=0.5, cross_entropy=plain).check(build("mean_pooled"), CAPTIONS)
    with pytest.raises(InputError, match="weight is -1"):
        FocusedAttention(weight=-1, cross_entropy=plain)


@pytest.mark.parametrize("focused", [True, False])
def test_attention_gets_narrower_where_that_is_asked_for(focused: bool, ragged: Batch) -> None:
    model = build("gru_attention").train()
    objective = FocusedAttention(weight=10.0 * focused, cross_entropy=CrossEntropy())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    entropies = []
    for _ in range(30):
        terms = objective(model, ragged)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        entropies.append(terms.logged["entropy"].item())
    assert (entropies[-1] < 0.5 * entropies[0]) == focused


@pytest.mark.parametrize("name", ["doubly_stochastic", "focused_attention", "reinforce"])
def test_all_terms_of_a_loss_are_divided_alike(name: str, ragged: Batch) -> None:
    losses = {}
    for normalisation in ("per_token", "per_caption"):
        objective, model = {
            "doubly_stochastic": lambda kind: (
                DoublyStochastic(
                    weight=2.0, target="one", cross_entropy=CrossEntropy(normalisation=kind)
                ),
                build("show_attend_tell"),
            ),
            "focused_attention": lambda kind: (
                FocusedAttention(weight=2.0, cross_entropy=CrossEntropy(normalisation=kind)),
                build("show_attend_tell"),
            ),
            "reinforce": lambda kind: (
                Reinforce(
                    reward_weight=1.0, entropy_weight=0.5, reward="own", baseline="expected", normalisation=kind
                ),
                build("show_attend_tell_hard").train(),
            ),
        }[name](normalisation)  # fmt: skip
        torch.manual_seed(0)
        terms = objective(model, ragged)
        losses[normalisation] = terms.loss.item()
    assert losses["per_token"] * terms.num_words == pytest.approx(losses["per_caption"] * 4, rel=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(label_smoothing=0.1),
        DoublyStochastic(weight=1.0, target="length", cross_entropy=CrossEntropy()),
        FocusedAttention(weight=1.0, cross_entropy=CrossEntropy()),
        ShiftedTargets(max_words=4, cross_entropy=CrossEntropy()),
        ScheduledSampling(step=0.5, every=1, most=0.5, cross_entropy=CrossEntropy()),
        Reinforce(reward_weight=1.0, entropy_weight=0.01, reward="own", baseline="expected"),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_captions_that_share_an_image_have_the_loss_of_captions_of_copies(objective: Objective) -> None:
    family = "show_attend_tell_hard" if isinstance(objective, Reinforce) else "show_attend_tell"
    rows, batch = torch.tensor([1, 0, 1, 0]), batch_of([[4, 5, 6], [7, 3], [8, 9], [6]], counts=[5, 3, 4, 1])
    assert batch.mask is not None
    losses = []
    for each in (
        batch._replace(features=batch.features[:2], mask=batch.mask[:2], image_rows=rows),
        batch._replace(features=batch.features[rows], mask=batch.mask[rows]),
    ):
        model = build(family).train(family == "show_attend_tell_hard")
        objective.begin_epoch(3)
        torch.manual_seed(0)
        losses.append(objective(model, each).loss)
    torch.testing.assert_close(*losses)
