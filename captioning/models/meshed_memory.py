"""Meshed-Memory Transformer (Cornia et al., CVPR 2020), "M2".

    Z_l = norm(X_{l-1} + attention(W_q X_{l-1}, [W_k X_{l-1}; M_k], [W_v X_{l-1}; M_v]))
    X_l = norm(Z_l + W_2 f(W_1 Z_l)),  l = 1 .. L        the encoder's levels over X_0, the projected regions
    C_l = norm(Y + attention(W_q Y, W_k X_l, W_v X_l))   what the words Y see of each level
    Y'  = sum_l sigma(W_l [Y; C_l]) C_l / sqrt(L)        the mesh

M_k and M_v are learnt slots that every image shares: what is known of regions without seeing it there. The
decoder attends to all levels of the encoder with the same weights and one gate a level. As in the authors'
code, the norm stands inside each C_l, slots are multiplied by sqrt(d) and sqrt(m) (d a head's size, m their
number), and levels are summed over sqrt(L).

Departures from that code: slots begin with variances 1/d and 1/m, so that after the factors they are as large
as normalised regions, where its uniform initialisation of all matrices makes them about fifteen times
smaller; torch's initialisation of the others; GELU instead of ReLU, dropout after the norm of the projected
regions and on the embedded words, word vectors times sqrt(H), a bias in the last layer.

The attention shown is the last layer's, averaged over its heads and over the levels by their gates' means.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captioning.models.dropout import Dropout
from captioning.models.transformer_decoder import (
    DecoderLayer,
    TransformerDecoder,
    attend,
    split_heads,
    two_linear,
)


class MemoryLayer(nn.Module):
    """Attention of the regions to each other and to learnt slots, two linear layers, each followed by a norm.

    Args:
        hidden_dim: H.
        num_heads: that divide H.
        inner_dim: size between the two linear layers.
        num_slots: m, learnt keys and values.
        dropout: probability, on each part's output.
    """

    def __init__(
        self, *, hidden_dim: int, num_heads: int, inner_dim: int, num_slots: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads, self.num_slots = num_heads, num_slots
        self.own = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.own_output = nn.Linear(hidden_dim, hidden_dim)
        self.slot_keys = nn.Parameter(torch.randn(num_slots, hidden_dim) / math.sqrt(hidden_dim // num_heads))
        self.slot_values = nn.Parameter(torch.randn(num_slots, hidden_dim) / math.sqrt(num_slots))
        self.inner = two_linear(hidden_dim, inner_dim, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """Let regions (B, R, H) look at the real ones of (B, R) and at the slots: (B, R, H)."""
        query, keys, values = self.own(regions).chunk(3, -1)  # (B, R, H) each
        size = regions.shape[-1] // self.num_heads
        keys = self._with_slots(keys, self.slot_keys * math.sqrt(size))
        values = self._with_slots(values, self.slot_values * math.sqrt(self.num_slots))
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), self.num_slots)], 1)[:, None, None]
        query, keys, values = (split_heads(part, self.num_heads) for part in (query, keys, values))
        seen, _ = attend(query, keys, values, mask)
        regions = self.norms[0](regions + self.dropout(self.own_output(seen)))
        return self.norms[1](regions + self.dropout(self.inner(regions)))

    def _with_slots(self, x: Tensor, slots: Tensor) -> Tensor:
        return torch.cat([x, slots.to(x.dtype).expand(len(x), -1, -1)], 1)  # (B, R + m, H)


class MeshedLayer(DecoderLayer):
    """A decoder layer that looks at every level of the encoder, gated; norms follow instead of preceding.

    Args:
        levels: L of the encoder.
        sizes: as in `DecoderLayer`.
    """

    def __init__(self, *, levels: int, **sizes: Any) -> None:
        super().__init__(**sizes)
        hidden_dim = self.own_output.out_features
        self.gates = nn.ModuleList(nn.Linear(2 * hidden_dim, hidden_dim) for _ in range(levels))

    def before(self, part: int, x: Tensor) -> Tensor:
        """Leave what a part reads as it is."""
        return x

    def after(self, part: int, x: Tensor, found: Tensor) -> Tensor:
        """Join what a part found with what it was given, and normalise."""
        return self.norms[part](x + self.dropout(found))

    def look_at_regions(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend to all levels' regions (B, heads, L R, d); returns x (B, T, H), mean weights (B, T, R)."""
        levels, query = len(self.gates), self.heads(self.query(x))
        seen, weights, shares = [], [], []
        for gate, key, value in zip(self.gates, keys.chunk(levels, 2), values.chunk(levels, 2), strict=True):
            found, weight = attend(query, key, value, None if mask is None else mask[:, None, None])
            found = self.after(1, x, self.region_output(found))
            share = torch.sigmoid(gate(torch.cat([x, found.to(x.dtype)], -1)))  # (B, T, H)
            seen.append(share * found)
            weights.append(weight.mean(1))
            shares.append(share.float().mean(-1, keepdim=True))
        mesh = torch.stack(seen).sum(0) / math.sqrt(levels)
        share = torch.stack(shares)  # (L, B, T, 1)
        return mesh, (torch.stack(weights) * share).sum(0) / share.sum(0)


class MeshedMemory(TransformerDecoder):
    """Memory-augmented encoder + meshed decoder; the memory holds all levels in a row.

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        hidden_dim: H.
        num_levels: L, layers of the encoder.
        num_layers: of the decoder.
        num_heads: that divide H.
        inner_dim: size of a layer's inner linear layer.
        num_slots: m, learnt keys and values of each encoder layer.
        dropout: probability.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        hidden_dim: int,
        num_levels: int,
        num_layers: int,
        num_heads: int,
        inner_dim: int,
        num_slots: int,
        dropout: float,
    ) -> None:
        sizes: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "inner_dim": inner_dim,
            "dropout": dropout,
        }
        super().__init__(
            feature_dim=feature_dim,
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            layer=partial(MeshedLayer, levels=num_levels),
            **sizes,
        )
        self.norm = nn.Identity()  # every layer ends in a norm
        self.levels = nn.ModuleList(MemoryLayer(num_slots=num_slots, **sizes) for _ in range(num_levels))

    def read_regions(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Let regions (B, R, D) look at each other, L times; all levels one behind the other: (B, L R, H)."""
        levels = [super().read_regions(features, mask)]
        for level in self.levels:
            levels.append(level(levels[-1], mask))
        return torch.cat(levels[1:], 1)
