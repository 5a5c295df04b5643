"""Meshed-Memory Transformer (Cornia et al., CVPR 2020), "M2".

    Z_l = norm(X_{l-1} + attention(W_q X_{l-1}, [W_k X_{l-1}; M_k], [W_v X_{l-1}; M_v]))
    X_l = norm(Z_l + W_2 f(W_1 Z_l)),  l = 1 .. L        the encoder's levels over X_0, the projected regions
    C_l = norm(Y + attention(W_q Y, W_k X_l, W_v X_l))   cross-attention of the words Y to each level
    Y'  = sum_l sigma(W_l [Y; C_l]) C_l / sqrt(L)        the mesh

M_k and M_v are learned slots that all images share: knowledge about regions that is not visible in them. The
decoder attends to all levels of the encoder with the same weights and one gate per level. As in the authors'
code, the norm stands inside each C_l, slots are multiplied by sqrt(d) and sqrt(m) (d the size of a head, m
the number of slots), and the sum over levels is divided by sqrt(L).

Departures from that code: slots are initialised with variances 1/d and 1/m, so that after the factors they
are as large as normalised regions, where its uniform initialisation of all matrices makes them about fifteen
times smaller; the other weights as torch does; GELU instead of ReLU, dropout after the norm of the projected
regions and on the embedded words, word vectors times sqrt(H), a bias in the last layer.

The attention returned is the last layer's, averaged over its heads and, weighted by the means of the gates,
over levels.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder
from captioning.models.transformer_decoder import (
    DecoderLayer,
    TransformerDecoder,
    attend,
    build_mlp,
    split_heads,
)


class MemoryLayer(nn.Module):
    """Self-attention of regions, extended by learned slots, and an MLP; each followed by a norm (post-norm).

    Args:
        hidden_dim: H.
        num_heads: a divisor of H.
        mlp_dim: size of the MLP's hidden layer.
        num_slots: m, learned keys and values.
        dropout: probability, on each part's output.
    """

    def __init__(
        self, *, hidden_dim: int, num_heads: int, mlp_dim: int, num_slots: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads, self.num_slots = num_heads, num_slots
        self.self_attn_qkv = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.self_attn_out = nn.Linear(hidden_dim, hidden_dim)
        self.slot_keys = nn.Parameter(torch.randn(num_slots, hidden_dim) / math.sqrt(hidden_dim // num_heads))
        self.slot_values = nn.Parameter(torch.randn(num_slots, hidden_dim) / math.sqrt(num_slots))
        self.mlp = build_mlp(hidden_dim, mlp_dim, dropout)
        self.self_attn_norm, self.mlp_norm = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from regions (B, R, H) to the real ones, by mask (B, R), and to the slots: (B, R, H)."""
        query, keys, values = self.self_attn_qkv(regions).chunk(3, -1)  # (B, R, H) each
        head_dim = regions.shape[-1] // self.num_heads
        keys = self._append(keys, self.slot_keys * math.sqrt(head_dim))  # (B, R + m, H)
        values = self._append(values, self.slot_values * math.sqrt(self.num_slots))  # (B, R + m, H)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), self.num_slots)], 1)[:, None, None]
        query, keys, values = (split_heads(part, self.num_heads) for part in (query, keys, values))
        context, _ = attend(query, keys, values, mask)  # (B, R, H)
        regions = self.self_attn_norm(regions + self.dropout(self.self_attn_out(context)))
        return self.mlp_norm(regions + self.dropout(self.mlp(regions)))

    def _append(self, x: Tensor, slots: Tensor) -> Tensor:
        return torch.cat([x, slots.to(x.dtype).expand(len(x), -1, -1)], 1)


class MeshedLayer(DecoderLayer):
    """A post-norm decoder layer with gated cross-attention to every level of the encoder.

    Args:
        num_levels: L of the encoder.
        sizes: as in `DecoderLayer`.
    """

    def __init__(self, *, num_levels: int, **sizes: Any) -> None:
        super().__init__(**sizes)
        hidden_dim = self.self_attn_out.out_features
        self.gates = nn.ModuleList(nn.Linear(2 * hidden_dim, hidden_dim) for _ in range(num_levels))

    def normalize_input(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Return x itself: norms follow the residual connections here."""
        return x

    def add_residual(self, norm: nn.Module, x: Tensor, update: Tensor) -> Tensor:
        """Add the output of a part of the layer to x, and normalise; (B, T, H) each."""
        return norm(x + self.dropout(update))

    def cross_attention(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend from words x (B, T, H) to the keys and values of all levels, (B, heads, L R, H/heads) each.

        Returns:
            x (B, T, H), and the weights averaged over heads and levels (B, T, R).
        """
        num_levels, query = len(self.gates), self.heads(self.cross_attn_q(x))
        gated, weights, gate_means = [], [], []
        levels = zip(self.gates, keys.chunk(num_levels, 2), values.chunk(num_levels, 2), strict=True)
        for gate_layer, key, value in levels:
            context, weight = attend(query, key, value, None if mask is None else mask[:, None, None])
            level = self.add_residual(self.cross_attn_norm, x, self.cross_attn_out(context))  # (B, T, H)
            gate = torch.sigmoid(gate_layer(torch.cat([x, level.to(x.dtype)], -1)))  # (B, T, H)
            gated.append(gate * level)
            weights.append(weight.mean(1))  # (B, T, R)
            gate_means.append(gate.float().mean(-1, keepdim=True))  # (B, T, 1)
        mesh = torch.stack(gated).sum(0) / math.sqrt(num_levels)  # (B, T, H)
        shares = torch.stack(gate_means)  # (L, B, T, 1)
        return mesh, (torch.stack(weights) * shares).sum(0) / shares.sum(0)


class MeshedMemory(TransformerDecoder):
    """Memory-augmented encoder + meshed decoder; the memory holds the levels one after the other.

    Args:
        encoder: see `Encoder`; its output is projected to H and normalised.
        vocabulary_size: V, the four special ids included.
        hidden_dim: H.
        num_levels: L, layers of the memory-augmented encoder.
        num_layers: of the decoder.
        num_heads: a divisor of H.
        mlp_dim: size of the hidden layer of each layer's MLP.
        num_slots: m, learned keys and values of each encoder layer.
        dropout: probability.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        hidden_dim: int,
        num_levels: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_slots: int,
        dropout: float,
    ) -> None:
        sizes: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "dropout": dropout,
        }
        super().__init__(
            encoder=encoder,
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            layer=partial(MeshedLayer, num_levels=num_levels),
            **sizes,
        )
        self.norm = nn.Identity()  # every layer ends with a norm
        self.levels = nn.ModuleList(MemoryLayer(num_slots=num_slots, **sizes) for _ in range(num_levels))

    def encode_regions(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Encode regions (B, R, D) in L levels, concatenated: (B, L R, H)."""
        levels = [super().encode_regions(features, mask)]
        for layer in self.levels:
            levels.append(layer(levels[-1], mask))
        return torch.cat(levels[1:], 1)
