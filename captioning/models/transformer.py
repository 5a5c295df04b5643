"""A plain Transformer captioner: projected regions, pre-norm decoder.

As in Luo's plain Transformer, regions are an unordered set and only words have positions. Unlike that one it
has no encoder layers over the regions, which are projected and normalised, and GELU instead of ReLU; sizes
and dropout are for a small data set. `meshed_memory.py` has an encoder.
"""

from captioning.models.transformer_decoder import TransformerDecoder


class Transformer(TransformerDecoder):
    """Projected regions + causal decoder, both as in `TransformerDecoder`, with its arguments."""
