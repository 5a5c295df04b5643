"""From a composed config to the parts of a training run."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from captioning import checkpoint
from captioning.data import CaptionDataModule
from captioning.entry import build_decoder
from captioning.errors import InputError
from captioning.module import CaptioningModule


def build_data(
    config: DictConfig, words: list[str] | None = None, *, splits: Sequence[str] = ("train", "val")
) -> CaptionDataModule:
    """Build and set up the datamodule; it refuses features of another kind than the config's.

    Args:
        config: the composed config.
        words: of a checkpoint to go on from; those of the training captions when None.
        splits: whose features must be there.
    """
    provenance = OmegaConf.to_container(config.features.provenance, resolve=True)
    datamodule: CaptionDataModule = instantiate(
        config.data, provenance=provenance, words=words, feature_splits=list(splits)
    )
    datamodule.setup()
    return datamodule


def build_module(config: DictConfig, datamodule: CaptionDataModule) -> CaptioningModule:
    """Build model, objective and module; the model gets as many words as the vocabulary really has."""
    assert datamodule.vocabulary is not None
    config.model.vocabulary_size = len(datamodule.vocabulary)
    given = (config.model.get("encoder") or {}).get("feature_dim", config.model.get("feature_dim"))
    if given not in (None, config.features.dim):
        raise InputError(
            f"the model reads regions of {given} numbers but features.dim is {config.features.dim}; "
            "leave model.feature_dim and model.encoder.feature_dim to follow features.dim"
        )
    names = ("model", "objective", "optimizer", "scheduler")
    parts: dict[str, Any] = {name: instantiate(config[name]) or None for name in names}  # scheduler=none: {}
    description = checkpoint.describe(config, datamodule.vocabulary.words, datamodule.cache.provenance)
    decoding = build_decoder(config.decoding, datamodule.vocabulary)
    return CaptioningModule(
        vocabulary=datamodule.vocabulary, description=description, decoding=decoding, **parts
    )


def starting_point(config: DictConfig) -> dict[str, Any] | None:
    """Read the checkpoint to go on from: a run's last epoch to resume, its best one to start from."""
    if config.resume:
        return checkpoint.read(config.resume)
    if config.start_from:
        return checkpoint.read(checkpoint.locate(config.start_from, ("best.ckpt", "last.ckpt")))
    return None


def load_weights(module: CaptioningModule, start: dict[str, Any], path: str) -> None:
    """Take up another run's weights.

    Raises:
        InputError: they are another model's.
    """
    try:
        module.load_state_dict(start["state_dict"])
    except RuntimeError as error:
        said = start["captioning"]["model"]["_target_"]
        raise InputError(
            f"start_from={path} holds a {said} whose weights do not fit the model of this run; give the "
            f"model= and its sizes that it was trained with: {str(error)[:300]}"
        ) from error
