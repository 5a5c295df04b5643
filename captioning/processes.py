"""Several processes that run one command together, and the loader processes of each.

torchrun and srun start a command several times at once and number the processes in the environment. What only
one may do, such as making the run folder or drawing the data set, the first does while the others wait.
Lightning's own launcher (`trainer=ddp` without torchrun) starts the others when the first has prepared all.
"""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from captioning.errors import InputError

# Preemption and the end of a job's time under SLURM; Ctrl-C. Windows has no SIGUSR1.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]

# torchrun's variables, and those that only srun sets: in a batch script there is one process.
_STARTED_BY = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
_POLL = 0.1  # seconds
_blocks: Counter[tuple[str, int]] = Counter()  # begun, by name and rank


class Process(NamedTuple):
    """One of the processes that were started together: its number, from 0, and how many there are."""

    rank: int
    size: int


def this_process() -> Process:
    """Return which of the processes that were started at once this is."""
    for rank, size in _STARTED_BY:
        if rank in os.environ and size in os.environ:
            return Process(int(os.environ[rank]), int(os.environ[size]))
    return Process(0, 1)


def is_first() -> bool:
    """Whether this is the process that logs for all; Lightning's own launcher only sets `LOCAL_RANK`."""
    return this_process().rank == 0 and os.environ.get("LOCAL_RANK", "0") == "0"


def from_first(name: str, make: Callable[[], str]) -> str:
    """Return in every process what `make` returns in the first, which alone calls it.

    Args:
        name: what is made; each is made once.
        make: called without arguments.

    Raises:
        InputError: the first process can't be asked.
    """
    rank, size = this_process()
    if size == 1:
        return make()
    key = f"{name} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # torchrun may start all anew
    store = _store()
    if rank == 0:
        store.set(key, os.fsencode(made := make()))
        return made
    try:
        while not store.check([key]):  # unlike `wait`, this leaves signals their turn
            time.sleep(_POLL)
        return os.fsdecode(store.get(key))
    except RuntimeError as error:
        raise InputError(f"process {rank} waited for the first one ({name}), which has ended") from error


@contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Let the first process go through a block alone, then the others; what it has made, they find.

    They go through the blocks of a name equally often, such as once in each job of a multirun.

    Raises:
        InputError: see `from_first`.
    """
    rank = this_process().rank
    _blocks[name, rank] += 1
    name = f"{name}, block {_blocks[name, rank]}"
    if rank > 0:
        from_first(name, str)
    yield
    if rank == 0:
        from_first(name, str)


@functools.cache
def _store() -> Any:
    """Connect to the store of the processes, which torchrun or else the first of them serves."""
    from torch import distributed

    rank, size = this_process()
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(
            f"{size} processes run this command together and {' and '.join(missing)} are not set, by which "
            "they find each other; start them with torchrun, or set both and give hydra.run.dir=<folder>"
        )
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        return distributed.TCPStore(  # type: ignore[attr-defined]
            host,
            int(port),
            is_master=rank == 0 and not served,
            wait_for_workers=False,
            multi_tenant=True,  # torch's process group opens another at this port
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"process {rank} of {size} can't meet the others at {host}:{port} "
            f"({str(error).splitlines()[0]}); set MASTER_ADDR to the host of the first process and "
            "MASTER_PORT to a free port there, the same for all"
        ) from error


def gather(value: Any) -> list[Any]:
    """Return the values of all processes of torch's process group, by rank; without a group, this one's."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def shield_worker(worker: int) -> None:
    """Let a loader process outlive signals that are sent to a whole job: its parent ends it.

    Ctrl-C and `kill` of a group do not reach another group; SLURM signals every process of a job by itself.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        # The process that asked for this one; where a server forks for all, that is not `os.getppid()`.
        parent = multiprocessing.parent_process()
        pid = os.getppid() if parent is None else parent.pid
        threading.Thread(target=_obey_parent, args=(pid,), daemon=True).start()


def _obey_parent(parent: int) -> None:
    # Without an end on the parent's SIGTERM, an interrupted parent would wait for its workers forever.
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
