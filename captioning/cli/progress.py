"""Progress on the terminal: images a second and time left, bytes of a download."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS = 30  # between two lines where there is no terminal
Batch = TypeVar("Batch", bound=Sequence)


def extraction_progress(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    """Show progress over batches whose first entry is the list of their rows; without a terminal, lines.

    Args:
        batches: passed through.
        total: rows in all batches together.
    """
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, rate="")
        done, shown = 0, time.monotonic()
        for batch in batches:
            yield batch
            done += len(batch[0])
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, rate=f"{speed:.1f} images/s" if speed else "")
            if not console.is_terminal and time.monotonic() - shown > SECONDS:
                print(f"extracted {done} of {total} images", file=sys.stderr, flush=True)
                shown = time.monotonic()


class DownloadProgress:
    """Shows how far a download is; called with bytes so far and bytes in all (0 where that is unknown)."""

    def __init__(self) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(TextColumn("downloading"), *columns, console=Console(stderr=True))
        self._task = self._progress.add_task("")
        self._next = 0

    def __call__(self, received: int, total: int) -> None:
        """Update the bar; without a terminal a line every hundredth."""
        if not self._progress.console.is_terminal:
            if received >= self._next or received == total:
                self._next = received + max(total // 100, 1 << 27)
                print(
                    f"downloaded {decimal(received)} of {decimal(total) if total else '?'}", file=sys.stderr
                )
            return
        self._progress.start()
        self._progress.update(self._task, completed=received, total=total or None)
        if received == total:
            self._progress.stop()
