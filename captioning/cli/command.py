"""What all commands share: the config folder, and bad input told in one sentence instead of a traceback."""

import errno
import functools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.errors import InputError
from captioning.vocabulary import SPECIAL_WORDS, UNKNOWN, Vocabulary

CONF = Path(__file__).resolve().parent.parent / "conf"

_NOISE = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15, on every fit
    ".*does not have many workers.*",  # one batch is one read; workers gain nothing on two cores
    ".*obtained by tracing the model in eval mode are a subsequence.*",  # only evaluation nodes are cut
    ".*dirpath has changed.*",  # a resumed run has a folder of its own; BestCheckpoint sees to it
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",  # Hydra has put its own files there
)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a function of a composed config the command `config_name`.

    `InputError` ends it with exit status 2 and the error's text; Ctrl-C with 130.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        @functools.wraps(main)
        def guarded(config: DictConfig) -> Any:
            quieten()
            if threading.current_thread() is threading.main_thread():  # Java and workers end with us
                signal.signal(signal.SIGTERM, _terminated)
            try:
                refuse_missing(config)
                refuse_fractions(config)
                return main(config)
            except (InputError, InstantiationException, OmegaConfBaseException, OSError) as error:
                told = _told(error)
                if told is None or os.environ.get("HYDRA_FULL_ERROR"):
                    raise
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise told from None  # the other runs of the sweep go on
                print(f"error: {told}", file=sys.stderr)
                raise SystemExit(2) from None
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                raise SystemExit(130) from None

        return hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)

    return decorate


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def refuse_missing(config: DictConfig) -> None:
    """Refuse a config that leaves to the user what the user has not given.

    Raises:
        InputError: names the options.
    """
    # Nothing is resolved: a config may refer to a group that this command has not been given and won't use.
    if missing := _missing(OmegaConf.to_container(config, resolve=False)):
        raise InputError(f"needed, and not given: {', '.join(f'{name}=…' for name in missing)}")


def refuse_fractions(config: DictConfig) -> None:
    """Refuse a seed or a number of epochs that is no whole number, before anything is built with it.

    Raises:
        InputError: names the option.
    """
    for name in ("seed", "max_epochs"):
        value = config.get(name)
        if value is not None and type(value) is not int:
            raise InputError(f"{name}={value} must be a whole number")


def _missing(node: Any, name: str = "") -> list[str]:
    """List the options below a node of a plain config that are still to be given."""
    if isinstance(node, dict):
        parts = ((f"{name}.{key}" if name else str(key), value) for key, value in node.items())
        return [found for key, value in parts for found in _missing(value, key)]
    return [name] if node == "???" else []


def _told(error: Exception) -> InputError | None:
    """Say in a sentence what the user can mend; None for what is a fault of the program."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (
            InputError(f"the disk is full ({error}); make room and run the command again") if full else None
        )
    if isinstance(error, InstantiationException):  # Hydra wraps what a constructor raises
        cause = error.__cause__
        if isinstance(cause, InputError):
            return cause
        key = str(error).rpartition("full_key: ")[2].strip() or "the config"
        return InputError(f"{key} can't be built as given: {cause!r}; HYDRA_FULL_ERROR=1 tells more")
    return InputError(str(error).partition("\n")[0])


def _named_after(file: str) -> str:
    """Name data after a file and its folder, so that two data sets don't share a feature file."""
    path = Path(file).absolute()
    return f"{path.parent.name}-{path.stem}"


OmegaConf.register_new_resolver("named_after", _named_after, replace=True)


def build_decoder(config: DictConfig, vocabulary: Vocabulary) -> Callable[..., Any]:
    """Instantiate a decoder whose required, forbidden or first words are given as words.

    Raises:
        InputError: the vocabulary lacks such a word.
    """
    return instantiate(_to_ids(OmegaConf.to_container(config, resolve=True), vocabulary))


def _to_ids(node: Any, vocabulary: Vocabulary) -> Any:
    if isinstance(node, dict):
        return {
            key: _ids_of(key, value, vocabulary)
            if key in ("required", "prefix", "ids")
            else _to_ids(value, vocabulary)
            for key, value in node.items()
        }
    return [_to_ids(value, vocabulary) for value in node] if isinstance(node, list) else node


def _ids_of(key: str, words: Any, vocabulary: Vocabulary) -> list[int]:
    listed = words.split() if isinstance(words, str) else words or []
    if not isinstance(listed, list) or not all(isinstance(word, str | int) for word in listed):
        raise InputError(f"decoding.{key} is {words!r}; needed is a list of words, such as [a,dog]")
    return [_word_id(word, vocabulary) for word in listed]


def _word_id(word: str | int, vocabulary: Vocabulary) -> int:
    if isinstance(word, int):
        return word
    if word == SPECIAL_WORDS[UNKNOWN]:
        return UNKNOWN
    if word.lower() not in vocabulary:
        raise InputError(
            f"the model's {len(vocabulary)} words do not include {word!r}; decoding needs a word it knows"
        )
    return vocabulary.id(word.lower())


def quieten() -> None:
    """Silence warnings that tell the user nothing to act on."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
