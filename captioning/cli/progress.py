"""How far work has come: images a second and the time left, bytes of a download."""

import logging
from collections.abc import Iterable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


def track(batches: Iterable, total: int) -> Iterator:
    """Show progress over batches whose first entry is the list of their rows.

    Args:
        batches: passed through.
        total: number of rows that all batches have together.
    """
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total, rate="")
        for batch in batches:
            yield batch
            speed = progress.tasks[0].speed
            progress.update(task, advance=len(batch[0]), rate=f"{speed:.1f} images/s" if speed else "")


class SayBytes:
    """Logs how far a download is; called with bytes so far and in all (0 where that is unknown)."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, have: int, total: int) -> None:
        """Say it where enough has come since the last time."""
        if have < self._next and have != total:
            return
        self._next = have + max(total // 100, 1 << 27)
        log.info("downloaded %.1f of %s GB", have / 1e9, f"{total / 1e9:.1f}" if total else "?")
