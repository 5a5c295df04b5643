"""Time and memory of each path against its size, with the exponents of their growth.

    python -m benchmarks.growth [--full] [--axes captions images] [--output benchmarks/results/growth.png]

Captions (synthetic, in a COCO file, five a picture) are read, counted and encoded; a feature cache with small
rows is written, opened, compared with its pictures and read; the post's model does a training step and a beam
search. Every measurement has a process of its own and one thread. Time is processor time, the median of the
repeats. Memory is that of one more run: for captions and images the peak that tracemalloc sees, for the
model by how much the peak of the resident memory exceeds what was resident before (Linux only).

An exponent is the slope of the least-squares line through the logarithms, of memory where it is 0.1 MB or
more; `last` is the slope between the two largest sizes. 1 is linear; a path beyond 1.15 is named at the end.
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.growth_paths import AXES, Action
from captioning.files import atomic_write

LINEAR = 1.15  # above it, an exponent is no noise


class Measured(NamedTuple):
    """Seconds and bytes of a path at one size."""

    seconds: float
    memory: float


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process forked from this one, which has imported everything."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(axis: str, path: str, size: int, folder: Path, repeats: int) -> Measured:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    action = AXES[axis].paths[path](size, folder)
    memory = 0 if AXES[axis].traced else resident_peak(action)  # the first run, before memory is reused
    times = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return Measured(statistics.median(times), traced_peak(action) if AXES[axis].traced else memory)


def traced_peak(action: Action) -> int:
    tracemalloc.start()
    action()
    return tracemalloc.get_traced_memory()[1]


def resident_peak(action: Action) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = resident("VmHWM")
    action()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def slope(sizes: list[int], values: list[float], least: float) -> float:
    """Fit the exponent of growth to the values that are not below `least`; NaN if they are too few."""
    pairs = [(math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if v >= least]
    return float(np.polyfit(*zip(*pairs, strict=True), 1)[0]) if len(pairs) > 1 else math.nan


# ---- reporting


def report(axis: str, sizes: list[int], found: dict[str, list[Measured]]) -> list[str]:
    """Print the table of an axis and return what grows faster than it."""
    print(f"\n{axis:26s}" + "".join(f"{size:>10,}" for size in sizes) + f"{'exponent':>10s}{'last':>7s}")
    faster = []
    for path, measured in found.items():
        for unit, scale, least in (("ms", 1e3, 1e-9), ("MB", 1e-6, 1e5)):
            values = [one.seconds if unit == "ms" else one.memory for one in measured]
            exponent, last = slope(sizes, values, least), slope(sizes[-2:], values[-2:], least)
            cells = "".join(f"{scale * value:>10.4g}" for value in values)
            print(f"{path:24s}{unit}{cells}{exponent:>10.2f}{last:>7.2f}", flush=True)
            if exponent > LINEAR:
                faster.append(f"{unit} of {path} against {axis}, {exponent:.2f}")
    return faster


def plot(results: dict[str, tuple[list[int], dict[str, list[Measured]]]], output: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(results), 7), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False)
    for column, (axis, (sizes, found)) in enumerate(results.items()):
        for path, measured in found.items():
            grid[0][column].loglog(sizes, [1e3 * one.seconds for one in measured], "o-", label=path)
            grid[1][column].loglog(sizes, [one.memory / 1e6 for one in measured], "o-", label=path)
        for row, unit in enumerate(("ms", "MB")):
            low = max(grid[row][column].get_ylim()[0], 1e-3)
            grid[row][column].loglog(sizes, [low * n / sizes[0] for n in sizes], "k:", label="linear")
            grid[row][column].set(xlabel=axis, ylabel=unit)
            grid[row][column].set_xticks(sizes, [f"{n:,}" for n in sizes])
            grid[row][column].minorticks_off()
        grid[0][column].legend(fontsize="small", framealpha=0.3)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        figure.savefig(partial, format="png", dpi=100)
    print(f"\nwritten: {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="to the sizes of COCO")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "growth.png")
    options = parser.parse_args()
    results, faster = {}, []
    for name in options.axes:
        axis = AXES[name]
        sizes = axis.full if options.full else axis.quick
        found: dict[str, list[Measured]] = {path: [] for path in axis.paths}
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                if axis.make:
                    in_a_process(axis.make, size, Path(folder))
                for path, measured in found.items():
                    measured.append(in_a_process(measure, name, path, size, Path(folder), options.repeats))
        results[name] = sizes, found
        faster += report(name, sizes, found)
    print("\nfaster than linear: " + ("; ".join(faster) or "nothing"))
    plot(results, options.output)


if __name__ == "__main__":
    main()
