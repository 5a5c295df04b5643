"""What the Transformer families share: a causal decoder over words that attends to regions.

Vaswani et al. (2017); words carry sinusoidal positions, regions none. Teacher forcing runs all words in
parallel; `step` keeps keys and values of the words before. The attention shown is the last layer's over the
regions, averaged over its heads. A family says how regions are read and what a layer is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output, Step, real_steps
from captioning.models.dropout import Dropout
from captioning.models.encoder import as_computed


class TransformerMemory(NamedTuple):
    """Keys and values of the regions for every layer, (B, heads, R, H/heads) each, and the mask (B, R)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None


class TransformerState(NamedTuple):
    """Keys and values of the words so far for every layer, (B, heads, t, H/heads) each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute scaled dot-product attention (Vaswani et al. 2017, equation 1), every head by itself.

    Written out, because torch's fused form hides the weights and, forward and backward, takes more than
    five times as long on a CPU for captions as short as these (`benchmarks/own_parts.py`).

    Args:
        query: (B, heads, n, d).
        keys: (B, heads, m, d).
        values: (B, heads, m, d).
        mask: true where a query may look, broadcast to (B, heads, n, m); None lets it look anywhere.

    Returns:
        What was seen, the heads side by side (B, n, heads * d), and the weights (B, heads, n, m).
    """
    scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.float().softmax(-1)
    return (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2), weights


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split (B, n, H) into heads: (B, heads, n, H/heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def two_linear(hidden_dim: int, inner_dim: int, dropout: float) -> nn.Sequential:
    """Build the two linear layers that end every layer of a Transformer: (…, H) -> (…, H)."""
    return nn.Sequential(
        nn.Linear(hidden_dim, inner_dim), nn.GELU(), Dropout(dropout), nn.Linear(inner_dim, hidden_dim)
    )


class DecoderLayer(nn.Module):
    """Self-attention, attention to the regions, two linear layers; each behind a norm and with a residual.

    This is the pre-norm form; `before` and `after` say where the norms stand.

    Args:
        hidden_dim: H.
        num_heads: that divide H.
        inner_dim: size between the two linear layers.
        dropout: probability, on each part's output.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise InputError(
                f"model.num_heads={num_heads} does not divide model.hidden_dim={hidden_dim}; choose one that "
                "does"
            )
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(3))
        self.own = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.own_output = nn.Linear(hidden_dim, hidden_dim)
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.region = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.region_output = nn.Linear(hidden_dim, hidden_dim)
        self.inner = two_linear(hidden_dim, inner_dim, dropout)
        self.dropout = Dropout(dropout)

    def before(self, part: int, x: Tensor) -> Tensor:
        """Prepare what a part of the layer (0: words, 1: regions, 2: linear) reads: normalise it."""
        return self.norms[part](x)

    def after(self, part: int, x: Tensor, found: Tensor) -> Tensor:
        """Join what a part of the layer found with what it was given."""
        return x + self.dropout(found)

    def heads(self, x: Tensor) -> Tensor:
        """Split (B, n, H) into heads: (B, heads, n, H/heads)."""
        return split_heads(x, self.num_heads)

    def look_at_words(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to the words up to each (causal), with those `before`; returns x, keys and values of all."""
        query, key, value = (self.heads(part) for part in self.own(self.before(0, x)).chunk(3, -1))
        if before is not None:
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        length, earlier = query.shape[2], key.shape[2] - query.shape[2]
        causal = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device).tril(earlier)
        seen, _ = attend(query, key, value, causal)
        return self.after(0, x, self.own_output(seen)), key, value

    def look_at_regions(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend to the regions; returns x (B, T, H) and the heads' mean weights (B, T, R)."""
        query = self.heads(self.query(self.before(1, x)))
        seen, weights = attend(query, keys, values, None if mask is None else mask[:, None, None])
        return self.after(1, x, self.region_output(seen)), weights.mean(1)

    def think(self, x: Tensor) -> Tensor:
        """Apply the two linear layers."""
        return self.after(2, x, self.inner(self.before(2, x)))


class TransformerDecoder(CaptionModel):
    """A decoder of Transformer layers; memory: keys and values of regions; state: those of words.

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        hidden_dim: H.
        num_layers: of the decoder.
        num_heads: that divide H.
        inner_dim: size of a layer's inner linear layer.
        dropout: probability, also on regions, embedded words and before the head.
        layer: builds a layer from `hidden_dim`, `num_heads`, `inner_dim` and `dropout`.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        inner_dim: int,
        dropout: float,
        layer: Callable[..., DecoderLayer] = DecoderLayer,
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.project = nn.Linear(feature_dim, hidden_dim)
        self.project_norm = nn.LayerNorm(hidden_dim)
        self.embedding = nn.Embedding(vocabulary_size, hidden_dim)
        self.layers = nn.ModuleList(
            layer(hidden_dim=hidden_dim, num_heads=num_heads, inner_dim=inner_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm: nn.Module = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=hidden_dim**-0.5)

    def decoder(self) -> list[DecoderLayer]:
        """List the layers."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def read_regions(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Project regions (B, R, D), each by itself: (B, R, H)."""
        regions = torch.relu(self.project(as_computed(features, self.project.weight)))
        return self.dropout(self.project_norm(regions))

    def encode(self, features: Tensor, mask: Tensor | None = None) -> TransformerMemory:
        """Read the regions and compute every layer's keys and values of them."""
        regions = self.read_regions(features, mask)
        pairs = [
            [layer.heads(part) for part in layer.region(regions).chunk(2, -1)] for layer in self.decoder()
        ]
        return TransformerMemory(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), mask)

    def start(self, memory: TransformerMemory) -> TransformerState:
        """Begin without words."""
        empty = tuple(keys[:, :, :0] for keys in memory.keys)
        return TransformerState(empty, empty)

    def step(self, tokens: Tensor, state: TransformerState, memory: TransformerMemory) -> Step:
        """Take one word (B,)."""
        x = self._embed(tokens[:, None], state.keys[0].shape[2])  # (B, 1, H)
        keys, values, weights = [], [], None
        for i, layer in enumerate(self.decoder()):
            x, key, value = layer.look_at_words(x, (state.keys[i], state.values[i]))
            x, weights = layer.look_at_regions(x, memory.keys[i], memory.values[i], memory.mask)
            x = layer.think(x)
            keys.append(key)
            values.append(value)
        attention = weights[:, 0] if weights is not None else None
        return Step(self.norm(x)[:, 0], attention, TransformerState(tuple(keys), tuple(values)))

    def unroll(self, memory: TransformerMemory, tokens: Tensor) -> Output:
        """Take all words (B, T) in parallel; padding stands after the words, so causality hides it."""
        x, weights = self._embed(tokens, 0), torch.zeros(())
        for i, layer in enumerate(self.decoder()):
            x, _, _ = layer.look_at_words(x, None)
            x, weights = layer.look_at_regions(x, memory.keys[i], memory.values[i], memory.mask)
            x = layer.think(x)
        real = real_steps(tokens)[..., None]  # (B, T, 1)
        return Output(self.norm(x) * real, weights * real, memory)

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words."""
        return self.output(self.dropout(hidden))

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        """Embed words (B, T) that stand at positions from `first` on: (B, T, H)."""
        words = self.embedding(tokens) * math.sqrt(self.hidden_dim)
        return self.dropout(words + positions(first, tokens.shape[1], self.hidden_dim).to(words))


def positions(first: int, count: int, size: int) -> Tensor:
    """Compute sinusoidal positions (Vaswani et al. 2017, section 3.5): (count, size)."""
    place = torch.arange(first, first + count, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * (-math.log(10000.0) / size))
    return torch.stack([torch.sin(place * rate), torch.cos(place * rate)], -1).flatten(1)[:, :size]
