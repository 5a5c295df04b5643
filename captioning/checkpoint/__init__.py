"""What is written beside the weights, and how a model comes back from a file alone.

A checkpoint is a dictionary of tensors and plain containers. Its entry `captioning` is the metadata: format,
words, their tokenizer with what it has learnt, provenance of the features, and the plain configs of model,
data and features, each with its `_target_`s. `load` needs nothing else.

A checkpoint from a stranger cannot run code. `torch.load(weights_only=True)` reads it, after `archive`
has held the sizes that it declares against those of the file. What a `_target_` may name depends on its role:
a model of `captioning.models` with layers of `torch.nn`, an extractor of `captioning.features`, a reader of
`captioning.data`, a tokenizer of `captioning.tokenizers`. These are classes and readers that only read.
Packages that the user vouches for with `trust` are allowed too.
"""

from captioning.checkpoint.building import (
    build,
    build_datamodule,
    build_reader,
    check_target,
    prepare,
    renamed_weights,
)
from captioning.checkpoint.loading import Loaded, build_vocabulary, check_kinds, load, override
from captioning.checkpoint.reading import (
    BEST,
    FORMAT,
    LAST,
    check_resumable,
    locate,
    locate_last,
    read,
    trained,
)

__all__ = [
    "BEST",
    "FORMAT",
    "LAST",
    "Loaded",
    "build",
    "build_datamodule",
    "build_reader",
    "build_vocabulary",
    "check_kinds",
    "check_resumable",
    "check_target",
    "load",
    "locate",
    "locate_last",
    "override",
    "prepare",
    "read",
    "renamed_weights",
    "trained",
]
