"""Features in any scale: statistics of the training split, standardisation in the encoder, the way back."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from captioning import checkpoint
from captioning.data import CaptionDataModule
from captioning.models import (
    Encoder,
    FeatureProjection,
    RawFeatures,
    Standardize,
    fit_standardization,
)
from captioning.training.assembly import assemble
from tests.conftest import DIM, REGIONS, build, compose_config


def test_standardised_features_have_mean_0_and_deviation_1_and_constant_channels_are_left_out() -> None:
    features = torch.randn(200, REGIONS, DIM) * torch.logspace(-1, 2, DIM) + 7
    features[..., 2] = 3.0
    part = Standardize(feature_dim=DIM)
    assert torch.equal(part(features), features)
    part.fit(features.mean((0, 1)), features.std((0, 1)))
    found = part(features.half())
    expected = torch.ones(DIM).index_fill(0, torch.tensor(2), 0.0)
    torch.testing.assert_close(found.mean((0, 1)), torch.zeros(DIM), atol=0.02, rtol=0)
    torch.testing.assert_close(found.std((0, 1)), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_image_by_image_or_as_one_batch_standardised_features_are_the_same_to_the_last_bit(
    dtype: torch.dtype, autocast: bool
) -> None:
    features = (torch.randn(3, 50, 2000) * 3 + 1).to(dtype)
    part = Standardize(feature_dim=2000)
    part.fit(torch.rand(2000), torch.rand(2000) + 0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = part(features)
        whole = part(features.clone().requires_grad_())  # as one, so that gradients can flow
    assert found.dtype == whole.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert torch.equal(found, whole) and whole.requires_grad
    assert part(features[:0]).shape == (0, 50, 2000)


@pytest.mark.parametrize("encoder", [RawFeatures, partial(FeatureProjection, output_dim=7, dropout=0.0)])
def test_a_model_of_standardised_features_reads_features_of_any_scale(
    encoder: Callable[..., Encoder],
) -> None:
    features, scale, shift = torch.randn(3, REGIONS, DIM), torch.logspace(-1, 1, DIM), torch.arange(DIM)
    plain, scaled = (
        build("up_down", encoder=encoder(feature_dim=DIM, standardize=part))
        for part in (torch.nn.Identity, Standardize)
    )
    assert not any("standardize" in name for name in plain.state_dict())
    fit_standardization(scaled, lambda: (shift.float(), scale))
    scaled.load_state_dict(plain.state_dict(), strict=False)
    words = torch.full((3, 2), 4)
    expected = plain(features, words).hidden
    torch.testing.assert_close(scaled(features * scale + shift, words).hidden, expected, atol=1e-4, rtol=1e-4)


def test_statistics_are_computed_only_for_models_that_use_them() -> None:
    fit_standardization(build("up_down"), lambda: pytest.fail("nothing needs them"))


def test_the_statistics_are_those_of_the_training_split_and_come_back_with_the_checkpoint(
    toy_overrides: list[str], toy_data: CaptionDataModule, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    config = compose_config("train", *toy_overrides, f"output_dir={folder}", "trainer.limit_train_batches=1")
    run = assemble(config)
    run.fit()
    regions = toy_data.cache.read([record.image_id for record in toy_data.split("train")]).astype(np.float64)
    part = checkpoint.load(folder).model.encoder.standardize
    np.testing.assert_allclose(part.mean.numpy(), regions.mean((0, 1)), rtol=1e-4, atol=1e-6)
    live = regions.std((0, 1)) > 0
    assert live.any()
    np.testing.assert_allclose(part.scale.numpy()[live] * regions.std((0, 1))[live], 1, rtol=1e-3)
