"""What stands between cached features and attention."""

import torch
from torch import Tensor, nn


class FeatureProjection(nn.Module):
    """The seed's encoder: one fully connected layer with ReLU for every region, then dropout.

    Args:
        feature_dim: D of the cache.
        encoder_dim: size of a projected region.
        dropout: probability; 0 in the post.
    """

    def __init__(self, *, feature_dim: int, encoder_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, encoder_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Project (B, R, D) in any float type to (B, R, encoder_dim)."""
        return self.dropout(torch.relu(self.linear(as_computed(features, self.linear.weight))))


def as_computed(features: Tensor, weight: Tensor) -> Tensor:
    """Bring cached float16 features to the weights' type.

    Under autocast the linear layer converts by itself; a detour over float32 would cost as much as the layer.
    """
    return features if torch.is_autocast_enabled(features.device.type) else features.to(weight.dtype)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real regions: (B, R, D), (B, R) -> (B, D)."""
    if mask is None:
        return values.mean(1)
    weights = mask.to(values.dtype)[..., None]  # (B, R, 1)
    return (values * weights).sum(1) / weights.sum(1)
