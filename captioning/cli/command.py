"""The decorator that turns a function of a composed config into a command.

Bad input ends a command with exit status 2 and one sentence on standard error, Ctrl-C with 130. Everything
else is a fault of the program and keeps its traceback.
"""

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
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.cli.help import help_text
from captioning.cli.messages import input_error, options_error, refuse_fractions, refuse_missing
from captioning.errors import InputError
from captioning.files import CONF

TRACEBACKS = bool(os.environ.get("HYDRA_FULL_ERROR"))  # the user asks for tracebacks

_IGNORED_WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15, on every fit
    ".*does not have many workers.*",  # one batch is one read; workers gain nothing on two cores
    ".*obtained by tracing the model in eval mode are a subsequence.*",  # only evaluation nodes are cut
    ".*dirpath has changed.*",  # a resumed run has a folder of its own; BestCheckpoint handles it
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",  # Hydra has put its own files there
)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a function of a composed config the command that `conf/<config_name>.yaml` configures."""

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        @functools.wraps(main)
        def guarded(config: DictConfig) -> Any:
            silence_known_warnings()
            if threading.current_thread() is threading.main_thread():
                # As an exception, so that Java and loader workers are stopped too.
                signal.signal(signal.SIGTERM, _exit_on_signal)
            try:
                # Nothing is resolved: a config may refer to a group that this command does not use.
                options = OmegaConf.to_container(config, resolve=False)
                refuse_missing(options)
                refuse_fractions(options)
                return main(config)
            except (InputError, InstantiationException, OmegaConfBaseException, OSError) as error:
                message = input_error(error)
                if message is None or TRACEBACKS:
                    raise
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise message from None  # the other runs of the sweep go on
                print(f"error: {message}", file=sys.stderr)
                raise SystemExit(2) from None
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                raise SystemExit(130) from None

        run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)

        @functools.wraps(main)
        def entry() -> Any:
            quick_help("__main__", config_name)
            if TRACEBACKS:
                return run()
            # Hydra then raises what is wrong with the options instead of printing it in its own words.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                return run()
            except HydraException as error:
                message = options_error(error, config_name, sys.argv[1:])
                print(f"error: {message}", file=sys.stderr)
                raise SystemExit(2) from None

        return entry

    return decorate


def quick_help(module: str, config_name: str) -> None:
    """Print the help and exit if `--help` was asked of the running command.

    A command calls this before its other imports: `--help` need not wait for torch and Lightning.

    Args:
        module: `__name__` of the caller; nothing happens unless it is being run.
        config_name: of the command.
    """
    if module == "__main__" and {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(config_name))
        raise SystemExit(0)


def _exit_on_signal(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def silence_known_warnings() -> None:
    """Silence warnings of libraries that give the user nothing to act on."""
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def _named_after(file: str) -> str:
    """Name data after a file and its folder, so that two data sets do not share a feature file."""
    path = Path(file).absolute()
    return f"{path.parent.name}-{path.stem}"


OmegaConf.register_new_resolver("named_after", _named_after, replace=True)
