"""What stands between the cached features and the attention of a model.

An encoder maps each region by itself; sequence and set encoders (Attentive Translator, Meshed-Memory) belong
to their families. Models take an encoder as a part and read its `output_dim`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from captioning.models.dropout import Dropout


class Encoder(Protocol):
    """A module that maps features (B, R, D) of any float type to (B, R, output_dim)."""

    output_dim: int

    def __call__(self, features: Tensor, /) -> Tensor: ...  # noqa: D102 - see the class


class Standardize(nn.Module):
    """Gives every channel of the features mean 0 and deviation 1; before `fit` it changes nothing.

    Channels of different backbones differ in scale by orders of magnitude, and few layers correct that by
    themselves. The statistics are buffers, so that a checkpoint has them.

    Args:
        feature_dim: D of the cache.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(feature_dim))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the statistics (D,) of the training features; channels that hardly vary are left out."""
        is_constant = deviation <= 1e-3 * deviation.median()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(is_constant, 0.0, 1 / deviation))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise (B, R, D) of any float type, in the statistics' own, to the type of the next layer."""
        dtype = compute_dtype(features, self.scale)
        large = features.numel() >= 100_000 * len(features)  # numbers an image
        by_image = large and features.device.type == "cpu" and not features.requires_grad
        if not by_image or torch.compiler.is_compiling():
            return ((features - self.mean) * self.scale).to(dtype)
        # One image at a time stays in the processor's cache, where values of a large batch do not.
        standardized = torch.empty_like(features, dtype=dtype)
        for image, result in zip(features, standardized, strict=True):
            result.copy_((image - self.mean) * self.scale)
        return standardized


class FeatureProjection(nn.Module):
    """One linear layer with ReLU for every region, then dropout (the encoder of Keydana 2018).

    Args:
        feature_dim: D of the cache.
        output_dim: size of a projected region.
        dropout: probability; 0 in the post.
        standardize: called with `feature_dim`, returns what the features pass first: a `Standardize`, or
            torch's `Identity`.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        output_dim: int,
        dropout: float,
        standardize: Callable[..., nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.standardize = standardize(feature_dim=feature_dim)
        self.linear = nn.Linear(feature_dim, output_dim)
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Project (B, R, D) of any float type to (B, R, output_dim)."""
        features = to_compute_dtype(self.standardize(features), self.linear.weight)
        return self.dropout(torch.relu(self.linear(features)))  # (B, R, output_dim)


class RawFeatures(nn.Module):
    """No projection: attention reads the cached regions themselves.

    Args:
        feature_dim: D of the cache, and `output_dim`.
        standardize: see `FeatureProjection`.
    """

    _like: Tensor

    def __init__(self, *, feature_dim: int, standardize: Callable[..., nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.output_dim = feature_dim
        self.standardize = standardize(feature_dim=feature_dim)
        # There is no weight: an empty buffer follows the model's type, as after `model.double()`.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, R, D) in the type that the model computes in."""
        return to_compute_dtype(self.standardize(features), self._like)


def fit_standardization(model: nn.Module, find: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Set the statistics of a model's standardisation.

    Args:
        model: any; one without standardisation stays as it is.
        find: returns each channel's mean and deviation, (D,) each; called only where they are needed.
    """
    parts = [part for part in model.modules() if isinstance(part, Standardize)]
    if parts:
        statistics = find()
        for part in parts:
            part.fit(*statistics)


def to_compute_dtype(features: Tensor, weight: Tensor) -> Tensor:
    """Convert cached float16 features to the type that a layer with this weight computes in.

    Done once per image: autocast alone would convert the regions again for every word.
    """
    return features.to(compute_dtype(features, weight))


def compute_dtype(features: Tensor, weight: Tensor) -> torch.dtype:
    """Return the type in which a layer with this weight computes: autocast's, or the weight's own."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average the real regions: values (B, R, D) with mask (B, R), or None if all are real, to (B, D)."""
    if mask is None:
        return values.mean(1)
    weights = mask.to(values.dtype)[..., None]  # (B, R, 1)
    return (values * weights).sum(1) / weights.sum(1)  # (B, D)
