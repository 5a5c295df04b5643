"""Code under attack runs in child processes, so that a crash, a hang or a flood of memory is only a result.

Children are forks of this process, which has imported everything: they start in milliseconds.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.tally import Outcome, Result

Check = Callable[[Any], tuple[Outcome, str]]


def in_children(
    cases: Sequence[Any],
    check: Check,
    *,
    seconds: float = 20.0,
    megabytes: int = 1024,
    fresh: bool = False,
    name: Callable[[Any], str] = str,
) -> Iterator[Result]:
    """Check every case; a child that dies or takes too long costs one case, and another child goes on.

    Args:
        cases: passed to `check` one by one.
        check: returns the outcome and a message; what it raises counts as crashed.
        seconds: that a case may take.
        megabytes: that a child may take beyond what this process has.
        fresh: a child of its own for every case.
        name: of a case, in the results.
    """
    done = 0
    while done < len(cases):
        end = done + 1 if fresh else len(cases)
        pid, lines = _fork_checks(cases[done:end], check, megabytes, seconds)
        for line in lines:
            if not line:
                problem = _end(pid, hung=line is None, seconds=seconds)
                yield Result(name(cases[done]), Outcome.CRASHED, problem)
                done += 1
                break
            outcome, message = json.loads(line)
            yield Result(name(cases[done]), Outcome(outcome), message)
            done += 1
            if done == end:
                os.waitpid(pid, 0)
                break


def _lines(descriptor: int, seconds: float) -> Iterator[bytes | None]:
    """Yield what a child writes; nothing at its end, None when it takes too long."""
    waiting = b""
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while True:
            while b"\n" not in waiting:
                if not select.select([pipe], [], [], seconds)[0]:
                    yield None
                    return
                content = pipe.read(1 << 16)
                if not content:
                    yield b""
                    return
                waiting += content
            line, _, waiting = waiting.partition(b"\n")
            yield line


def _fork_checks(
    cases: Sequence[Any], check: Check, megabytes: int, seconds: float
) -> tuple[int, Iterator[bytes | None]]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    if pid := os.fork():
        with contextlib.suppress(OSError):  # by both: it may be killed before it has got so far
            os.setpgid(pid, pid)
        os.close(writer)
        return pid, _lines(reader, seconds)
    try:
        os.close(reader)
        os.setpgid(0, 0)
        _redirect(Path(os.devnull))
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (megabytes << 20),) * 2)
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            for case in cases:
                try:
                    outcome, message = check(case)
                except BaseException as error:
                    outcome, message = Outcome.CRASHED, _describe(error)
                pipe.write(json.dumps([outcome, message[:500]]).encode() + b"\n")
    finally:
        os._exit(0)


def _end(pid: int, hung: bool, seconds: float) -> str:
    """Kill a child with its own children and say how it ended."""
    if hung:
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if hung:
        return f"took more than {seconds:.0f} s"
    return (
        f"ended by {signal.Signals(-code).name}"
        if (code := os.waitstatus_to_exitcode(status)) < 0
        else "ended"
    )


def _describe(error: BaseException) -> str:
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__}: {str(error)[:300]} ({' '.join(frames[-3:])})"


ENDED_BY_SIGNAL = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))


class Command:
    """A command of the program, running in a fork.

    Args:
        name: such as `train`.
        options: of the command line.
        folder: the working folder.
        log: receives what it prints.
        before: called in the child first, for example to set a trap.
    """

    def __init__(
        self, name: str, *options: str, folder: Path, log: Path, before: Callable[[], None] | None = None
    ) -> None:
        self.name, self.log = name, log
        self.status: int | None = None
        module = importlib.import_module(f"captioning.{name}")  # here, so that it is imported only once
        sys.stdout.flush()
        self.started = time.perf_counter()
        self.pid = os.fork()
        if not self.pid:
            _become(module.main, [f"captioning.{name}", *options], folder, log, before)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command and its children."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended, or not yet made its group
            os.kill(self.pid, number)

    def wait(self, seconds: float = 300.0) -> int | None:
        """Return the exit status, negative for a signal; None for a command that had to be killed."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.kill()
        os.waitpid(self.pid, 0)
        return None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it, handled or not."""
        return self.status is not None and (self.status < 0 or self.status in ENDED_BY_SIGNAL)

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def judge(self, seconds: float = 300.0) -> tuple[Outcome, str]:
        """Wait and judge by the exit status and by what was printed."""
        status = self.status = self.wait(seconds)
        lines = [line for line in self.text.splitlines() if line.strip()]
        last = lines[-1][:300] if lines else ""
        if "Traceback (most recent call last)" in self.text:
            return Outcome.CRASHED, f"{self.name}: traceback, {last}"
        if status == 0:
            return Outcome.SURVIVED, ""
        error = next((line for line in lines if line.startswith("error: ")), "")
        if status in (1, 2, *ENDED_BY_SIGNAL) and (error or status != 2):
            return Outcome.REPORTED, f"{self.name}: {error or last}"
        return Outcome.CRASHED, f"{self.name}: " + (
            "hangs" if status is None else f"exit status {status}, {last}"
        )


def _become(
    main: Callable[[], Any], arguments: list[str], folder: Path, log: Path, before: Callable[[], None] | None
) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setpgid(0, 0)
        _redirect(log)
        os.chdir(folder)
        sys.argv = arguments
        if before:
            before()
        # Before this line Ctrl-C would find the harness, not the program.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


class Trap:
    """Kills the process at one of its calls that change the disk.

    Args:
        at: the number of the call, from 0; -1 only counts.
        after: whether the call is carried out first.
        counter: a file that receives the number of calls so far.
    """

    CALLS = (
        "replace",
        "rename",
        "pwrite",
        "fsync",
        "fdatasync",
        "unlink",
        "remove",
        "mkdir",
        "rmdir",
        "link",
        "open",
    )

    def __init__(self, at: int, after: bool, counter: Path | None = None) -> None:
        self.at, self.after, self.counter, self.calls = at, after, counter, 0
        self.pid = 0

    def __call__(self) -> None:
        self.pid = os.getpid()
        for name in self.CALLS:
            setattr(os, name, self._wrap(getattr(os, name), name))

    def _wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            writes = name != "open" or (len(arguments) > 1 and arguments[1] & (os.O_WRONLY | os.O_RDWR))
            if not writes or os.getpid() != self.pid:  # workers are not counted
                return function(*arguments, **options)
            number, self.calls = self.calls, self.calls + 1
            if self.counter:
                self.counter.write_text(str(self.calls))
            if number == self.at and not self.after:
                os.killpg(self.pid, signal.SIGKILL)
            result = function(*arguments, **options)
            if number == self.at:
                os.killpg(self.pid, signal.SIGKILL)
            return result

        return wrapped
