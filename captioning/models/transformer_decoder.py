"""What the Transformer families share: a causal decoder over words with cross-attention to regions.

Vaswani et al. (2017); words carry sinusoidal positions, regions none. Teacher forcing runs all words in
parallel; `step` keeps keys and values of the words before. The attention returned is the last layer's over
the regions, averaged over its heads. A family defines how regions are encoded and what a layer is.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output, Step, real_steps
from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder


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
    """Compute scaled dot-product attention for each head (Vaswani et al. 2017, equation 1).

    Args:
        query: (B, heads, n, d).
        keys: (B, heads, m, d).
        values: (B, heads, m, d).
        mask: True where a query may attend, broadcast to (B, heads, n, m); None if it may everywhere.

    Returns:
        The context vectors, heads concatenated (B, n, heads * d), and the weights (B, heads, n, m).
    """
    # Written out, because torch's fused form does not return the weights and takes, forward and backward,
    # more than five times as long on a CPU for captions as short as these (`benchmarks/own_parts.py`).
    scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, heads, n, m)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.float().softmax(-1)  # in float32 under autocast too
    return (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2), weights


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split (B, n, H) into heads: (B, heads, n, H/heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def build_mlp(hidden_dim: int, mlp_dim: int, dropout: float) -> nn.Sequential:
    """Build the two linear layers that end every layer of a Transformer: (…, H) -> (…, H)."""
    return nn.Sequential(
        nn.Linear(hidden_dim, mlp_dim), nn.GELU(), Dropout(dropout), nn.Linear(mlp_dim, hidden_dim)
    )


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the regions and an MLP, each with a norm and a residual connection.

    The norms stand before each part (pre-norm); `normalize_input` and `add_residual` decide that.

    Args:
        hidden_dim: H.
        num_heads: a divisor of H.
        mlp_dim: size of the MLP's hidden layer.
        dropout: probability, on each part's output.

    Raises:
        InputError: the number of heads does not divide H.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise InputError(
                f"model.num_heads={num_heads} does not divide model.hidden_dim={hidden_dim}; choose one that "
                "does"
            )
        self.num_heads = num_heads
        self.self_attn_norm, self.cross_attn_norm, self.mlp_norm = (
            nn.LayerNorm(hidden_dim) for _ in range(3)
        )
        self.self_attn_qkv = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.self_attn_out = nn.Linear(hidden_dim, hidden_dim)
        self.cross_attn_q = nn.Linear(hidden_dim, hidden_dim)
        self.cross_attn_kv = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.cross_attn_out = nn.Linear(hidden_dim, hidden_dim)
        self.mlp = build_mlp(hidden_dim, mlp_dim, dropout)
        self.dropout = Dropout(dropout)

    def normalize_input(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Compute the input of a part of the layer from x (B, T, H)."""
        return norm(x)

    def add_residual(self, norm: nn.Module, x: Tensor, update: Tensor) -> Tensor:
        """Add the output of a part of the layer, `update`, to x; (B, T, H) each."""
        return x + self.dropout(update)

    def heads(self, x: Tensor) -> Tensor:
        """Split (B, n, H) into heads: (B, heads, n, H/heads)."""
        return split_heads(x, self.num_heads)

    def self_attention(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from words (B, T, H) to themselves and the words before.

        Args:
            x: (B, T, H).
            past: keys and values of earlier words, (B, heads, t, H/heads) each.

        Returns:
            x (B, T, H), and keys and values of all words, (B, heads, t + T, H/heads) each.
        """
        qkv = self.self_attn_qkv(self.normalize_input(self.self_attn_norm, x))  # (B, T, 3H)
        query, key, value = (self.heads(part) for part in qkv.chunk(3, -1))  # (B, heads, T, H/heads) each
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        length, earlier = query.shape[2], key.shape[2] - query.shape[2]
        causal = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device).tril(earlier)
        context, _ = attend(query, key, value, causal)  # (B, T, H)
        return self.add_residual(self.self_attn_norm, x, self.self_attn_out(context)), key, value

    def cross_attention(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend from words x (B, T, H) to the regions' keys and values, (B, heads, R, H/heads) each.

        Returns:
            x (B, T, H), and the weights averaged over heads (B, T, R).
        """
        query = self.heads(self.cross_attn_q(self.normalize_input(self.cross_attn_norm, x)))
        context, weights = attend(query, keys, values, None if mask is None else mask[:, None, None])
        x = self.add_residual(self.cross_attn_norm, x, self.cross_attn_out(context))  # (B, T, H)
        return x, weights.mean(1)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to each word: (B, T, H)."""
        return self.add_residual(self.mlp_norm, x, self.mlp(self.normalize_input(self.mlp_norm, x)))


class TransformerDecoder(CaptionModel):
    """A decoder of Transformer layers; memory: keys and values of regions; state: those of words.

    Args:
        encoder: see `Encoder`; its output is projected to H and normalised.
        vocabulary_size: V, the four special ids included.
        hidden_dim: H.
        num_layers: of the decoder.
        num_heads: a divisor of H.
        mlp_dim: size of the hidden layer of each layer's MLP.
        dropout: probability, also on regions, embedded words and before the head.
        layer: builds a layer from `hidden_dim`, `num_heads`, `mlp_dim` and `dropout`.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
        layer: Callable[..., DecoderLayer] = DecoderLayer,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.project = nn.Linear(encoder.output_dim, hidden_dim)
        self.project_norm = nn.LayerNorm(hidden_dim)
        self.embedding = nn.Embedding(vocabulary_size, hidden_dim)
        self.layers = nn.ModuleList(
            layer(hidden_dim=hidden_dim, num_heads=num_heads, mlp_dim=mlp_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm: nn.Module = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=hidden_dim**-0.5)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """`layers` with the type of its items, which a ModuleList does not carry."""
        return cast("list[DecoderLayer]", list(self.layers))

    def encode_regions(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Project regions (B, R, D), each by itself: (B, R, H)."""
        regions = torch.relu(self.project(self.encoder(features)))  # (B, R, H)
        return self.dropout(self.project_norm(regions))

    def encode(self, features: Tensor, mask: Tensor | None = None) -> TransformerMemory:
        """Encode the regions and compute every layer's keys and values of them."""
        regions = self.encode_regions(features, mask)  # (B, R, H)
        pairs = [
            [layer.heads(part) for part in layer.cross_attn_kv(regions).chunk(2, -1)]
            for layer in self.decoder_layers
        ]
        return TransformerMemory(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), mask)

    def start(self, memory: TransformerMemory) -> TransformerState:
        """Return empty keys and values."""
        empty = tuple(keys[:, :, :0] for keys in memory.keys)
        return TransformerState(empty, empty)

    def step(self, tokens: Tensor, state: TransformerState, memory: TransformerMemory) -> Step:
        """Process one word (B,) of each caption."""
        x = self._embed(tokens[:, None], state.keys[0].shape[2])  # (B, 1, H)
        keys, values, weights = [], [], None
        for i, layer in enumerate(self.decoder_layers):
            x, key, value = layer.self_attention(x, (state.keys[i], state.values[i]))
            x, weights = layer.cross_attention(x, memory.keys[i], memory.values[i], memory.mask)
            x = layer.feed_forward(x)  # (B, 1, H)
            keys.append(key)
            values.append(value)
        attention = weights[:, 0] if weights is not None else None  # (B, R)
        return Step(self.norm(x)[:, 0], attention, TransformerState(tuple(keys), tuple(values)))

    def unroll(self, memory: TransformerMemory, tokens: Tensor) -> Output:
        """Process all words (B, T) in parallel."""
        # Words need no mask: padding stands after them, where causal attention does not reach.
        x, weights = self._embed(tokens, 0), torch.zeros(())
        for i, layer in enumerate(self.decoder_layers):
            x, _, _ = layer.self_attention(x, None)
            x, weights = layer.cross_attention(x, memory.keys[i], memory.values[i], memory.mask)
            x = layer.feed_forward(x)  # (B, T, H)
        real = real_steps(tokens)[..., None]  # (B, T, 1)
        return Output(self.norm(x) * real, weights * real, memory)

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, H) -> (…, V)."""
        return self.output(self.dropout(hidden))

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        """Embed words (B, T) at positions from `first` on: (B, T, H)."""
        words = self.embedding(tokens) * math.sqrt(self.hidden_dim)
        positions = sinusoids(first, tokens.shape[1], self.hidden_dim, device=words.device)
        return self.dropout(words + positions.to(words))


def sinusoids(first: int, count: int, size: int, *, device: torch.device | None = None) -> Tensor:
    """Compute the vectors of positions from `first` on (Vaswani et al. 2017, section 3.5): (count, size)."""
    # On the device itself: a copy from the CPU would make a GPU wait.
    numbers = partial(torch.arange, dtype=torch.float32, device=device)
    position = numbers(first, first + count)[:, None]  # (count, 1)
    rate = torch.exp(numbers(0, size, 2) * (-math.log(10000.0) / size))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], -1).flatten(1)[:, :size]
