"""A plain Transformer captioner: projected regions, pre-norm decoder.

As Luo's plain Transformer it takes regions as an unordered set and positions of words alone. Unlike that one
it has no encoder layers over the regions (they are projected and normalised), and GELU instead of ReLU; sizes
and dropout are for a small data set. `meshed_memory.py` has an encoder.
"""

from functools import partial

from torch import nn

from captioning.models.transformer_decoder import DecoderLayer, TransformerDecoder


class Transformer(TransformerDecoder):
    """Projected regions + causal decoder.

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        hidden_dim: H.
        num_layers: of the decoder.
        num_heads: that divide H.
        inner_dim: size of a layer's inner linear layer.
        dropout: probability.
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
    ) -> None:
        super().__init__(
            feature_dim=feature_dim,
            vocabulary_size=vocabulary_size,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            layer=partial(
                DecoderLayer,
                hidden_dim=hidden_dim,
                num_heads=num_heads,
                inner_dim=inner_dim,
                dropout=dropout,
            ),
            norm=nn.LayerNorm(hidden_dim),
            dropout=dropout,
        )
