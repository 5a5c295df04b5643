"""A progress bar with images a second and the time left."""

from collections.abc import Iterable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
