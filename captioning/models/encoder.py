"""What stands between cached features and attention."""

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.dropout import Dropout
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
        self.dropout = Dropout(dropout)

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
    """Reads regions one after the other with an LSTM (Liu et al. 2017).

    Args:
        feature_dim: D of the cache.
        embedding_dim: size of a projected region.
        hidden_dim: H of the states.
        dropout: probability, on projected regions.
        global_feature: whether the mean region is read as the last one.
        bidirectional: whether a second LSTM reads from the end; each then has H/2.

    Raises:
        InputError: an odd H for two directions.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        dropout: float,
        global_feature: bool,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        directions = 2 if bidirectional else 1
        if hidden_dim % directions:
            raise InputError(f"model.bidirectional needs an even model.hidden_dim, found {hidden_dim}")
        self.global_feature = global_feature
        self.project = nn.Linear(feature_dim, embedding_dim)
        self.lstm = nn.LSTM(
            embedding_dim, hidden_dim // directions, batch_first=True, bidirectional=bidirectional
        )
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, LSTMState]:
        """Read (B, R, D) with mask (B, R): states (B, R, H), the mean's after them if read; last state."""
        source = features
        if self.global_feature:
            source = torch.cat([features, masked_mean(features, mask)[:, None]], 1)  # (B, R+1, D)
        given = self.dropout(self.project(source))
        if mask.all():  # a grid: nothing to pack, and bfloat16 pays
            states, (hidden, cell) = self.lstm(given)
            return states, _joined(hidden, cell)
        given = given.float()
        # Padding stands between the last region and the mean: the mean is read after the real regions
        # instead.
        counts, extra = mask.sum(1), int(self.global_feature)
        rows = torch.arange(len(given), device=given.device)
        place = torch.arange(given.shape[1], device=given.device).expand(len(given), -1)
        order = place
        if extra:
            order = torch.where(place == counts[:, None], given.shape[1] - 1, place)
        packed = nn.utils.rnn.pack_padded_sequence(
            given[rows[:, None], order], (counts + extra).cpu(), batch_first=True, enforce_sorted=False
        )
        with torch.autocast(given.device.type, enabled=False):
            states, (hidden, cell) = self.lstm(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=given.shape[1])
        if extra:
            states = torch.cat([states[:, :-1] * mask[..., None], states[rows, counts][:, None]], 1)
        return states, _joined(hidden, cell)


def _joined(hidden: Tensor, cell: Tensor) -> LSTMState:
    """Put the last states of both directions side by side: (directions, B, ·) -> (B, H)."""
    return LSTMState(*(torch.cat(part.float().unbind(), -1) for part in (hidden, cell)))
