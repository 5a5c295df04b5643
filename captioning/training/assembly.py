"""From a composed config to the parts of a training run."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from captioning import checkpoint
from captioning.data import CaptionDataModule
from captioning.entry import build_decoder
from captioning.errors import InputError
from captioning.features.cache import check_provenance
from captioning.features.weights import weights_name
from captioning.models import CaptionModel, HardAttention
from captioning.module import CaptioningModule
from captioning.objectives import HardAttentionObjective, SelfCritical


def build_data(
    config: DictConfig, words: list[str] | None = None, *, splits: Sequence[str] = ("train", "val")
) -> CaptionDataModule:
    """Build and set up the datamodule; it refuses features of another kind than the config's.

    Args:
        config: the composed config.
        words: of a checkpoint to go on from; those of the training captions when None.
        splits: whose features must be there.
    """
    provenance: Any = OmegaConf.to_container(config.features.provenance, resolve=True)
    if weights := (config.features.get("extractor") or {}).get("weights"):
        provenance["weights"] = weights_name(weights)
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
    if config.label_smoothing and "${label_smoothing}" not in OmegaConf.to_yaml(config.objective):
        raise InputError(
            f"label_smoothing={config.label_smoothing} is no option of this objective; leave it out, or "
            "choose another objective="
        )
    names = ("model", "objective", "optimizer", "scheduler")
    parts: dict[str, Any] = {name: instantiate(config[name]) or None for name in names}  # scheduler=none: {}
    refuse_untaught_attention(parts["model"], parts["objective"])
    if isinstance(parts["objective"], SelfCritical) and datamodule.train_on != "images":
        raise InputError(
            "self-critical training captions images, and data.train_on=captions meets each as often as it "
            "has captions; give data.train_on=images"
        )
    kept = ("model", "data", "features", "objective", "optimizer", "scheduler")
    description = checkpoint.describe(
        config, datamodule.vocabulary.words, datamodule.cache.provenance, parts=kept
    )
    decoding = build_decoder(config.decoding, datamodule.vocabulary)
    return CaptioningModule(
        vocabulary=datamodule.vocabulary, description=description, decoding=decoding, **parts
    )


def starting_point(config: DictConfig) -> dict[str, Any] | None:
    """Read the checkpoint to go on from: a run's last epoch to resume, its best one to start from.

    Raises:
        InputError: no such checkpoint, or a run to resume that has all its epochs.
    """
    if config.resume:
        start = checkpoint.read(config.resume)
        done, wanted = start["epoch"] + 1, config.trainer.max_epochs
        if wanted is not None and done >= wanted:
            raise InputError(
                f"resume={config.resume} has trained {done} epochs and max_epochs is {wanted}; give a larger "
                "max_epochs= to go on"
            )
        refuse_other_parts(config, start)
        return start
    if config.start_from:
        return checkpoint.read(checkpoint.locate(config.start_from, ("best.ckpt", "last.ckpt")))
    return None


def refuse_other_parts(config: DictConfig, start: dict[str, Any]) -> None:
    """Refuse to resume a run with another objective, optimizer or schedule than its checkpoint was made with.

    Raises:
        InputError: of another class; other options, such as the rate, may be given.
    """
    for part in ("objective", "optimizer", "scheduler"):
        said = start["captioning"].get(part, config[part])  # checkpoints of older versions don't say
        before, now = (
            str(options.get("_target_", "none")).rpartition(".")[2] for options in (said, config[part])
        )
        if before != now:
            raise InputError(
                f"resume={config.resume} was trained with {part} {before}, found {now}; give that "
                f"{part}= again, or start_from= to begin another training with its weights and words"
            )


def refuse_untaught_attention(model: CaptionModel, objective: Any) -> None:
    """Refuse a model whose attention draws places with an objective that does not teach it where.

    Raises:
        InputError: no gradient would ever reach the attention.
    """
    draws = any(isinstance(part, HardAttention) for part in model.modules())
    if draws and not isinstance(objective, HardAttentionObjective):
        raise InputError(
            f"hard attention learns from objective=hard_attention alone, found {type(objective).__name__}, "
            "which would leave it as it began; choose that objective, or model=show_attend_tell"
        )


def take_up(
    module: CaptioningModule, start: dict[str, Any], datamodule: CaptionDataModule, path: str
) -> None:
    """Take up another run's weights, to go on from there.

    Args:
        module: of this run.
        start: the other run's checkpoint.
        datamodule: of this run.
        path: where the checkpoint lies, for messages.

    Raises:
        InputError: they are another model's, or were trained on features of another kind.
    """
    said = start["captioning"]
    own = {key: value for key, value in datamodule.cache.provenance.items() if key != "precision"}
    check_provenance(f"the run {path}", said["provenance"], own)
    try:
        module.load_state_dict(start["state_dict"])
    except RuntimeError as error:
        raise InputError(
            f"{path} holds a {said['model']['_target_']} whose weights do not fit the model of this run; "
            f"give the model= and its sizes that it was trained with: {str(error)[:300]}"
        ) from error
