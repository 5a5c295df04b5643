"""What all commands share: the config folder, and bad input told in one sentence instead of a traceback."""

import functools
import logging
import sys
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

from captioning.errors import InputError
from captioning.vocabulary import SPECIAL_WORDS, UNKNOWN, Vocabulary

CONF = Path(__file__).resolve().parent.parent / "conf"

_NOISE = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15, on every fit
    ".*does not have many workers.*",  # one batch is one read; workers gain nothing on two cores
    ".*obtained by tracing the model in eval mode are a subsequence.*",  # only evaluation nodes are cut
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
            try:
                return main(config)
            except (InputError, InstantiationException) as error:
                # Hydra wraps what a constructor raises; the user's mistake is inside.
                told = error if isinstance(error, InputError) else error.__cause__
                if not isinstance(told, InputError):
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
    listed = [words] if isinstance(words, str) else words or []
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
