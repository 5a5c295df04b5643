"""What stands between cached features and attention."""

import torch
from torch import Tensor, nn

from captioning.models.recurrent import LSTMState


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


class RawFeatures(nn.Module):
    """No encoder: attention sees the cached regions themselves."""

    def forward(self, features: Tensor) -> Tensor:
        """Give (B, R, D) in the type that is computed in."""
        return as_computed(features, torch.empty(0))


def as_computed(features: Tensor, weight: Tensor) -> Tensor:
    """Bring cached float16 features to the type that is computed in, once.

    Autocast would convert regions again for every word that looks at them.
    """
    device = features.device.type
    autocast = torch.is_autocast_enabled(device)
    return features.to(torch.get_autocast_dtype(device) if autocast else weight.dtype)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real regions: (B, R, D), (B, R) -> (B, D)."""
    if mask is None:
        return values.mean(1)
    weights = mask.to(values.dtype)[..., None]  # (B, R, 1)
    return (values * weights).sum(1) / weights.sum(1)


class RegionSequence(nn.Module):
    """Reads regions one after the other with an LSTM, the mean region last (Liu et al. 2017).

    Args:
        feature_dim: D of the cache.
        embedding_dim: size of a projected region.
        hidden_dim: H of the LSTM.
        dropout: probability, on projected regions.
    """

    def __init__(self, *, feature_dim: int, embedding_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(feature_dim, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, LSTMState]:
        """Read (B, R, D) with mask (B, R): states (B, R+1, H), the mean's last, and the final state."""
        source = torch.cat([features, masked_mean(features, mask)[:, None]], 1)  # (B, R+1, D)
        given = self.dropout(self.project(source))
        if mask.all():  # a grid: nothing to pack, and bfloat16 pays
            states, (hidden, cell) = self.lstm(given)
            return states.float(), LSTMState(hidden[0].float(), cell[0].float())
        given = given.float()
        # Padding stands between the last region and the mean: the mean is read after the real regions
        # instead.
        counts = mask.sum(1)
        rows = torch.arange(len(given), device=given.device)
        place = torch.arange(given.shape[1], device=given.device).expand(len(given), -1)
        order = torch.where(place == counts[:, None], given.shape[1] - 1, place)
        packed = nn.utils.rnn.pack_padded_sequence(
            given[rows[:, None], order], (counts + 1).cpu(), batch_first=True, enforce_sorted=False
        )
        with torch.autocast(given.device.type, enabled=False):
            states, (hidden, cell) = self.lstm(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=given.shape[1])
        last = states[rows, counts]
        states = torch.cat([states[:, :-1] * mask[..., None], last[:, None]], 1)
        return states, LSTMState(hidden[0], cell[0])
