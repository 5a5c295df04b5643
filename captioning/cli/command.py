"""The decorator that turns a function of a composed config into a command.

Bad input ends a command with exit status 2 and one sentence on standard error, a signal with 128 plus its
number (130 for Ctrl-C). Everything else is a fault of the program and keeps its traceback.
"""

import contextlib
import functools
import itertools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.cli.composition import (
    compose_arguments,
    prefer_own_options,
    refuse_unplaced,
    refused_by_hydra,
)
from captioning.cli.help import help_text
from captioning.cli.messages import (
    input_error,
    options_error,
    refuse_fractions,
    refuse_missing,
    refuse_switches,
)
from captioning.cli.names import arguments_for_hydra, refuse_numbers
from captioning.errors import InputError
from captioning.files import CONF
from captioning.processes import from_first
from captioning.vocabulary import printable

TRACEBACKS = bool(os.environ.get("HYDRA_FULL_ERROR"))  # the user asks for tracebacks

_IGNORED_WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15, on every fit
    ".*does not have many workers.*",  # one batch is one read; workers gain nothing on two cores
    ".*number of training batches .* is smaller than the logging interval.*",  # as is usual for tiny data
    ".*obtained by tracing the model in eval mode are a subsequence.*",  # only evaluation nodes are cut
    ".*dirpath has changed.*",  # a resumed run has a folder of its own; BestCheckpoint handles it
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # our own sampler is
    ".*when logging on epoch level in distributed setting.*",  # every process logs the same value
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*AccumulateGrad node's stream does not match.*",  # recording a CUDA graph, which waits for both streams
    ".*Experiment logs directory .* exists and is not empty.*",  # Hydra has put its own files there
)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a function of a composed config the command that `conf/<config_name>.yaml` configures."""

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        guarded = functools.wraps(main)(functools.partial(_guarded, main))
        run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)

        @functools.wraps(main)
        def entry() -> Any:
            quick_help("__main__", config_name)
            _new_folder.cache_clear()
            prefer_own_options()
            typed = sys.argv
            # Hydra then raises what is wrong with the options instead of printing it in its own words.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                flags, options = arguments_for_hydra(config_name, typed[1:])
                sys.argv = [typed[0], *flags, *options]
                return run()
            except Exception as error:
                problem = None if TRACEBACKS else _problem(error, config_name, typed[1:])
                if problem is None:
                    raise
                _exit_with(problem)
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                raise SystemExit(130) from None
            finally:
                sys.argv = typed
                if not TRACEBACKS:  # processes started later are not ours to change
                    del os.environ["HYDRA_FULL_ERROR"]

        return entry

    return decorate


def _problem(error: Exception, config_name: str, arguments: Sequence[str]) -> object:
    """Say what the user can mend, be it of the options, of a sweep's run or of the run folder.

    None is a fault of the program.
    """
    if isinstance(error, HydraException):
        return options_error(error, config_name, arguments)
    if problem := input_error(error) or refused_by_hydra(error):
        return problem
    try:  # whether it is the options that raise it
        compose_arguments(config_name, arguments)
    except (HydraException, InputError) as found:
        return _problem(found, config_name, arguments)
    return None


def as_list(value: Any) -> list[Any]:
    """Convert an option that is one value, a list of them, or nothing to a list."""
    if value is None:
        return []
    return list(value) if OmegaConf.is_list(value) else [value]


def _guarded(main: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run a command's function; what the user can mend ends it with one sentence."""
    silence_known_warnings()
    _remove_unused_folders(Path(HydraConfig.get().runtime.output_dir))
    if threading.current_thread() is threading.main_thread():
        # As an exception, so that Java and loader workers are stopped too.
        for name in ("SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has one of them
                signal.signal(getattr(signal, name), _exit_on_signal)
    try:
        # Nothing is resolved: a config may refer to a group that this command does not use.
        options = OmegaConf.to_container(config, resolve=False)
        name, choices = str(HydraConfig.get().job.config_name), HydraConfig.get().runtime.choices
        refuse_unplaced(options, choices)
        refuse_missing(options, name)
        refuse_fractions(options)
        refuse_numbers(options)
        refuse_switches(options, name, choices)
        return main(config)
    except (InputError, InstantiationException, OmegaConfBaseException, OSError) as error:
        message = input_error(error)
        if message is None or TRACEBACKS:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise message from None  # the other runs of the sweep go on
        _exit_with(message)


def _exit_with(message: object) -> NoReturn:
    # Names come from the user's files and may hold characters that a terminal obeys.
    print(f"error: {printable(str(message))}", file=sys.stderr)
    raise SystemExit(2) from None


def quick_help(module: str, config_name: str) -> None:
    """Print the help and exit if `--help` was asked of the running command; let Ctrl-C end it quietly.

    A command calls this before its other imports: neither need wait for torch and Lightning.

    Args:
        module: `__name__` of the caller; nothing happens unless it is being run.
        config_name: of the command.
    """
    if module != "__main__":
        return
    if {"--help", "-h"} & set(sys.argv[1:]):
        print_help(config_name, sys.argv[1:])
        raise SystemExit(0)


def print_help(config_name: str, arguments: Sequence[str]) -> None:
    """Print the help of a command with these arguments; bad options end it as they end the command."""
    try:
        print(help_text(config_name, arguments))
    except (HydraException, InputError) as error:
        if TRACEBACKS:
            raise
        _exit_with(_problem(error, config_name, arguments))


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


_MADE: list[Path] = []  # folders of this process that may turn out to be unused


def _remove_unused_folders(used: Path) -> None:
    """Remove the folders of `hydra.run.dir`s that another one replaces: OmegaConf resolves both."""
    while _MADE:
        folder = _MADE.pop()
        if folder != used:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
                folder.parent.rmdir()


@functools.cache  # the runs of a sweep share its folder
def _new_folder(path: str) -> str:
    """Create a folder that no other run has: the path, or the first free one of `<path>_2`, `<path>_3`.

    Processes that run a command together get the same one.
    """
    # The clocks of several processes may differ, and with them the last part of the path.
    return from_first(f"new folder in {Path(path).parent}", lambda: _first_free(path))


def _first_free(path: str) -> str:
    names = itertools.chain([path], (f"{path}_{number}" for number in itertools.count(2)))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            try:
                Path(name).mkdir()
                _MADE.append(Path(name).absolute())
                return name
            except FileExistsError:
                continue
    except OSError:
        pass  # Hydra, which makes the folder otherwise, reports it
    return path


OmegaConf.register_new_resolver("named_after", _named_after, replace=True)
# Cached by config as well: the runs of a sweep may be processes of their own.
OmegaConf.register_new_resolver("new_folder", _new_folder, replace=True, use_cache=True)
