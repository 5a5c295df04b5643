"""From a composed config to the parts of a run: the only place outside the commands that sees a config.

The config is read and never changed. What the data decide, not the config, is handed over at instantiation:
the number of words and the size of a region.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from omegaconf import DictConfig, OmegaConf

from captioning import checkpoint
from captioning.data import CaptionDataModule
from captioning.decoding import Decoded, words_to_ids
from captioning.errors import InputError
from captioning.features import check_provenance, extract_missing, kind_of
from captioning.files import absolute_weights
from captioning.metrics import scored_tokens
from captioning.models import fit_standardization
from captioning.objectives import Objective
from captioning.processes import first_process_first, this_process
from captioning.training.callbacks import HOOKS, LOGGING, SampleCaptions, TraceShapes, tolerate
from captioning.training.checkpoint_io import AtomicCheckpointIO
from captioning.training.cuda_graphs import CudaGraphs
from captioning.training.module import CaptioningModule
from captioning.training.run import Run
from captioning.training.schedules import check_optimizer_states
from captioning.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def assemble(config: DictConfig, progress: Callable[..., Any] | None = None) -> Run:
    """Build a training run, with everything that it goes on from.

    Args:
        config: composed from `conf/train.yaml`.
        progress: shows how far an extraction is; see `features.extract`.

    Raises:
        InputError: options that do not go together, or data, features or a checkpoint that do not fit them.
    """
    torch.set_float32_matmul_precision("high")
    resume = resumed_checkpoint(config)
    start = starting_point(config, resume)
    trainer = build_trainer(config)
    data = prepare_data(config, progress, start_vocabulary(config, start) if start else None)
    # After the preparation, which may build a network with random weights: a run is then the same without it.
    seed_everything(config.seed, workers=True, verbose=False)
    module = build_module(config, data)
    if start:  # also to resume, where Lightning would load the weights itself but not say what is wrong
        load_weights(module, start, data, str(resume or config.start_from))
        if resume:
            check_optimizer_states(start["optimizer_states"], module.trained_parameters(), str(resume))
    else:
        if module.objective.needs_trained_model:
            log.warning("this objective learns next to nothing from random weights; give start_from=<run>")
        fit_standardization(module.model, data.feature_statistics)
        if config.init_output_bias:
            module.model.init_output_bias(data.captions("train").word_counts())
    return Run(
        name=config.name,
        seed=config.seed,
        folder=Path(config.output_dir),
        module=module,
        data=data,
        trainer=trainer,
        resume=resume,
    )


def prepare_data(
    config: DictConfig, progress: Callable[..., Any] | None, vocabulary: Vocabulary | None
) -> CaptionDataModule:
    """Build the datamodule; with `prepare=true`, the first of several processes makes what it lacks."""
    with first_process_first("data and features"):
        if config.prepare:
            report = extract_missing(
                lambda: instantiate(config.features.extractor),
                read_images(config),
                config.features.path,
                **({"progress": progress} if progress else {}),
                **config.features.run,
            )
            if report:
                report.log(config.features.path)
        return build_data(config, vocabulary)


def read_images(config: DictConfig) -> dict[str, Path]:
    """Read the path of every image by its id, after drawing or downloading what the data set needs."""
    if config.data.prepare:
        instantiate(config.data.prepare)()
    return {record.image_id: record.path for record in instantiate(config.data.reader)()}


def build_data(
    config: DictConfig, vocabulary: Vocabulary | None = None, *, splits: Sequence[str] = ("train", "val")
) -> CaptionDataModule:
    """Build and set up the datamodule; it refuses features of another kind than the config's.

    Args:
        config: with `data` and `features`.
        vocabulary: of a checkpoint to go on from; that of the training captions when None.
        splits: whose features must be there.
    """
    data: CaptionDataModule = instantiate(
        config.data,
        provenance=expected_provenance(config),
        vocabulary=vocabulary,
        feature_splits=list(splits),
    )
    data.prepare_data()
    data.setup()
    return data


def expected_provenance(config: DictConfig) -> dict[str, Any]:
    """Ask the extractor's class what features made with these options say of themselves."""
    if missing := OmegaConf.missing_keys(config.features.extractor):
        raise InputError(f"needed, and not given: {', '.join(f'{name}=…' for name in sorted(missing))}")
    extractor = checkpoint.prepare({**plain(config.features.extractor), "_partial_": True})
    return extractor.func.expected_provenance(**extractor.keywords)


def build_module(config: DictConfig, data: CaptionDataModule) -> CaptioningModule:
    """Build model, objective and module for the words and the features of the data."""
    assert data.vocabulary is not None
    model_options = complete_model(plain(config.model), data)
    objective: Objective = instantiate(config.objective)
    module = CaptioningModule(
        model=instantiate(model_options),
        objective=objective,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler) or None,  # scheduler=none is {}
        vocabulary=data.vocabulary,
        decoding=build_decoder(config.decoding, data.vocabulary),
        tokens=scored_tokens(data.language, data.tokenizer.unit, data.tokenizer),
        metadata=describe(config, model_options, data),
    )
    objective.check(module.model, data)
    return module


def complete_model(options: dict[str, Any], data: CaptionDataModule) -> dict[str, Any]:
    """Return the model's options with the sizes that the data decide filled in."""
    assert data.vocabulary is not None
    complete = {**options, "vocabulary_size": len(data.vocabulary)}
    if "encoder" in options:  # a class of the user's may read the features in another way
        complete["encoder"] = {**options["encoder"], "feature_dim": data.cache.shape[1]}
    return complete


def build_decoder(decoding: DictConfig, vocabulary: Vocabulary) -> Callable[..., Decoded]:
    """Instantiate a decoder, whose required, forbidden and first words are given as words."""
    return instantiate(words_to_ids(plain(decoding), vocabulary))


def build_trainer(config: DictConfig) -> Trainer:
    """Build the trainer with its loggers and callbacks.

    Raises:
        InputError: it is of fewer processes than were started, each of which would train by itself.
    """
    loggers = list(instantiate(config.get("logger", {})).values())  # logger=[] is none
    for logger in loggers:
        tolerate(logger, LOGGING)
    callbacks = list(instantiate(config.trainer.callbacks))
    if not loggers:  # without one, Lightning refuses this callback
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    if averaging := instantiate(config.averaging):  # averaging=none is {}
        callbacks.append(averaging)
    if config.trace_shapes:
        callbacks.append(TraceShapes())
    if config.cuda_graphs:
        callbacks.append(CudaGraphs())
    for callback in callbacks:
        if isinstance(callback, (LearningRateMonitor, ProgressBar, SampleCaptions, TraceShapes)):
            tolerate(callback, HOOKS)
    trainer: Trainer = instantiate(
        config.trainer,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    started = this_process().size
    if started not in (1, trainer.world_size):
        raise InputError(
            f"{started} processes were started but the trainer is of {trainer.world_size}; give trainer=ddp, "
            "and trainer.devices= and trainer.num_nodes= whose product is their number"
        )
    return trainer


def describe(config: DictConfig, model_options: dict[str, Any], data: CaptionDataModule) -> dict[str, Any]:
    """Describe a run for its checkpoints, in plain containers; see `captioning.checkpoint`."""
    assert data.vocabulary is not None
    parts = ("data", "features", "objective", "optimizer", "scheduler", "decoding")
    metadata = {part: plain(config[part]) for part in parts}
    # A checkpoint is used from any folder.
    extractor = checkpoint.renamed_weights(metadata["features"]["extractor"], absolute_weights)
    metadata["features"]["extractor"] = extractor
    return {
        "format": checkpoint.FORMAT,
        "model": model_options,
        **metadata,
        "words": data.vocabulary.words,
        "tokenizer": data.tokenizer.options(),
        "provenance": dict(data.cache.provenance),
    }


def resumed_checkpoint(config: DictConfig) -> Path | None:
    """Find the checkpoint that `resume=` names; `auto` is this run's own folder, where it holds one.

    Raises:
        InputError: there is none.
    """
    own = Path(config.output_dir)
    if config.resume != "auto":
        return checkpoint.locate_last(config.resume) if config.resume else None
    begun = (own / "checkpoints" / checkpoint.LAST).is_file()
    if not begun:
        log.info("%s holds no checkpoint yet: the training begins", own)
    return checkpoint.locate_last(own) if begun else None


def starting_point(config: DictConfig, resume: Path | None) -> dict[str, Any] | None:
    """Read the checkpoint to go on from: the one to resume, or the best one of a run to start from.

    Raises:
        InputError: no such checkpoint, or a run to resume that has all its epochs.
    """
    if resume:
        start = checkpoint.read(resume)
        checkpoint.check_resumable(start, resume)
        epochs, batches = checkpoint.trained(start, resume)
        wanted = config.trainer.max_epochs
        # A job that is requeued after its last epoch has nothing left to do, which is no mistake.
        if wanted is not None and epochs >= wanted + (config.resume == "auto"):
            raise InputError(
                f"resume={config.resume} has trained {epochs} epochs and max_epochs is {wanted}; give a "
                "larger max_epochs= to go on"
            )
        inside = f" and {batches} batches of the next one" if batches else ""
        log.info("going on from %s, after %d epochs%s", resume, epochs, inside)
        refuse_other_parts(config, start)
        return start
    if config.start_from:
        return checkpoint.read(checkpoint.locate(config.start_from, first=checkpoint.BEST))
    return None


def refuse_other_parts(config: DictConfig, start: dict[str, Any]) -> None:
    """Refuse to resume a run with another objective, optimizer, schedule or averaging than it was begun with.

    Raises:
        InputError: of another class; other options, such as the rate, may be given.
    """
    averaged = "current_model_state" in start  # where Lightning keeps the weights beside their average
    if averaged != bool(config.averaging):
        raise InputError(
            f"resume={config.resume} was trained with{'' if averaged else 'out'} averaged weights; give "
            f"averaging={'exponential' if averaged else 'none'}, or start_from= to begin another training "
            "with its weights and words"
        )
    for part in ("objective", "optimizer", "scheduler"):
        before, now = (
            str(options.get("_target_", "none")).rpartition(".")[2]
            for options in (start["captioning"][part], config[part])
        )
        if before != now:
            raise InputError(
                f"resume={config.resume} was trained with {part} {before}, found {now}; give that "
                f"{part}= again, or start_from= to begin another training with its weights and words"
            )


def start_vocabulary(config: DictConfig, start: dict[str, Any]) -> Vocabulary:
    """Build the vocabulary of the checkpoint to go on from, with the tokenizer that it has learnt.

    Raises:
        InputError: see `checkpoint.build_vocabulary`.
    """
    # The user, who names the class of a tokenizer in `data`, vouches for it.
    trust = [config.data.tokenizer["_target_"]] if "tokenizer" in config.data else []
    return checkpoint.build_vocabulary(start["captioning"], config.resume or config.start_from, trust=trust)


def load_weights(module: CaptioningModule, start: dict[str, Any], data: CaptionDataModule, path: str) -> None:
    """Load another run's weights.

    Args:
        module: of this run.
        start: the other run's checkpoint.
        data: of this run.
        path: where the checkpoint lies, for messages.

    Raises:
        InputError: they are another model's, or were trained on features of another kind.
    """
    metadata = start["captioning"]
    check_provenance(f"the run {path}", metadata["provenance"], kind_of(data.cache.provenance))
    checkpoint.check_kinds(path, start["state_dict"], module.state_dict())
    try:
        module.load_state_dict(start["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} holds a {metadata['model']['_target_']} whose weights do not fit the model of this run; "
            f"give the model= and its sizes that it was trained with: {reason}"
        ) from error


def plain(config: DictConfig) -> dict[str, Any]:
    """Convert a config to plain containers, every interpolation resolved; a missing value stays `???`."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    return options


def data_options(config: DictConfig, features: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved options of `data`, which refers to the features: those given, or the config's own.

    Args:
        config: with `data`, and possibly `features`.
        features: a checkpoint's, for a config without any.
    """
    whole: Any = OmegaConf.to_container(config, resolve=False)
    return plain(OmegaConf.create({"features": dict(features), **whole}).data)


def own_options(config: DictConfig, groups: Sequence[str]) -> dict[str, Any]:
    """Return a command's own options as plain values, without its groups.

    Groups may refer to others that are not given, and then cannot be resolved.
    """
    return {
        str(key): OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in config.items()
        if key not in groups
    }
