"""Teacher forcing that is recorded and replayed equals the model's own."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models import CaptionModel, UpDown
from captioning.models.base import Output, Tree
from captioning.models.replay import MAX_RECORDINGS, ReplayedForward
from captioning.objectives import CrossEntropy, SelfCritical
from captioning.training import assemble
from captioning.training.cuda_graphs import CudaGraphs
from tests.conftest import FAMILIES, batch_of, build, compose_config

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SELF_CRITICAL = {
    "num_samples": 2, "baseline": "leave_one_out", "max_words": 5, "cross_entropy_share": 0.0,
    "normalisation": "per_caption",
}  # fmt: skip
# Not those that draw random numbers, and others when recorded.
SOFT = [f for f in FAMILIES if f not in ("show_attend_tell_hard", "attentive_translator_shuffled")]


class Recorder:
    """Stands for a GPU's recordings: runs the function as it is, and remembers the shapes."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []

    def __call__(self, body: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        self.recorded.append(tuple(inputs[1].shape))
        body(*inputs)
        return body


def gradients(model: CaptionModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its gradients."""
    model.zero_grad()
    loss = CrossEntropy()(model, batch).loss
    loss.backward()
    return loss.detach(), {
        name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None
    }


@pytest.mark.parametrize("family", SOFT)
def test_a_replayed_forward_pass_is_the_models_own(family: str, ragged: Batch) -> None:
    """Values and gradients, with regions that are padded, captions of several lengths and shared images."""
    shared = ragged._replace(
        tokens=torch.cat([ragged.tokens, ragged.tokens.flip(0)]),
        image_rows=torch.cat([torch.arange(len(ragged.tokens)), torch.arange(len(ragged.tokens)).flip(0)]),
    )
    for batch in (ragged, shared):
        model = build(family).train()
        loss, expected = gradients(model, batch)
        recorder = Recorder()
        model.forward = ReplayedForward(model, recorder)
        replayed, found = gradients(model, batch)
        assert len(recorder.recorded) == 1 and recorder.recorded[0][1] % 4 == 0
        torch.testing.assert_close(replayed, loss)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_output_has_zeros_where_the_models_own_has() -> None:
    model, batch = build("show_attend_tell").train(), batch_of([[4, 5, 6, 7], [8]])
    own = model(batch.features, batch.tokens[:, :-1])
    model.forward = ReplayedForward(model, Recorder())
    replayed = model(batch.features, batch.tokens[:, :-1])
    torch.testing.assert_close(replayed.hidden, own.hidden)
    torch.testing.assert_close(replayed.attention, own.attention)
    assert not replayed.attention[1, 2:].any()


def test_a_shape_is_recorded_once_and_replayed_once_a_step() -> None:
    """The backward pass of a first use still needs the tensors that a second would overwrite."""
    model, recorder = build("gru_attention").train(), Recorder()
    forward = model.forward = ReplayedForward(model, recorder)
    for words in (2, 3, 2, 7):  # with START: 3, 4, 3 and 8 words
        forward.begin_step()
        batch = batch_of([list(range(4, 4 + words))] * 2)
        for _ in range(2):
            model(batch.features, batch.tokens[:, :-1])
    assert recorder.recorded == [(2, 4), (2, 8)]


def test_only_so_many_shapes_are_recorded() -> None:
    model, recorder = build("gru_attention").train(), Recorder()
    model.forward = ReplayedForward(model, recorder)
    for size in range(1, MAX_RECORDINGS + 5):
        batch = batch_of([[4, 5]] * size)
        assert model(batch.features, batch.tokens[:, :-1]).hidden.shape[:2] == (size, 3)
    assert len(recorder.recorded) == MAX_RECORDINGS


def test_a_model_of_ones_own_needs_no_image_rows() -> None:
    class Narrow(UpDown):
        def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
            return super().forward(features, tokens, mask)

    model, batch = as_class(Narrow), batch_of([[4, 5]])
    model.forward = ReplayedForward(model, Recorder())
    assert CrossEntropy()(model.eval(), batch).loss.isfinite()


def test_parameters_that_are_unfrozen_get_a_recording_of_their_own() -> None:
    model, recorder, batch = build("up_down").train(), Recorder(), batch_of([[4, 5]])
    forward = model.forward = ReplayedForward(model, recorder)
    model.embedding.requires_grad_(False)
    for trained in (False, True, False):
        model.embedding.requires_grad_(trained)
        forward.begin_step()
        _, found = gradients(model, batch)
        assert ("embedding.weight" in found) == trained
    assert len(recorder.recorded) == 2


def test_what_no_gradient_reaches_is_not_replayed() -> None:
    model, batch = build("up_down").train(), batch_of([[4, 5]])
    model.requires_grad_(False)
    model.output.requires_grad_(True)

    def record(body: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        body(*inputs)
        return lambda *_: pytest.fail("there is no backward pass to replay")

    model.forward = ReplayedForward(model, record)
    assert gradients(model, batch)[1].keys() == {"output.weight", "output.bias"}


def test_a_copy_of_the_model_records_anew() -> None:
    model, recorder, batch = build("up_down").train(), Recorder(), batch_of([[4, 5]])
    model.forward = ReplayedForward(model, recorder)
    model(batch.features, batch.tokens[:, :-1])
    copy = deepcopy(model)
    with torch.no_grad():
        copy.embedding.weight.zero_()
    assert copy.forward.model is copy
    expected = UpDown.forward(copy, batch.features, batch.tokens[:, :-1]).hidden
    torch.testing.assert_close(copy(batch.features, batch.tokens[:, :-1]).hidden, expected)


def test_evaluation_is_never_replayed(ragged: Batch) -> None:
    model, recorder = build("up_down"), Recorder()
    model.forward = ReplayedForward(model, recorder)
    model.eval()(ragged.features, ragged.tokens[:, :-1], ragged.mask)
    with torch.no_grad():
        model.train()(ragged.features, ragged.tokens[:, :-1], ragged.mask)
    assert not recorder.recorded


def test_a_model_that_cannot_be_recorded_says_so(ragged: Batch) -> None:
    def fail(body: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model = build("up_down").train()
    model.forward = ReplayedForward(model, fail)
    with pytest.raises(InputError, match=r"UpDown \(operation not permitted.*\); give cuda_graphs=false"):
        model(ragged.features, ragged.tokens[:, :-1], ragged.mask)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_training_without_a_gpu_refuses_graphs(toy_overrides: list[str], tmp_path: Path) -> None:
    config = compose_config(
        "train", *toy_overrides, "cuda_graphs=true", f"output_dir={tmp_path}", "trainer.accelerator=cpu"
    )
    with pytest.raises(InputError, match="the training runs on cpu; give cuda_graphs=false"):
        assemble(config).fit()


@needs_gpu
@pytest.mark.parametrize("family", SOFT)
def test_a_recorded_step_is_the_models_own(family: str, ragged: Batch) -> None:
    """On a GPU, with real recordings, several steps of two shapes, and an update in between."""
    device = torch.device("cuda")
    own, replayed = build(family).to(device), build(family).to(device)
    replayed.load_state_dict(own.state_dict())
    forward = replayed.forward = ReplayedForward(replayed)
    steps = [torch.optim.SGD(model.parameters(), 0.1) for model in (own, replayed)]
    batches = [
        batch._replace(
            features=batch.features.to(device),
            mask=None if batch.mask is None else batch.mask.to(device),
            tokens=batch.tokens.to(device),
        )
        # The Translator packs its sequence where regions are padded, which takes lengths from the CPU.
        for batch in (
            ragged._replace(mask=None) if "translator" in family else ragged,
            batch_of([[4, 5, 6, 7, 8], [4]]),
        )
    ]
    for batch in batches * 2:
        forward.begin_step()
        loss, expected = gradients(own.train(), batch)
        again, found = gradients(replayed.train(), batch)
        torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        for optimizer in steps:
            optimizer.step()


def training(**found: object) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Stand-ins of a trainer and a module on a GPU, as far as the callback looks at them."""
    trainer = {"world_size": 1, "accumulate_grad_batches": 1}
    module = {"model": build("up_down"), "device": torch.device("cuda"), "objective": CrossEntropy()}
    return tuple(
        SimpleNamespace(**{name: found.get(name, value) for name, value in parts.items()})
        for parts in (trainer, module)
    )


@pytest.mark.parametrize("family", SOFT)
def test_every_family_with_soft_attention_can_be_recorded(family: str) -> None:
    CudaGraphs().on_train_start(*training(model=build(family)))


def test_the_models_own_forward_pass_comes_back() -> None:
    callback, (trainer, module) = CudaGraphs(), training()
    for end in (callback.on_train_end, partial(callback.on_exception, exception=KeyboardInterrupt())):
        callback.on_train_start(trainer, module)
        assert isinstance(module.model.forward, ReplayedForward)
        end(trainer, module)
        assert "forward" not in vars(module.model)


def test_gradients_that_are_accumulated_later_are_refused() -> None:
    callback, (trainer, module) = CudaGraphs(), training()
    callback.on_train_start(trainer, module)
    trainer.accumulate_grad_batches = 2
    with pytest.raises(InputError, match="trainer.accumulate_grad_batches is 2"):
        callback.on_train_batch_start(trainer, module, None, 0)


class OwnForward(UpDown):
    """A model of the user's with something before the recorded part."""

    def forward(self, features: Tensor, *rest: Tensor | None) -> Output:
        return super().forward(2 * features, *rest)


class OwnUnroll(UpDown):
    """A model of the user's whose `unroll_all` is that of the family."""

    def unroll(self, memory: Tree, tokens: Tensor) -> Output:
        return super().unroll(memory, tokens)


def as_class(kind: type) -> CaptionModel:
    model = build("up_down")
    model.__class__ = kind
    return model


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"model": as_class(OwnForward)}, "OwnForward has a forward pass or an unroll without an unroll_all"),
        ({"model": as_class(OwnUnroll)}, "OwnUnroll has a forward pass or an unroll without an unroll_all"),
        ({"accumulate_grad_batches": 4}, "trainer.accumulate_grad_batches is 4"),
        ({"world_size": 2}, "2 processes share the training"),
        ({"model": build("show_attend_tell_hard")}, "ShowAttendTell samples its attention"),
        ({"objective": SelfCritical(**SELF_CRITICAL)}, "the objective is SelfCritical"),
    ],
)
def test_what_cannot_be_recorded_is_refused(found: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*; give cuda_graphs=false"):
        CudaGraphs().on_train_start(*training(**found))
