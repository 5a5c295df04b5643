"""A plain Transformer captioner: projected regions, pre-norm decoder.

As Luo's plain Transformer it takes regions as an unordered set and positions of words alone. Unlike that one
it has no encoder layers over the regions (they are projected and normalised), and GELU instead of ReLU; sizes
and dropout are for a small data set. `meshed_memory.py` has an encoder.
"""

from captioning.models.transformer_decoder import TransformerDecoder


class Transformer(TransformerDecoder):
    """Projected regions + causal decoder, both as `TransformerDecoder` has them, with its arguments."""
